"""Stage 1: the settings of `dlth select`, its plan, and the pass over the shards that writes the ticket file.

May import: evidence.
"""
