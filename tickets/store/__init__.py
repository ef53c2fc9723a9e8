"""A ticket file on the disk: reading, writing, resuming and verifying it, its locks, and finding rows by key.

May import: format.
"""
