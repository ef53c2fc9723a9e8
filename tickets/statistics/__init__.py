"""What can be counted in one ticket file, and between two.

May import: ranking, format, store, derive.
"""
