"""Decoding: ImageNet's odd files give the pixels Pillow gives, and hostile ones are refused before a decoder runs."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from makers.pictures import make_image, make_picture
from PIL import Image

from dlth.data.images.decode import BadImageError, decode, image_size, sniff
from dlth.data.shards.identity import content_hash


def pillow_rgb(encoded: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))).permute(2, 0, 1)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


KINDS = {
    "jpeg": ("JPEG", None, {}),
    "progressive jpeg": ("JPEG", None, {"progressive": True}),
    "grey jpeg": ("JPEG", "L", {}),
    "cmyk jpeg": ("JPEG", "CMYK", {}),
    "png": ("PNG", None, {}),
    "grey png": ("PNG", "L", {}),
    "palette png": ("PNG", "P", {}),
    "one-bit png": ("PNG", "1", {}),
    "lossless webp": ("WEBP", None, {"lossless": True}),
    "webp": ("WEBP", None, {}),
    "webp with alpha": ("WEBP", "RGBA", {}),
    "png with alpha": ("PNG", "RGBA", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_pixels_of_pillow(kind):
    """Three RGB channels of the stored size, equal to Pillow's bit for bit (lossy WebP: within a rounding)."""
    form, mode, options = KINDS[kind]
    encoded = make_image(make_picture(1, 33, 47), form, mode, **options)
    pixels = decode(encoded, where="a.tar: k")
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 33, 47))
    assert image_size(encoded) == (33, 47)
    assert (pixels.int() - pillow_rgb(encoded).int()).abs().max() <= (1 if "webp" in kind else 0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2000), (1500, 2), (3, 5)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_tiny_and_very_wide_images_keep_their_size(form, height, width):
    """A single pixel and a 1 x 2000 strip decode to exactly that."""
    pixels = np.broadcast_to(make_picture(2)[:1, :1], (height, width, 3)).copy()
    encoded = make_image(pixels, form)
    assert decode(encoded, where="k").shape == (3, height, width)


def test_sixteen_bit_png_keeps_the_upper_byte():
    """A 16-bit grey PNG becomes 8 bits by its upper byte, not by clipping."""
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16) // 257 * 257 + 200
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    pixels = decode(buffer.getvalue(), where="k")
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[0], torch.from_numpy((grey >> 8).astype(np.uint8)))


def test_exif_rotation_is_ignored():
    """A JPEG that asks to be turned by 90 degrees is used as stored: the ticket's grid lies on the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = make_image(make_picture(3)), make_image(make_picture(3), exif=exif)
    assert turned != plain
    assert image_size(turned) == (48, 64)
    assert torch.equal(decode(turned, where="k"), decode(plain, where="k"))


def test_the_suffix_plays_no_part():
    """The format comes from the first bytes: ImageNet has a PNG named .JPEG."""
    assert sniff(make_image(make_picture(1), "PNG")) == "png"
    assert sniff(make_image(make_picture(1), "JPEG")) == "jpeg"
    assert sniff(make_image(make_picture(1), "WEBP")) == "webp"


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_refused_by_name(form):
    """Only JPEG, PNG and WebP reach a decoder, whatever torchvision could do."""
    with pytest.raises(BadImageError, match=rf"^a.tar: k: (?i:{form}) images are not read, only JPEG"):
        decode(make_image(make_picture(1), form), where="a.tar: k")


def test_postscript_named_as_an_image_is_refused():
    """EPS bytes would start a program in other libraries."""
    with pytest.raises(BadImageError, match="PostScript images are not read"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", where="k")


@pytest.mark.parametrize("encoded", [b"", b"\xff\xd8", b"hello world, no image"])
def test_bytes_that_are_no_image_show_how_they_begin(encoded):
    """The message carries the first bytes, so that a text page saved as .jpg is recognised."""
    with pytest.raises(BadImageError, match="k: this is no JPEG, PNG or WebP image: it begins with"):
        decode(encoded, where="k")


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "png", "webp", "lossless webp"])
def test_every_cut_is_an_error(kind):
    """An image cut anywhere is a BadImageError that names it: never other pixels, never a crash.

    Libraries are lenient about a missing end-of-image mark alone: such a cut may decode, to the same pixels.
    """
    form, mode, options = KINDS[kind]
    encoded = make_image(make_picture(4, 24, 24), form, mode, **options)
    whole = decode(encoded, where="k")
    for length in range(0, len(encoded), 7):
        try:
            pixels = decode(encoded[:length], where="shard 1: n01_1")
        except BadImageError:
            continue
        assert length > len(encoded) - 16
        assert torch.equal(pixels, whole)
    with pytest.raises(BadImageError, match=r"^shard 1: n01_1: "):
        decode(encoded[: len(encoded) // 2], where="shard 1: n01_1")


def test_a_bomb_is_refused_before_decoding():
    """Headers that claim 65,500 x 65,500 pixels are refused from the header, in each format."""
    jpeg = bytearray(make_image(make_picture(1)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    png = bytearray(make_image(make_picture(1), "PNG"))
    png[8:33] = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 65500, 65500, 8, 2, 0, 0, 0))
    for encoded in (jpeg, png):
        with pytest.raises(BadImageError, match="65500 x 65500 pixels, the bound is 100000000"):
            decode(bytes(encoded), where="k")
    with pytest.raises(BadImageError, match="64 x 48 pixels, the bound is 3071"):
        decode(make_image(make_picture(1), "WEBP"), where="k", max_pixels=48 * 64 - 1)


def test_a_jpeg_of_a_hundred_scans_is_refused():
    """Each scan costs a pass over all pixels: a small file could take hours."""
    jpeg = make_image(make_picture(1), progressive=True)
    scan = jpeg.rindex(b"\xff\xda")
    with pytest.raises(BadImageError, match="more than 100 scans"):
        decode(jpeg[:scan] + jpeg[scan:-2] * 101 + jpeg[-2:], where="k")


def test_scans_are_bounded_by_the_pixels_that_they_pass_over():
    """Thirty scans of a small image are decoded; of 81 megapixels they are refused by the header."""
    jpeg = make_image(make_picture(1), progressive=True)
    scan = jpeg.rindex(b"\xff\xda")
    many = jpeg[:scan] + jpeg[scan:-2] * 30 + jpeg[-2:]
    assert decode(many, where="k").shape == (3, 48, 64)
    frame = many.index(b"\xff\xc2")
    large = many[: frame + 5] + struct.pack(">HH", 9000, 9000) + many[frame + 9 :]
    with pytest.raises(BadImageError, match="39 scans: more than 24 scans of 9000 x 9000 pixels"):
        decode(large, where="k")


def test_bytes_that_look_like_scans_inside_exif_are_none():
    """A thumbnail or a maker's note may hold any bytes: only scans of the image itself count."""
    jpeg = make_image(make_picture(1))
    note = b"\xff\xda\x00\x08" * 150
    exif = b"\xff\xe1" + struct.pack(">H", 2 + len(note)) + note
    frame = jpeg.index(b"\xff\xc0")
    length = 2 + int.from_bytes(jpeg[frame + 2 : frame + 4], "big")
    after = jpeg[: frame + length] + exif + jpeg[frame + length :]
    assert torch.equal(decode(after, where="k"), decode(jpeg, where="k"))


