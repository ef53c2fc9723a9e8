"""The paper's experiments as named rows, run through studies; bundles of what each left, and the check of those.

May import: pruning, studies, reports, evidence, judging, project, selection.
"""
