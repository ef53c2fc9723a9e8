"""The only source of randomness ids: every random choice is named by its parts (seed, epoch, key, purpose …).

Why: a choice that is a pure function of its name does not depend on the order of calls, the number of workers or the
rank. Rejected: `numpy.random.SeedSequence(spawn_key=…)` (integers only, so keys would need a hash of their own) and
Python's `hash` (salted per process).
"""

import hashlib

import numpy as np

Part = int | str | bytes


def derive(*parts: Part) -> int:
    """A 63-bit id of `parts`: blake2b over the parts, each tagged with its type and prefixed with its length.

    Raises TypeError when a part is neither int, str nor bytes (bool counts as no int).
    """
    return int.from_bytes(_digest(parts, 8), "little") >> 1


def generator(*parts: Part) -> np.random.Generator:
    """A fresh Philox generator keyed with 128 bits of `parts`; equal parts give equal streams on every machine."""
    key = np.frombuffer(_digest(parts, 16), dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _digest(parts: tuple[Part, ...], size: int) -> bytes:
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        tag, raw = _encoded(part)
        state.update(tag + len(raw).to_bytes(8, "little") + raw)
    return state.digest()


def _encoded(part: Part) -> tuple[bytes, bytes]:
    if isinstance(part, bytes):
        return b"b", part
    if isinstance(part, str):
        return b"s", part.encode("utf-8", "surrogatepass")
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        return b"i", str(int(part)).encode()
    raise TypeError(f"a part of a seed is int, str or bytes, not {type(part).__name__}")