@pytest.mark.parametrize("window", range(8))
def test_a_png_whose_stream_claims_a_small_window_is_decoded(window):
    """Rows repeat 3,840 bytes apart while the stream claims 256 to 32,768: libpng's inflater would end the process."""
    rows = np.random.default_rng(0).integers(0, 256, (20, 64, 3), dtype=np.uint8)
    pixels = np.concatenate([rows, rows, rows])
    stream = bytearray(zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels), 9))
    stream[0] = window << 4 | 8
    stream[1] = stream[1] & 0xE0
    stream[1] += -(stream[0] << 8 | stream[1]) % 31
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 60, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", bytes(stream)) + png_chunk(b"IEND", b"")
    assert torch.equal(decode(png, where="k"), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(1_000_001, 1), (1, 1_000_001)])
def test_a_png_longer_than_libpng_reads_is_refused(size):
    """libpng's own limit, said in words and before it meets it."""
    width, height = size
    raw = zlib.compress((b"\0" + bytes(width)) * height, 1)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", raw) + png_chunk(b"IEND", b"")
    with pytest.raises(BadImageError, match="sides of at most 1000000"):
        decode(png, where="k")


SHORT_OF_MEMORY = """
import resource, struct, sys, zlib
import torch
from dlth.data.images.decode import BadImageError, decode
from dlth.data.images.views import render
from dlth.tickets.format.header import ViewSpec

def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

def png(width, height, depth, colour, channels):
    raw = zlib.compress((b"\\0" + bytes(width * channels * depth // 8)) * height, 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\\x89PNG\\r\\n\\x1a\\n" + header + chunk(b"IDAT", raw) + chunk(b"IEND", b"")

large, thin = png(4000, 4000, 16, 6, 4), png(30_000, 1, 8, 2, 3)
render(decode(png(40, 30, 8, 2, 3), where="warm"), ViewSpec("center", 224, 224, "0.875"))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 250_000_000, resource.RLIM_INFINITY))
print(render(decode(thin, where="thin"), ViewSpec("center", 224, 224, "0.875")).shape)
for narrow in (thin, png(1_000_000, 1, 8, 0, 1), png(1, 200_000, 8, 0, 1)):
    assert render(decode(narrow, where="thin"), ViewSpec("center", 224, 224, "0.03")).shape == (3, 224, 224)
    assert render(decode(narrow, where="thin"), ViewSpec("whole", 224, 224)).shape == (3, 224, 224)
try:
    decode(large, where="large")
except BadImageError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_memory_is_bounded_by_the_result_and_a_lack_of_it_is_a_bad_image():
    """With 250 MB to go: a 30,000 x 1 image (5.8 GB when resized whole) is shown, 128 MB of 16 bit RGBA are refused."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    shape, message = done.stdout.strip().split("\n")
    assert shape == "torch.Size([3, 224, 224])"
    assert message.startswith("large: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda jpeg, frame: jpeg[: frame + 5] + bytes(2) + jpeg[frame + 7 :], "claims 64 x 0 pixels"),
        (lambda jpeg, frame: jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], "12 bits and 3 components is not read"),
        (lambda jpeg, frame: jpeg[: frame + 1] + b"\xc3" + jpeg[frame + 2 :], "lossless and hierarchical JPEG"),
        (lambda jpeg, frame: jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :], "no frame header before its data"),
        (lambda jpeg, frame: jpeg[:2] + b"\xff\x00\xff\xff" * 50, "header is cut short|no frame header"),
    ],
    ids=["no height", "12 bits", "lossless", "no frame", "padding only"],
)
def test_broken_jpeg_headers_are_named(change, message):
    """What the header lacks or claims is said, not just that decoding failed."""
    jpeg = make_image(make_picture(1))
    with pytest.raises(BadImageError, match=message):
        decode(change(jpeg, jpeg.index(b"\xff\xc0")), where="k")


