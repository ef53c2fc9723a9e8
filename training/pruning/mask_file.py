"""A mask's file: safetensors that any program opens, and that no bit can be changed in unseen.

    8 bytes, little endian     length of the JSON
    JSON, padded with spaces   every parameter's place in the data, and under "__metadata__" "dlth" the header
    data                       a uint8 tensor for each parameter: its mask in packed bits, the first in the highest bit

The header is JSON in one entry, with `MaskHeader`'s fields and "sha256", the digest of all others and of the data. All
of it has one form alone: canonical JSON, parameters in the header's order, no bits set behind the last. So a file is
read by writing it again: unless that gives the same bytes, it is damaged. That is why the container is written here and
not by safetensors, whose bytes may change with its version; its readers take them.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from dlth.tickets.errors import DamageError, InputError, LimitError, MismatchError, shown
from dlth.tickets.format.jsontext import canonical, parse
from dlth.tickets.store.disk import read_file
from dlth.training.models.weights_metadata import KEY
from dlth.training.pruning.mask_header import MAX_LAYERS, MAX_WEIGHTS, MaskHeader, layers_of
from dlth.training.pruning.prunable import prunable_shapes
from dlth.training.pruning.recipe import Masks
from dlth.training.run_files import published

MAX_JSON = 4 << 20
"""Bytes; a network of a thousand layers has 200 kB."""
MAX_BYTES = MAX_WEIGHTS // 8 + MAX_LAYERS + MAX_JSON + 8
_META, _ALIGNED, _NAMED = "__metadata__", 8, 4


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A mask that was read or made, and checked; `identity` is the sha256 in hex of its header and bits."""

    header: MaskHeader
    masks: Masks
    identity: str

    @property
    def prunable(self) -> int:
        """How many weights it is about."""
        return self.header.prunable

    @property
    def remaining(self) -> int:
        """How many of them are not masked."""
        return self.header.remaining


def read_mask(path: Path) -> MaskFile:
    """The mask of a file.

    Raises:
        MissingFileError, UnsafeError, LimitError: no file, a link or a device, or one beyond any mask's size
        DamageError: not byte for byte what `write_mask` wrote, or no mask
    """
    raw = read_file(path, MAX_BYTES, shown(path))
    try:
        header, data = _header(raw)
        masks = _unpacked(header, data)
        again, identity = _encoded(header, masks)
    except (ValueError, InputError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DamageError(
            f"{shown(path)} is damaged, or no mask of weights: {shown(why, 300)}", file=path.name
        ) from error
    if again != raw:
        raise DamageError(f"{shown(path)} is damaged: its bytes are not what its content is written as", file=path.name)
    return MaskFile(header, masks, identity)


def write_mask(path: Path, header: MaskHeader, masks: Masks) -> MaskFile:
    """Write a mask whole or not at all.

    Args:
        header: its layers are `layers_of(masks)`
        masks: bool, on the CPU
    Raises:
        LimitError: more JSON than a reader takes
        SpaceError, InputError, MachineError: as `published`
    """
    raw, identity = _encoded(header, masks)
    with published(path) as file:
        file.write(raw)
    return MaskFile(header, masks, identity)


def mask_of(header: MaskHeader, masks: Masks) -> MaskFile:
    """The same without writing it."""
    return MaskFile(header, masks, _encoded(header, masks)[1])


def check_mask_fits(mask: MaskFile, model: nn.Module, name: str = "the mask") -> None:
    """Raises MismatchError, naming the first parameters that differ, unless a mask is of a model's prunable ones.

    Args:
        model: it may be on the meta device
        name: of the mask, for the message
    """
    its, own = mask.header.shapes, prunable_shapes(model, mask.header.recipe.exclude)
    if differ := [each for each in {**own, **its} if own.get(each) != its.get(each)]:
        told = [f"{shown(each, 80)} (mask {_shape(its.get(each))}, model {_shape(own.get(each))})" for each in differ]
        more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
        raise MismatchError(
            f"{shown(name)} is of another model ({shown(mask.header.model)}) than this {type(model).__name__}:"
            f" {', '.join(told[:_NAMED])}{more}. Take the model that the mask was made of"
        )


def _encoded(header: MaskHeader, masks: Masks) -> tuple[bytes, str]:
    """A file's bytes, and the identity in them. Raises ValueError for a header of other masks, and LimitError."""
    if header.layers != layers_of(masks):
        raise ValueError("its header's parameters, shapes or counts are not those of its masks")
    facts, data = (
        header.model_dump(mode="json"),
        b"".join(np.packbits(mask.numpy()).tobytes() for mask in masks.values()),
    )
    identity = hashlib.sha256(canonical(facts) + data).hexdigest()
    text = canonical(facts | {"sha256": identity}).decode()
    places = {
        name: {"dtype": "U8", "shape": [end - at], "data_offsets": [at, end]} for name, at, end in _places(header)
    }
    json = canonical({_META: {KEY: text}, **places})
    json += b" " * (-len(json) % _ALIGNED)
    if len(json) > MAX_JSON:
        raise LimitError(f"this mask's header has {len(json)} bytes of JSON; it ends at {MAX_JSON}")
    return len(json).to_bytes(8, "little") + json + data, identity


def _header(raw: bytes) -> tuple[MaskHeader, bytes]:
    """The header of a file's bytes, and the data. Raises ValueError or InputError for what is no mask's."""
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(MAX_JSON, len(raw) - 8):
        raise ValueError(f"its JSON would have {length} bytes")
    whole = parse(raw[8 : 8 + length], "its JSON")
    text = whole.get(_META, {}).get(KEY) if isinstance(whole, dict) and isinstance(whole.get(_META), dict) else None
    if not isinstance(text, str):
        raise ValueError(f"it says nothing under {KEY!r}")
    facts = parse(text.encode(), "its header")
    if not isinstance(facts, dict):
        raise ValueError("its header is no JSON object")
    facts.pop("sha256", None)
    return MaskHeader.model_validate_json(canonical(facts)), raw[8 + length :]


def _unpacked(header: MaskHeader, data: bytes) -> Masks:
    """The masks that the data holds. Raises ValueError where it is not as long as the shapes say."""
    places = list(_places(header))
    if places[-1][2] != len(data):
        raise ValueError(f"its masks have {len(data)} bytes, their shapes ask for {places[-1][2]}")
    packed = np.frombuffer(data, np.uint8)
    return {
        layer.name: torch.from_numpy(np.unpackbits(packed[at:end], count=layer.size).view(bool)).reshape(layer.shape)
        for layer, (_, at, end) in zip(header.layers, places, strict=True)
    }


def _places(header: MaskHeader) -> Iterator[tuple[str, int, int]]:
    """Each parameter's name, and where its packed bits begin and end in the data."""
    at = 0
    for layer in header.layers:
        end = at + math.ceil(layer.size / 8)
        yield layer.name, at, end
        at = end


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
