"""What runs and studies left on the disk, read back and checked: a study's plan, finished runs, the state of others.

May import: nothing.
"""
