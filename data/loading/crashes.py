"""Which images end the process that decodes them: tried one by one, in a process that only reads and decodes.

Decoders are C code that others wrote, and a crafted file may crash one. Whoever finds a decoding process dead asks here
whether one of the images that it had in hand is the cause. An image is the cause when two fresh processes in a row end
on it: one that somebody killed meanwhile, or that fell to a lack of memory elsewhere, is not blamed on an image.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import MappingProxyType

import torch

from dlth.data.images.decode import BadImageError, decode
from dlth.data.shards.shard_index import ShardIndex
from dlth.tickets.errors import DlthError

Crashed = Mapping[int, str]
"""Ids of images that ended a process, and what happened, as the message of a bad image says it."""
NONE: Crashed = MappingProxyType({})

STARTING = threading.Lock()
"""Held while a connection is made and its process started: one that starts meanwhile would keep the other end open."""
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
"""Forked where that is safe: a new process has the index, the tickets and torch at once, whatever Python's default."""


def decode_sample(index: ShardIndex, sample_id: int, encoded: bytes, crashed: Crashed = NONE) -> torch.Tensor:
    """Pixels of a sample, uint8 [3, height, width]. Raises BadImageError for a damaged one or one that has crashed."""
    where = index.where(sample_id)
    if sample_id in crashed:
        raise BadImageError(f"{where}: {crashed[sample_id]}")
    return decode(encoded, where=where)


def crashing(index: ShardIndex, ids: Sequence[int]) -> dict[int, str]:
    """Those of `ids` whose reading or decoding ends the process, each with how it ended; nothing is raised for others.

    Damaged images and shards are no crash: whoever reads them next says what is wrong.
    """
    crashed: dict[int, str] = {}
    left, suspect = list(ids), -1
    while left:
        done, ended = _decoded(index, left)
        left = left[done:]
        if left and left[0] == suspect:
            crashed[suspect] = f"decoding it ends the process that does so ({ended})"
            left = left[1:]
        suspect = left[0] if left else -1
    return crashed


def how_it_ended(process: BaseProcess) -> str:
    """Its signal or exit code in words; the process has ended."""
    code = process.exitcode or 0
    return f"killed by signal: {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


def alone() -> None:
    """What a new process does first: a group of its own, the system's own answer to signals, one thread.

    A scheduler or a terminal signals the whole process group, and the main process needs its readers to finish its
    step; a handler of the main process, inherited, would keep a reader from being ended.
    """
    gc.freeze()  # the main process's garbage is not collected here: tensors of a GPU would call CUDA, dead in a fork
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)


def _decoded(index: ShardIndex, ids: Sequence[int]) -> tuple[int, str]:
    """How many of `ids` a process of its own decoded before it ended, and how it ended."""
    with STARTING:
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_decode_all, args=(index, ids, there), daemon=True)
        process.start()
        there.close()
    done = 0
    with here, suppress(EOFError, ConnectionResetError):
        while True:
            here.recv_bytes()
            done += 1
    process.join()
    return done, how_it_ended(process)


def _decode_all(index: ShardIndex, ids: Sequence[int], done: Connection) -> None:
    alone()
    for sample_id in ids:
        with suppress(DlthError):
            decode_sample(index, sample_id, index.read(sample_id))
        done.send_bytes(b"1")
