"""Weight-level pruning as a study: which runs there are, level by level, their plan, and its making.

May import: evidence, judging, studies.
"""
