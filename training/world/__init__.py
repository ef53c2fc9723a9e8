"""The processes of one run: ranks and what they agree on, signals, progress lines, errors of the machine.

May import: settings.
"""
