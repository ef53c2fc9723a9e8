"""Fixtures that several folders' tests share: real JPEGs in real tars, made in a second.

Factories and not modules: pytest runs with ``--import-mode=importlib``, so a test file cannot import its neighbour.
"""

import hashlib
import io
import os
import re
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # xdist's workers share the cores; one thread each is fastest and repeatable

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Shards:
    """What `make_shards` wrote: paths in order, and each shard's keys and labels by row."""

    folder: Path
    paths: tuple[Path, ...]
    keys: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[int, ...], ...]

    @property
    def spec(self) -> str:
        """A shard spec that `dlth.data.open_index` takes: the folder."""
        return str(self.folder)

    @property
    def all_keys(self) -> list[str]:
        return [key for keys in self.keys for key in keys]


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth colourful image with a bright square: uint8 [height, width, 3], another for each seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    pixels = rng.uniform(0, 110, 3) + rows * rng.uniform(-60, 90, 3) + columns * rng.uniform(-60, 90, 3)
    top, left = rng.integers(0, max(1, height * 2 // 3)), rng.integers(0, max(1, width * 2 // 3))
    pixels[top : top + height // 3, left : left + width // 3] = rng.uniform(150, 255, 3)
    return np.clip(pixels + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "JPEG", mode: str | None = None, **options: object) -> bytes:
    """Encode uint8 pixels with Pillow; `mode` converts first ("L", "CMYK", "P", ...)."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a plain tar with fixed times, so that the same members give the same bytes."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes and remote shards go to a folder of this test run; no file of settings of the user is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DLTH_CONFIG", raising=False)
        patch.setenv("DLTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Server(ThreadingHTTPServer):
    """A real HTTP server of a folder on loopback, with byte ranges, that can be told to fail."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.ranges = folder, ranges
        self.stamps = True  # whether answers carry an ETag
        self.stamp = ""  # which; empty: the content's digest
        self.num_cuts = 0  # so many answers will break off half-way
        self.requests: list[tuple[str, str]] = []  # (method, path) of what was asked

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path))
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, len(content)
        if wanted and self.server.ranges and with_body:
            start, end = int(wanted[1]), min(len(content), int(wanted[2] or len(content)) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        if self.server.stamps:
            self.send_header("ETag", self.server.stamp or f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        body = content[start:end] if with_body else b""
        if body and self.server.num_cuts > 0:
            self.server.num_cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(folder, ranges=True)`` -> a running `Server`; stopped after the test."""
    servers: list[Server] = []

    def start(folder: Path, ranges: bool = True) -> Server:
        servers.append(Server(folder, ranges))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., np.ndarray]:
    """``make_picture(seed, height, width)`` -> uint8 [height, width, 3]."""
    return picture


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    """``make_image(pixels, kind="JPEG", mode=None, **options)`` -> encoded bytes."""
    return encode


@pytest.fixture(scope="session")
def make_tar() -> Callable[..., Path]:
    """``make_tar(path, [(member name, bytes), ...])`` -> path."""
    return write_tar


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Shards]:
    """``make_shards(num_shards=2, per_shard=6, ...)`` -> `Shards` of real JPEGs, WebDataset style (key.jpg, key.cls).

    `per_shard` may be a sequence with one number per shard. Keys look like ImageNet's (``n00000003_17``), labels go
    round `num_classes`; `size` is (height, width) of every image; `split` names the folder and starts each shard name.
    """

    def make(
        num_shards: int = 2,
        per_shard: int | Iterable[int] = 6,
        *,
        num_classes: int = 4,
        size: tuple[int, int] = (48, 64),
        split: str = "train",
        seed: int = 0,
        quality: int = 90,
        folder: Path | None = None,
    ) -> Shards:
        rows = [per_shard] * num_shards if isinstance(per_shard, int) else list(per_shard)
        root = (folder or tmp_path) / split
        root.mkdir(parents=True, exist_ok=True)
        paths, keys, labels, count = [], [], [], 0
        for shard, num_rows in enumerate(rows):
            members, shard_keys, shard_labels = [], [], []
            for _ in range(num_rows):
                label = count % num_classes
                key = f"n{label:08d}_{seed * 100_000 + count}"
                image = encode(picture(seed * 100_000 + count, *size), quality=quality)
                members += [(f"{key}.jpg", image), (f"{key}.cls", str(label).encode())]
                shard_keys.append(key)
                shard_labels.append(label)
                count += 1
            paths.append(write_tar(root / f"{split}-{shard:06d}.tar", members))
            keys.append(tuple(shard_keys))
            labels.append(tuple(shard_labels))
        return Shards(root, tuple(paths), tuple(keys), tuple(labels))

    return make


@pytest.fixture
def dlth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``dlth("tickets", "info", path)``: the command line in this process -> exit code, standard output and error."""
    from dlth.pipeline.last_line import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlth", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run
