"""What studies and runs came to: tables, curves and verdicts gathered from their folders, as HTML, CSV and JSON.

May import: evidence, judging, pages.
"""
