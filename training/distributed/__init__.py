"""The processes of one run: ranks, what they agree on, and the signals that stop them.

May import: settings.
"""
