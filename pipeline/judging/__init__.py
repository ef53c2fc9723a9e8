"""What a study's results say, and how surely: statistics of arms and verdicts. Values in, values out; no file is read.

May import: evidence.
"""
