"""CIFAR's archives in the format of Python 2 and its numpy: gzip tars of pickles of protocol 2."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from makers.pictures import make_picture, make_tar

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"


def python2_pickle(value: Any) -> bytes:
    """A value as Python 2's cPickle writes it at protocol 2: byte strings, each object put into the memo, and gotten
    from there when it comes again, lists and dicts filled a thousand at a time.
    """
    out, memo = bytearray(b"\x80\x02"), dict[Any, int]()

    def put(key: Any = None) -> None:
        number = len(memo)
        memo[key if key is not None else ("object", number)] = number
        out.extend(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def text(value: bytes) -> None:
        if value in memo:
            number = memo[value]
            out.extend(b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number))
            return
        out.extend(b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value)))
        out.extend(value)
        put(value)

    def integer(value: int) -> None:
        if 0 <= value < 256:
            out.extend(b"K" + bytes([value]))
        else:
            out.extend(b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value))

    def array(pixels: np.ndarray) -> None:
        out.extend(b"cnumpy.core.multiarray\n_reconstruct\n")
        put()
        out.extend(b"cnumpy\nndarray\n")
        put()
        out.extend(b"K\x00\x85")
        put()
        text(b"b")
        out.extend(b"\x87")
        put()
        out.extend(b"R")
        put()
        out.extend(b"(K\x01")
        for size in pixels.shape:
            integer(size)
        out.append(0x84 + pixels.ndim)  # TUPLE1, TUPLE2, TUPLE3
        put()
        out.extend(b"cnumpy\ndtype\n")
        put()
        text(b"u1")
        out.extend(b"K\x00K\x01\x87")
        put()
        out.extend(b"R")
        put()
        out.extend(b"(K\x03")
        text(b"|")
        out.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t")
        put()
        out.extend(b"b\x89")
        text(pixels.tobytes())
        out.extend(b"t")
        put()
        out.extend(b"b")

    def write(value: Any) -> None:
        if isinstance(value, bytes):
            text(value)
        elif isinstance(value, int):
            integer(value)
        elif isinstance(value, np.ndarray):
            array(value)
        elif isinstance(value, list):
            out.extend(b"]")
            put()
            for start in range(0, len(value), 1000):
                out.extend(b"(")
                for item in value[start : start + 1000]:
                    write(item)
                out.extend(b"e")
        else:
            out.extend(b"}")
            put()
            out.extend(b"(")
            for key, item in value.items():
                write(key)
                write(item)
            out.extend(b"u")

    write(value)
    return bytes(out + b".")


def cifar_batch(number: int, images: int = 6, **changes: Any) -> dict[bytes, Any]:
    """A batch as the original has them: label, labels, rows of pixels and file names."""
    rows = [make_picture(100 * number + row, 32, 32).transpose(2, 0, 1).reshape(-1) for row in range(images)]
    batch: dict[bytes, Any] = {
        b"batch_label": f"training batch {number} of 5".encode(),
        b"labels": [(3 * number + row) % 10 for row in range(images)],
        b"data": np.stack(rows),
        b"filenames": [f"picture_s_{number:03d}{row:03d}.png".encode() for row in range(images)],
    }
    return batch | {name.encode(): value for name, value in changes.items()}


def cifar_files(write: Any = python2_pickle) -> dict[str, bytes]:
    """The files of the archive with six images in each batch, in its own odd order; `write` pickles a value."""
    meta = {
        b"num_cases_per_batch": 10000,
        b"label_names": [name.encode() for name in NAMES],
        b"num_vis": 3072,
    }
    files = {f"data_batch_{number}": write(cifar_batch(number)) for number in (4, 5, 2, 3, 1)}
    return {
        **files,
        "readme.html": b'<meta HTTP-EQUIV="REFRESH" content="0; url=http://www.cs.toronto.edu/~kriz/cifar.html">\n',
        "test_batch": write(cifar_batch(0)),
        "batches.meta": write(meta),
    }


def make_cifar(path: Path, files: dict[str, bytes] | None = None, folder: str = FOLDER) -> Path:
    """Write the archive, a gzip tar of one folder."""
    members = [(f"{folder}/{name}", content) for name, content in (cifar_files() if files is None else files).items()]
    plain = make_tar(path.with_suffix(".plain"), members)
    path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    return path
