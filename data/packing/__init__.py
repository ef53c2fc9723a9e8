"""Making shards: of folders, archives, ImageNet as it is published, and the digits of the demo.

May import: shards.
"""
