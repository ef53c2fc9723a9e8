"""WebDataset shards to batches: sources, index, decoding, views, order, the join with tickets, loaders, packing."""

from dlth.data.augment import Augmentation, augment
from dlth.data.batch import Batch, EvalBatch
from dlth.data.decode import BadImageError, content_hash, decode, image_size
from dlth.data.evaluation import EvalLoader
from dlth.data.index import ShardIndex, ShardInfo, check_shards, open_index
from dlth.data.join import Coverage, Join, check_compatible, join
from dlth.data.loader import TrainLoader
from dlth.data.mixing import Mixing, MixPlan, mix_images, mix_targets
from dlth.data.order import Batching
from dlth.data.sources import Listing, Source, expand, resolve
from dlth.data.views import render
from dlth.data.workers import WorkerError

__all__ = [
    "Augmentation",
    "BadImageError",
    "Batch",
    "Batching",
    "Coverage",
    "EvalBatch",
    "EvalLoader",
    "Join",
    "Listing",
    "MixPlan",
    "Mixing",
    "ShardIndex",
    "ShardInfo",
    "Source",
    "TrainLoader",
    "WorkerError",
    "augment",
    "check_compatible",
    "check_shards",
    "content_hash",
    "decode",
    "expand",
    "image_size",
    "join",
    "mix_images",
    "mix_targets",
    "open_index",
    "render",
    "resolve",
]
