"""What lies on another machine: opening and fetching addresses, bounded answers, retries, the cache of fetched files.

May import: nothing.
"""
