"""WebDataset shards to batches: sources, index, decoding, views, order, the join with tickets, loaders, packing."""

from dlth.data.decode import BadImageError, content_hash, decode, image_size
from dlth.data.index import ShardIndex, ShardInfo, check_shards, open_index
from dlth.data.sources import Listing, Source, expand, resolve

__all__ = [
    "BadImageError",
    "Listing",
    "ShardIndex",
    "ShardInfo",
    "Source",
    "check_shards",
    "content_hash",
    "decode",
    "expand",
    "image_size",
    "open_index",
    "resolve",
]
