"""One image: decoding, rendering a view, augmenting with geometry on record, mixing with another.

May import: nothing.
"""
