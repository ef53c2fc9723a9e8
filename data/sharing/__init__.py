"""Ticket files between labs: sending, fetching, the cache, signatures, and Parquet.

May import: remote, shards.
"""
