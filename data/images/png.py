"""Make a PNG safe to hand to libpng: everything it would check is checked first, and only pixels' chunks are passed on.
And write one of the same bytes everywhere, for images that come as bare pixels.

Why: torchvision's PNG decoder does not survive libpng's own error handling. Of the 4,488 single flipped bits of a small
PNG, 4,073 ended the process with a segmentation fault (torchvision 0.29.2, measured), so one damaged file would take a
whole training down. A PNG that passes here gives libpng nothing to complain about: chunk checksums match, the inflated
data has exactly the length that the header asks for, and every row's filter exists. What libpng then inflates is not
the file's own stream but these rows stored anew without compression: two inflaters may judge one stream differently
(one that claims a window of 256 bytes and reaches further back passed a check with 32 KiB and killed libpng). The other
chunks (transparency, colour profiles, texts) do not change the RGB bytes and are left out, so their parsers never run.
Rejected: Pillow for PNG only (two decoders to name in a ticket's header).
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# Adam7: first column, first row, column step, row step of each pass
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MAX_SIDE = 1_000_000  # of libpng as it is built everywhere
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_STORED = 0xFFFF  # bytes of a block that is not compressed


def stored_png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Pixels uint8 [height, width, 3] as a PNG of the same bytes on every machine: its data are stored block by block,
    as compressors give other bytes from version to version.
    """
    height, width, _ = pixels_HWC.shape
    rows = np.pad(pixels_HWC.reshape(height, -1), ((0, 0), (1, 0))).tobytes()  # before each row its filter, 0
    blocks = [rows[start : start + _MAX_STORED] for start in range(0, len(rows), _MAX_STORED)]
    stored = [struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks]
    data = b"\x78\x01" + b"".join(stored) + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def sound_png(encoded: bytes) -> bytes:
    """The same picture as a PNG of header, palette and data chunks alone, known to decode without an error.

    The caller has bounded width x height. Raises ValueError with the cause where the file is damaged.
    """
    chunks = _critical_chunks(encoded)
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ValueError(f"its header is invalid (depth {depth}, colour type {colour}, interlace {interlace})")
    if max(width, height) > _MAX_SIDE:
        raise ValueError(f"its header claims {width} x {height} pixels, libpng reads sides of at most {_MAX_SIDE}")
    palette = chunks.get(b"PLTE", b"")
    if len(palette) % 3 or len(palette) > 768 or (colour == 3 and not palette):
        raise ValueError(f"its palette has {len(palette)} bytes")
    rows = _rows(width, height, depth * _CHANNELS[colour], interlace)
    stored = zlib.compress(_inflated(chunks.get(b"IDAT", b""), rows), level=0)
    kept = [(b"IHDR", chunks[b"IHDR"]), (b"IDAT", stored), (b"IEND", b"")]
    if colour == 3:
        kept.insert(1, (b"PLTE", palette))
    return _SIGNATURE + b"".join(_chunk(kind, body) for kind, body in kept)


def _critical_chunks(encoded: bytes) -> dict[bytes, bytes]:
    """Bodies of header, palette and (joined) data; every chunk's checksum is compared, ancillary ones are dropped."""
    parts: dict[bytes, list[bytes]] = {}
    position, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        if position + 12 > len(encoded):
            raise ValueError("it is cut short")
        (length,), kind = struct.unpack_from(">I", encoded, position), encoded[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(encoded):
            raise ValueError(f"chunk {ascii(kind)[1:]} at byte {position} is cut short")
        if zlib.crc32(encoded[position + 4 : end]) != int.from_bytes(encoded[end : end + 4], "big"):
            raise ValueError(f"chunk {ascii(kind)[1:]} at byte {position} has a wrong checksum")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            parts.setdefault(kind, []).append(encoded[position + 8 : end])
        elif not kind[0] & 0x20:
            raise ValueError(f"critical chunk {ascii(kind)[1:]} is unknown")
        position = end + 4
    if [len(body) for body in parts.get(b"IHDR", [])] != [13] or len(parts.get(b"PLTE", [])) > 1:
        raise ValueError("it must have one header of 13 bytes and at most one palette")
    return {kind: b"".join(bodies) for kind, bodies in parts.items()}


def _rows(width: int, height: int, bits: int, interlace: int) -> list[tuple[int, int]]:
    """(number of rows, bytes of a row with its filter byte) of each pass."""
    if not interlace:
        return [(height, 1 + -(-width * bits // 8))]
    passes = []
    for left, top, step_x, step_y in _PASSES:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            passes.append((rows, 1 + -(-columns * bits // 8)))
    return passes


def _inflated(data: bytes, rows: list[tuple[int, int]]) -> bytes:
    """What the data inflates to: exactly these rows, each beginning with one of the five filters."""
    expected = sum(count * stride for count, stride in rows)
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(data, expected + 1)
    except zlib.error as error:
        raise ValueError(f"its data does not inflate ({error})") from None
    if len(raw) == expected and not inflate.eof:
        raw += inflate.decompress(inflate.unconsumed_tail, 1)
    if len(raw) != expected or not inflate.eof or inflate.unused_data:
        raise ValueError(f"its data inflates to another length than the {expected} bytes of its rows")
    start = 0
    for count, stride in rows:
        if max(raw[start : start + count * stride : stride]) > 4:
            raise ValueError("a row has an unknown filter")
        start += count * stride
    return raw


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
