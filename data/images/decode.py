"""Encoded image bytes to pixels, after a look at the header: what it is, and how many pixels it would take.

ImageNet's own files are odd (a PNG named .JPEG, CMYK, grey) and foreign shards may be hostile (691 bytes that claim
65,500 x 65,500 pixels made decoders take 12 GB, measured). So the suffix of a name is never believed, the format is
read from the first bytes, the pixel count and the number of progressive scans are bounded before a decoder runs, and
the decoder is torchvision's, which knows JPEG, PNG and WebP and starts no other program. Pillow agrees with it bit for
bit on RGB and CMYK, but guesses among dozens of formats; that is why it is not used here.

Conventions, recorded in a ticket file's header: EXIF orientation is ignored (as ImageNet training always did), grey
becomes RGB, CMYK is converted, an alpha channel is dropped, 16 bits become 8 by their upper byte.
"""

import re
import struct
import warnings

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from dlth.data.images.png import sound_png
from dlth.tickets.errors import DlthError, shown

MAX_PIXELS = 100_000_000
MAX_SCANS = 100  # a progressive JPEG has about ten; each scan costs a pass over all pixels
MAX_SCANNED = 20 * MAX_PIXELS  # scans times pixels: some three seconds; 99 scans of 81 megapixels took eleven

# Said once in the module of torchvision 0.29; the replacement (torchcodec) is not on every platform dlth runs on.
warnings.filterwarnings("ignore", message=r"(?s).*image decoding and encoding capabilities of TorchVision")

_OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))  # what libjpeg decodes: baseline, extended, progressive
_UNSUPPORTED_FRAMES = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF))  # lossless, hierarchical
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length: TEM and RSTn
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # one that ends coded data: no stuffing, padding or restart


class BadImageError(DlthError, ValueError):
    """An encoded image cannot be used: unknown format, damaged, or larger than the bound."""

    code = "E_IMAGE"

    def advised(self) -> "BadImageError":
        """The same error, with what one can do about it."""
        return BadImageError(f"{str(self).rstrip('.')}. To go on without such images: --bad-images skip")


