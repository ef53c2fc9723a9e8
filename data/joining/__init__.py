"""Images and tickets brought together: for training by key or content, and into a ticket file for other shards.

May import: remote, shards.
"""
