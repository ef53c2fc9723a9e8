"""From an order of images to batches: reading, worker processes, patches to keep, the loaders of both stages.

May import: shards, images, joining.
"""