@pytest.mark.parametrize("kind", KINDS)
def test_seeded_flips_never_escape_the_error_family(kind):
    """Flipped bits give BadImageError or pixels of the claimed size: no crash, no other exception.

    Pixels that are merely other ones are told apart by the content hash. (Without the check of data.png, nine in ten
    flips end the process with a segmentation fault in torchvision 0.29.)
    """
    rng = np.random.default_rng(0)
    form, mode, options = KINDS[kind]
    encoded = make_image(make_picture(5, 16, 16), form, mode, **options)
    for _ in range(200):
        flipped = bytearray(encoded)
        flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
        assert content_hash(bytes(flipped)) != content_hash(encoded)
        try:
            pixels = decode(bytes(flipped), where="k", max_pixels=1_000_000)
        except BadImageError:
            continue
        assert form != "PNG"
        assert tuple(pixels.shape[1:]) == image_size(bytes(flipped))


PNG_LIES = {
    "data too short": ([(b"IDAT", zlib.compress(bytes(9)))], "another length than the 10 bytes"),
    "data too long": ([(b"IDAT", zlib.compress(bytes(11)))], "another length than the 10 bytes"),
    "data bomb": ([(b"IDAT", zlib.compress(bytes(10_000_000)))], "another length than the 10 bytes"),
    "data unfinished": ([(b"IDAT", zlib.compress(bytes(10))[:-4])], "another length than the 10 bytes"),
    "no data": ([], "another length than the 10 bytes"),
    "not deflated": ([(b"IDAT", b"0123456789")], "does not inflate"),
    "unknown filter": ([(b"IDAT", zlib.compress(b"\5" * 10))], "unknown filter"),
    "unknown critical chunk": ([(b"EVIL", b"")], "critical chunk 'EVIL' is unknown"),
    "two palettes": ([(b"PLTE", bytes(3)), (b"PLTE", bytes(3))], "at most one palette"),
    "odd palette": ([(b"PLTE", bytes(4))], "palette has 4 bytes"),
    "second header": ([(b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, 0, 0, 0, 0))], "one header of 13 bytes"),
}


@pytest.mark.parametrize("lie", PNG_LIES)
def test_png_that_lies_is_refused_before_libpng_sees_it(lie):
    """Correct checksums, wrong content: a header of 4 x 2 grey pixels asks for ten bytes of rows."""
    chunks, message = PNG_LIES[lie]
    header = (b"IHDR", struct.pack(">IIBBBBB", 4, 2, 8, 0, 0, 0, 0))
    body = b"".join(png_chunk(kind, content) for kind, content in [header, *chunks, (b"IEND", b"")])
    with pytest.raises(BadImageError, match=f"^a.tar: k: the PNG is damaged: .*{message}"):
        decode(b"\x89PNG\r\n\x1a\n" + body, where="a.tar: k")


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (16, 17)])
def test_interlaced_png_and_transparent_palette(size):
    """Adam7 rows are counted right at every small size; a transparent palette keeps its colours."""
    height, width = size
    grey = make_picture(1, height, width)[..., 0]
    raw = b""
    for left, top, step_x, step_y in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    ):  # fmt: skip
        part = grey[top::step_y, left::step_x]
        raw += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    body = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)), (b"IDAT", zlib.compress(raw))]
    encoded = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in [*body, (b"IEND", b"")])
    assert torch.equal(decode(encoded, where="k"), torch.from_numpy(grey.copy()).expand(3, -1, -1))
    palette = make_image(make_picture(1, height, width), "PNG", "P", transparency=bytes([0, 128]))
    assert torch.equal(decode(palette, where="k"), pillow_rgb(palette))


def test_the_content_hash_is_pinned():
    """16 bytes of xxh3-128: if this changes, no stored ticket finds its image by content any more."""
    assert content_hash(b"dlth").hex() == "6d7b213bddccdc0d5b9d8be6c12e75e6"
