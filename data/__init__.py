"""Images and their tickets: shards near and far, decoding and augmenting, the join, loaders, packing and sharing.

Names are loaded on first use: whoever lists, packs or shares should not wait for torch and torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlth.data.images.augment import Augmentation, augment
    from dlth.data.images.decode import BadImageError, decode, image_size
    from dlth.data.images.mixing import BatchMix, Mixing, MixPlan, mix_images, mix_targets
    from dlth.data.images.token_labels import TokenLabels, TokenTargets, token_targets
    from dlth.data.images.views import render
    from dlth.data.joining.join import Coverage, Join, check_compatible, join
    from dlth.data.loading.batch import Batch, EvalBatch
    from dlth.data.loading.evaluation import EvalLoader
    from dlth.data.loading.loader import TrainLoader
    from dlth.data.loading.order import Batching
    from dlth.data.loading.workers import WorkerError
    from dlth.data.shards.identity import DataIdentity, content_hash
    from dlth.data.shards.index import ShardIndex, ShardInfo, check_shards, open_index
    from dlth.data.shards.sources import Listing, Source, expand, resolve

_MODULES = {
    "images.augment": "Augmentation augment",
    "images.decode": "BadImageError decode image_size",
    "images.mixing": "BatchMix MixPlan Mixing mix_images mix_targets",
    "images.token_labels": "TokenLabels TokenTargets token_targets",
    "images.views": "render",
    "joining.join": "Coverage Join check_compatible join",
    "loading.batch": "Batch EvalBatch",
    "loading.evaluation": "EvalLoader",
    "loading.loader": "TrainLoader",
    "loading.order": "Batching",
    "loading.workers": "WorkerError",
    "shards.identity": "DataIdentity content_hash",
    "shards.index": "ShardIndex ShardInfo check_shards open_index",
    "shards.sources": "Listing Source expand resolve",
}
"""Module of this package -> names that it exports."""
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Augmentation",
    "BadImageError",
    "Batch",
    "BatchMix",
    "Batching",
    "Coverage",
    "DataIdentity",
    "EvalBatch",
    "EvalLoader",
    "Join",
    "Listing",
    "MixPlan",
    "Mixing",
    "ShardIndex",
    "ShardInfo",
    "Source",
    "TokenLabels",
    "TokenTargets",
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
    "token_targets",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
