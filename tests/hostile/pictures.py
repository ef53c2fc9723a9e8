"""Small sound images of every kind that is read, and ways to spoil them; every choice is drawn from the `Random` given.

Ways are blind (flips, cuts, splices) and knowing: header fields, lengths, segments and chunks exchanged, and PNGs and
WebPs put together again with right checksums and sizes, so that what is spoiled lies behind a reader's first check.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
EXTREME = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 127, 128, 254, 255)


def picture(height: int = 21, width: int = 27) -> np.ndarray:
    """Smooth colours and some noise: uint8 [height, width, 3]."""
    rows, cols = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    return (np.stack([rows * 7, cols * 5, rows + cols], axis=-1) + noise).clip(0, 255).astype(np.uint8)


def saved(form: str, mode: str = "RGB", **options: object) -> bytes:
    """A picture as Pillow writes it."""
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(colour: int, depth: int, interlace: int, height: int = 13, width: int = 19) -> bytes:
    """A PNG of any colour type and depth, its rows under all five filters."""
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    rng, raw = np.random.default_rng(colour * 100 + depth), b""
    for left, top, right, down in PASSES if interlace else ((0, 0, 1, 1),):
        cols, rows = -(-(width - left) // right), -(-(height - top) // down)
        if cols > 0:
            for row in range(max(0, rows)):
                raw += bytes([row % 5]) + rng.integers(0, 256, -(-cols * bits // 8), dtype=np.uint8).tobytes()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))]
    parts += [(b"PLTE", rng.integers(0, 256, 768, dtype=np.uint8).tobytes()), (b"tRNS", bytes(9))] * (colour == 3)
    packed = zlib.compress(raw)
    parts += [(b"IDAT", packed[: len(packed) // 2]), (b"IDAT", packed[len(packed) // 2 :]), (b"IEND", b"")]
    return PNG + b"".join(chunk(*part) for part in parts)


def sound() -> dict[str, list[bytes]]:
    """By format, the images that mutants are made of."""
    exif = Image.Exif()
    exif[0x0112] = 6
    other = Image.fromarray(picture()[::-1].copy())
    jpegs = [saved("JPEG", quality=60), saved("JPEG", progressive=True), saved("JPEG", "L"), saved("JPEG", "CMYK")]
    jpegs += [saved("JPEG", "L", progressive=True), saved("JPEG", "CMYK", progressive=True)]
    jpegs += [saved("JPEG", subsampling=kind) for kind in ("4:4:4", "4:2:2", "4:2:0")]
    jpegs += [saved("JPEG", exif=exif, comment=b"words"), saved("JPEG", restart_marker_blocks=1, optimize=True)]
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    pngs = [png(colour, depth, lace) for colour, all_ in depths.items() for depth in all_ for lace in (0, 1)]
    webps = [saved("WEBP"), saved("WEBP", lossless=True), saved("WEBP", "RGBA", lossless=True), saved("WEBP", "RGBA")]
    webps += [saved("WEBP", exif=exif), saved("WEBP", save_all=True, append_images=[other], duration=100)]
    webps += [saved("WEBP", "P", lossless=True), saved("WEBP", quality=5, method=0)]
    return {"jpeg": jpegs, "png": pngs, "webp": webps}


def flip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to twenty bits."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def cut(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """An end, or a piece of the middle, is missing."""
    start = rng.randrange(4, len(data))
    return data[:start] + data[start + rng.choice((len(data), 1, 2, 7, 64)) :]


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one image and the end of another."""
    return data[: rng.randrange(12, len(data))] + other[rng.randrange(len(other)) :]


