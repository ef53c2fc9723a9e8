"""WebDataset shards: which tars a spec names, reading them without trust, the index of their samples, and their labels.

May import: remote.
"""