def sniff(encoded: bytes) -> str:
    """``"jpeg"``, ``"png"`` or ``"webp"``, from the first bytes alone. Raises `BadImageError` on anything else."""
    if encoded[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    if encoded[4:8] == b"ftyp":
        raise BadImageError(f"{shown(ascii(encoded[8:12])[2:-1])} images are not read, only JPEG, PNG and WebP")
    for magic, name in _OTHER_FORMATS.items():
        if encoded.startswith(magic):
            raise BadImageError(f"{name} images are not read, only JPEG, PNG and WebP")
    start = encoded[:8].hex(" ") or "nothing"
    raise BadImageError(f"this is no JPEG, PNG or WebP image: it begins with {start}")


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) in pixels as stored, from the header, without decoding; EXIF orientation is ignored.

    Raises `BadImageError` where the header is damaged or names something torchvision does not decode.
    """
    return _size_of(sniff(encoded), encoded)


def _size_of(kind: str, encoded: bytes) -> tuple[int, int]:
    try:
        height, width = {"jpeg": _jpeg_size, "png": _png_size, "webp": _webp_size}[kind](encoded)
    except (struct.error, IndexError):
        raise BadImageError(f"the {kind} header is cut short ({len(encoded)} bytes in all)") from None
    if height < 1 or width < 1:
        raise BadImageError(f"the {kind} header claims {width} x {height} pixels")
    return height, width


def decode(encoded: bytes, *, where: str, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Pixels of one encoded image: uint8 [3, height, width], RGB.

    `where` (shard and key) stands in the message of the `BadImageError` that a damaged image, an unknown format or more
    than `max_pixels` pixels raise. Damage that still decodes is not seen here: the content hash tells it apart.
    """
    try:
        kind = sniff(encoded)
        height, width = _size_of(kind, encoded)
        if height * width > max_pixels:
            raise BadImageError(f"its header claims {width} x {height} pixels, the bound is {max_pixels}")
        if kind == "png":
            encoded = sound_png(encoded)
        buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        pixels: torch.Tensor = decode_image(buffer, ImageReadMode.RGB)
        if pixels.dtype == torch.uint16:
            pixels = torch.from_numpy((pixels.numpy() >> 8).astype(np.uint8))
    except BadImageError as error:
        raise BadImageError(f"{shown(where)}: {error}") from None
    except MemoryError:
        raise BadImageError(f"{shown(where)}: {width} x {height} pixels do not fit into memory") from None
    except ValueError as error:
        raise BadImageError(f"{shown(where)}: the PNG is damaged: {error}") from None
    except RuntimeError as error:  # "decode_jpeg, /build/path/decode_jpeg.cpp:171, Image is incomplete"
        cause = re.sub(r"(?s)^.*\.cpp:[0-9]+, ", "", str(error)).split("\n")[0]
        raise BadImageError(f"{shown(where)}: the image is damaged: {shown(cause)}") from None
    if pixels.shape != (3, height, width):
        shape = " x ".join(str(size) for size in pixels.shape)
        raise BadImageError(f"{shown(where)}: decoded to {shape}, its header claims 3 x {height} x {width}")
    return pixels


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Height and width, and that its scans do not take long to decode."""
    height, width, position = _jpeg_frame(encoded)
    most = max(1, min(MAX_SCANS, MAX_SCANNED // max(1, height * width)))
    if encoded.count(b"\xff\xda", position) > most and (scans := _jpeg_scans(encoded, position)) > most:
        raise BadImageError(f"the JPEG has {scans} scans: more than {most} scans of {width} x {height} pixels")
    return height, width


def _jpeg_scans(encoded: bytes, position: int) -> int:
    """Number of scans from a marker on; what looks like a scan inside another segment (a thumbnail's) is not one."""
    scans = 0
    while (marker := _MARKER.search(encoded, position)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")
    return scans


def _jpeg_frame(encoded: bytes) -> tuple[int, int, int]:
    """Height, width, and where the frame header begins: walks the segments in the way libjpeg does."""
    position = 2
    while (position := encoded.find(b"\xff", position)) >= 0:
        marker = encoded[position + 1]
        if marker in (0xFF, 0x00):  # padding before a marker, or a stray byte that libjpeg also skips
            position += 1 + (marker == 0x00)
            continue
        if marker in _FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", encoded, position + 4)
            if precision != 8 or components not in (1, 3, 4):
                raise BadImageError(f"JPEG of {precision} bits and {components} components is not read (8; 1, 3 or 4)")
            return height, width, position
        if marker in _UNSUPPORTED_FRAMES:
            raise BadImageError(f"lossless and hierarchical JPEG (marker {marker:#x}) are not read")
        if marker in (0xD8, 0xD9, 0xDA):
            raise BadImageError("the JPEG has no frame header before its data")
        position += 2
        if marker not in _STANDALONE:
            position += max(2, struct.unpack_from(">H", encoded, position)[0])
    raise BadImageError(f"the JPEG has no frame header ({len(encoded)} bytes in all)")


def _png_size(encoded: bytes) -> tuple[int, int]:
    if encoded[12:16] != b"IHDR":
        raise BadImageError("the PNG does not begin with its header chunk")
    width, height = struct.unpack_from(">II", encoded, 16)
    return height, width


def _webp_size(encoded: bytes) -> tuple[int, int]:
    """The three kinds of first chunk: extended (canvas), lossless, lossy."""
    kind = encoded[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(encoded[27:30], "little"), 1 + int.from_bytes(encoded[24:27], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", encoded, 21)[0]
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return height & 0x3FFF, width & 0x3FFF
    raise BadImageError(f"the WebP begins with an unknown chunk {shown(ascii(kind))}")
