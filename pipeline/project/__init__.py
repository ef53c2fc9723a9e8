"""The settings of a command: `dlth.toml`, the record of a project, a run's folder, and what is worked out of them.

May import: selection, evidence, studies, pruning.
"""
