"""Whether an index that lay in a folder may be believed: its numbers must be possible, and a sample must be true.

An index beside shared shards may have been put there by anyone who can write there; with it come labels, keys and the
places of all images. What a sound walk of a tar can never give (places out of order or off a block's edge, labels and
keys past their bounds, keys that are no text) is refused for every row. What could be true is held against the tars
for a few rows: the members that stand around them are walked anew, and must be those images, in that order, with those
keys and labels, and no other. Shards and rows are drawn by the system's own randomness, so that whoever plants an index
cannot leave the drawn ones alone; nothing depends on them but whether the index is believed. An opening looks at up to
64 rows of 8 shards: some 150 reads of 4 KiB, whatever the set's size. A change to a few rows of a large set passes;
`dlth index --rebuild` reads every header.

Shards behind a server are not looked at: their index lies in the user's own cache, and so do their copies.
"""

import itertools
import os
from random import Random, SystemRandom

import numpy as np

from dlth.data.remote.addresses import is_remote
from dlth.data.remote.cache import open_shard
from dlth.data.remote.storage import Facts
from dlth.data.shards.scan import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIX,
    MAX_CLASSES,
    MAX_IMAGE_BYTES,
    MAX_KEY_BYTES,
    read_label,
    split_name,
)
from dlth.data.shards.shard_index import Int64s, ShardIndex
from dlth.data.shards.tar import members
from dlth.data.shards.tar_header import BLOCK
from dlth.tickets.errors import DlthError, shown

_SHARDS = 8
_RUN = 4  # rows that follow each other; two runs of each shard, one of them its last
_MEMBERS = 64  # a run is left after so many, where a shard holds much beside its samples
_END_MARK = 2 * BLOCK


def contradiction(index: ShardIndex, draw: Random | None = None) -> str:
    """What of an index cannot be, or is not as the shards have it, as text; empty if nothing was found.

    `draw` takes the place of the system's randomness.
    """
    return _impossible(index) or _untrue(index, draw or SystemRandom())


def _impossible(index: ShardIndex) -> str:
    """Numbers that no walk of these shards gives."""
    offset, size, lengths = index.image_offset, index.image_size, np.diff(index.key_start)
    limit = np.repeat([shard.size for shard in index.shards], np.diff(index.row_start)) - _END_MARK
    if not ((size >= 0).all() and (size <= MAX_IMAGE_BYTES).all()):
        return "sizes of images"
    if not ((offset >= BLOCK).all() and (offset % BLOCK == 0).all() and (offset <= limit - size).all()):
        return "places of images"
    ends = _padded_end(offset, size)
    follows = offset[1:] - BLOCK >= ends[:-1]
    starts = index.row_start[(index.row_start > 0) & (index.row_start < len(offset))]
    follows[starts - 1] = True  # the first row of a shard follows no other
    if not follows.all():
        return "order of images"
    if not ((index.label >= -1).all() and (index.label < MAX_CLASSES).all()):
        return "labels"
    if not ((lengths > 0).all() and (lengths <= MAX_KEY_BYTES).all() and index.key_start[0] == 0):
        return "lengths of keys"
    return "" if index.key_start[-1] == len(index.key_bytes) and _are_keys(index) else "keys"


def _padded_end(offset: Int64s, size: Int64s) -> Int64s:
    """Where the blocks of each image end."""
    return offset + (size + BLOCK - 1) // BLOCK * BLOCK


def _are_keys(index: ShardIndex) -> bool:
    """Whether every key is UTF-8 on its own, stays in its folder, and has no NUL."""
    firsts = index.key_bytes[index.key_start[:-1]]
    text = index.key_bytes.tobytes()
    if (firsts & 0xC0 == 0x80).any() or (firsts == ord("/")).any() or b"\0" in text:
        return False
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    shards = range(len(index.shards)) if b".." in text else ()
    return not any(".." in key.split("/") for shard in shards for key in index.keys(shard))


def _untrue(index: ShardIndex, draw: Random) -> str:
    """The drawn rows that are not as their shard has them."""
    local = [number for number, shard in enumerate(index.shards) if not is_remote(shard.url)]
    for number in draw.sample(local, min(_SHARDS, len(local))):
        shard = index.shards[number]
        starts = {max(0, shard.rows - _RUN)}
        if shard.rows > _RUN:
            starts.add(draw.randrange(shard.rows - _RUN))
        descriptor = open_shard(shard.url, Facts(shard.size, shard.stamp), index.cache_dir)
        try:
            for first in starts:
                if not _is_true(index, number, first, descriptor):
                    return f"shard {shown(shard.name)}, rows from {first} on"
        finally:
            os.close(descriptor)
    return ""


def _is_true(index: ShardIndex, number: int, first: int, descriptor: int) -> bool:
    """Whether the shard has the images of a run, and no other, where the index has them, with its keys and labels."""
    shard, start = index.shards[number], int(index.row_start[number])
    rows = range(start + first, start + min(first + _RUN, shard.rows))
    before = slice(rows.start - 1, rows.start)
    begin = int(_padded_end(index.image_offset[before], index.image_size[before])[0]) if first else 0
    behind = int(index.image_offset[rows.stop]) if rows.stop < index.row_start[number + 1] else shard.size
    try:
        walk = members(descriptor, shard.size - begin, where=shard.url, start=begin)
        near = list(itertools.islice(itertools.takewhile(lambda member: member.offset < behind, walk), _MEMBERS))
        named = [(*split_name(member.name), member) for member in near]
        images = [(key, member.offset, member.size) for key, suffix, member in named if suffix in IMAGE_SUFFIXES]
        labels = {
            key: read_label(descriptor, member, shard.url, key)
            for key, suffix, member in named
            if suffix == LABEL_SUFFIX
        }
    except DlthError:  # a tar that is not sound is refused when it is read anew
        return False
    expected = [(index.key(row), int(index.image_offset[row]), int(index.image_size[row])) for row in rows]
    if images != (expected[: len(images)] if len(near) == _MEMBERS else expected):
        return False
    return all(labels.get(index.key(row), index.label[row]) == index.label[row] for row in rows)