def repeat(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A piece stands there several times."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 4, 16, 200))]
    return data[:start] + piece * rng.choice((2, 3, 50)) + data[start:]


def header(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Extreme numbers among the first bytes."""
    spoiled, width = bytearray(data), rng.choice((1, 1, 2, 4))
    at = rng.randrange(12, min(64, len(data)) - 4)
    spoiled[at : at + width] = bytes(rng.choice(EXTREME) for _ in range(width))
    return bytes(spoiled)


def parts(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Segments or chunks spoiled, left out, doubled, exchanged or taken from another image, and all put together."""
    take, join = FORMS[form_of(data)]
    pieces, others = take(data), take(other)
    at = rng.randrange(len(pieces))
    kind, body = pieces[at]
    what = rng.randrange(6)
    if what == 0 and body:
        pieces[at] = kind, flip(body, b"", rng)
    elif what == 1 and body:
        spoiled, place = bytearray(body), rng.randrange(min(len(body), 20))
        spoiled[place] = rng.choice(EXTREME)
        pieces[at] = kind, bytes(spoiled)
    elif what == 2:
        del pieces[at]
    elif what == 3:
        pieces.insert(rng.randrange(len(pieces) + 1), (kind, body))
    elif what == 4:
        pieces[at] = rng.choice(others)
    else:
        pieces.insert(rng.randrange(len(pieces) + 1), rng.choice(others))
    return join(pieces)


def packed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """For a PNG: spoiled rows under a sound stream, or the same rows under another window or strategy; else `parts`."""
    if form_of(data) != "png":
        return parts(data, other, rng)
    pieces = png_parts(data)
    rows = bytearray(zlib.decompress(b"".join(body for kind, body in pieces if kind == b"IDAT")))
    for _ in range(rng.randrange(3)):
        rows[rng.randrange(len(rows))] = rng.choice(EXTREME)
    if rng.random() < 0.2:
        rows = rows[: rng.randrange(len(rows))] + rows[: rng.randrange(9)]
    stream = zlib.compressobj(rng.randrange(10), zlib.DEFLATED, rng.randrange(9, 16), 9, rng.randrange(5))
    content = bytearray(stream.compress(bytes(rows)) + stream.flush())
    if rng.random() < 0.3:  # the window that the stream claims, with a right check
        content[0] = content[0] & 15 | rng.randrange(8) << 4
        content[1] = content[1] & 0xE0 | (31 - (content[0] * 256 + (content[1] & 0xE0)) % 31) % 31
    whole = [piece for piece in pieces if piece[0] != b"IDAT"]
    whole.insert(len(whole) - 1, (b"IDAT", bytes(content)))
    return png_joined(whole)


WAYS: dict[str, Callable[[bytes, bytes, random.Random], bytes]] = {
    way.__name__: way for way in (flip, cut, splice, repeat, header, parts, packed)
}


def form_of(data: bytes) -> str:
    """By the first bytes."""
    return "png" if data.startswith(b"\x89") else "webp" if data.startswith(b"RIFF") else "jpeg"


Pieces = list[tuple[bytes, bytes]]


def png_parts(data: bytes) -> Pieces:
    """Kind and body of each chunk of a sound PNG."""
    at, pieces = 8, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        pieces.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    return pieces


def png_joined(pieces: Pieces) -> bytes:
    """A PNG with right lengths and checksums."""
    return PNG + b"".join(chunk(kind, body) for kind, body in pieces)


def webp_parts(data: bytes) -> Pieces:
    """Kind and body of each chunk of a sound WebP."""
    at, pieces = 12, []
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        pieces.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return pieces


def webp_joined(pieces: Pieces) -> bytes:
    """A WebP with right sizes."""
    body = b"".join(kind + struct.pack("<I", len(one)) + one + b"\0" * (len(one) % 2) for kind, one in pieces)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg_parts(data: bytes) -> Pieces:
    """Marker and content of each segment of a sound JPEG; coded data belongs to the scan before it."""
    at, pieces = 2, []
    while at < len(data):
        kind, size = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + (0 if kind == b"\xff\xd9" else size)
        while kind == b"\xff\xda" and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
            end += 1
        pieces.append((kind, data[at + 4 : end]))
        at = end
    return pieces


def jpeg_joined(pieces: Pieces) -> bytes:
    """A JPEG with right lengths; that of a scan is what its number of components asks for."""
    whole = b"\xff\xd8"
    for kind, body in pieces:
        size = 6 + 2 * body[0] if kind == b"\xff\xda" and body else len(body) + 2
        whole += kind + (b"" if kind == b"\xff\xd9" else struct.pack(">H", size & 0xFFFF)) + body
    return whole


FORMS: dict[str, tuple[Callable[[bytes], Pieces], Callable[[Pieces], bytes]]] = {
    "jpeg": (jpeg_parts, jpeg_joined),
    "png": (png_parts, png_joined),
    "webp": (webp_parts, webp_joined),
}
