"""Several runs side by side: the statistics of arms, and the demo that runs both stages.

May import: selection, pages, evidence, judging, reports.
"""
