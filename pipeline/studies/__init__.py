"""Several runs side by side: a study's grid, its plan and its workers; and the demo, which makes one.

May import: selection, pages, evidence, judging, reports.
"""
