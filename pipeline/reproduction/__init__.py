"""The paper's experiments as named rows, run through studies; bundles of what each left, and the check of those.

May import: studies, reports, evidence, judging, project, selection.
"""
