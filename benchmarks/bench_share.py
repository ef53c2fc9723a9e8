"""What a ticket file costs to send: size by form, packing, unpacking, and fetching over loopback against a plain copy.

    python benchmarks/bench_share.py --rows 100000 --json share.json

Rankings are of smooth synthetic scores (Gaussian-filtered noise of 0.9 to 2 patches, a pull to the centre, 5 to 25 %
noise of each patch's own): real masks lie between these and independent noise, which is measured too. 'Pull' fetches a
packed file from an HTTP server in another process of this machine, checks every digest and puts it under its name;
'copy' is the same zip copied by the system, page cache warm. Rates are medians over --repeats.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from makers.servers import FolderServer
from makers.tickets import DEIT, fill, make_header

from dlth.data.sharing.share import pull
from dlth.data.sharing.transfer import download
from dlth.tickets import DatasetInfo, ShardSpec, ShardTickets, TicketStore, TicketWriter, generator
from dlth.tickets.derive.shrink import shrink
from dlth.tickets.exchange.archive import Archive, pack, unpack

SIDE, K, SHARD_ROWS = 14, 138, 1_000
Scores = Callable[[np.random.Generator, int], np.ndarray]


def smooth(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Scores [rows, patches] that vary smoothly over the image."""
    places = np.arange(SIDE)
    squares = (places[:, None] - places[None, :]) ** 2
    blur = np.exp(-0.5 * squares / rng.uniform(0.9, 2.0, (rows, 1, 1)) ** 2)
    field = blur @ rng.normal(size=(rows, SIDE, SIDE)) @ blur
    field /= field.std(axis=(1, 2), keepdims=True)
    middle = ((places - (SIDE - 1) / 2) / SIDE) ** 2
    field -= 8 * rng.uniform(0, 1, (rows, 1, 1)) * (middle[:, None] + middle[None, :])
    own = rng.uniform(0.05, 0.25, (rows, 1, 1))
    return ((1 - own) * field + own * rng.normal(size=field.shape)).reshape(rows, -1)


def independent(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Scores [rows, patches] without any order in space: the worst case."""
    return rng.random((rows, SIDE * SIDE), dtype=np.float32)


def write_full(path: Path, num_rows: int, scores: Scores) -> TicketStore:
    """A ticket file of form full, as stage 1 would write it for DeiT-S."""
    header = make_header(**DEIT, dataset=DatasetInfo("fake", "train", num_rows, ""))
    sizes = [min(SHARD_ROWS, num_rows - start) for start in range(0, num_rows, SHARD_ROWS)]
    writer = TicketWriter(path, header, [ShardSpec(f"fake-{i:06d}.tar", n) for i, n in enumerate(sizes)], key_width=16)

    def tickets(index: int) -> ShardTickets:
        rows, rng = sizes[index], generator("bench_share", index)
        ordered = -np.sort(-(values := scores(rng, rows)), axis=1)
        patches = np.argsort(-values, axis=1).astype(np.uint8)
        gap = (ordered[:, K - 1] - ordered[:, K]).astype(np.float32)
        keys = tuple(f"n{index // 10:08d}_{index * SHARD_ROWS + row}" for row in range(rows))
        images = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
        return ShardTickets(keys, images, patches, gap, np.zeros(rows, dtype=bool))

    fill(writer, tickets)
    return TicketStore(path)


def sizes_by_form(folder: Path, name: str, num_rows: int, scores: Scores) -> tuple[dict[str, dict[str, float]], Path]:
    """Bytes an image by form: the choice of patches alone, the rest, the packed file; and where the full form lies."""
    full = write_full(folder / f"{name}.zarr", num_rows, scores)
    found = {}
    for form in ("full", "top", "mask"):
        store = full if form == "full" else shrink(full, form).write(folder / f"{name}-{form}.zarr")
        packed = folder / f"{name}-{form}.zip"
        pack(store, packed)
        choice = sum(file.stat().st_size for file in (store.path / store.layout.choice.name).glob("c.*"))
        size = packed.stat().st_size
        found[form] = {
            "choice_bytes_image": choice / num_rows,
            "packed_bytes_image": size / num_rows,
            "packed_mb": size / 1e6,
            "imagenet_mb": size / num_rows * 1_281_167 / 1e6,
        }
    return found, full.path


def rate(call: Callable[[], object], clear: Callable[[], object], size: int, repeats: int) -> float:
    """Median MB/s of `call` on `size` bytes."""
    spent = []
    for _ in range(repeats):
        clear()
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    clear()
    return size / 1e6 / statistics.median(spent)


def serve() -> None:
    """Serve the current folder until the process is ended."""
    server = FolderServer(Path.cwd())
    server.stamp = '"bench"'
    print(server.server_address[1], flush=True)
    server.serve_forever()


def transfer_rates(folder: Path, full: Path, repeats: int) -> dict[str, float]:
    """MB/s of every step of a file's way."""
    store, packed = TicketStore(full), folder / "smooth-full.zip"
    size = packed.stat().st_size
    out, zipped, folder_out = folder / "out", folder / "out.zip", folder / "out.zarr"

    def clear() -> None:
        for path in (out, zipped, folder / "out.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder_out, ignore_errors=True)

    def check() -> None:
        with Archive(packed) as archive:
            for _ in archive.contents():
                pass

    command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/{packed.name}" if server.stdout else ""
        steps: dict[str, Callable[[], object]] = {
            "copy": lambda: shutil.copyfile(packed, out),
            "pack": lambda: pack(store, zipped),
            "check": check,
            "unpack": lambda: unpack(packed, folder_out),
            "download": lambda: download(url, out),
            "pull, packed": lambda: pull(url, zipped),
            "pull, folder": lambda: pull(url, folder_out),
        }
        return {name: rate(step, clear, size, repeats) for name, step in steps.items()}
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        forms = {}
        forms["smooth"], full = sizes_by_form(folder, "smooth", options.rows, smooth)
        forms["independent"], _ = sizes_by_form(folder, "independent", min(options.rows, 10_000), independent)
        rates = transfer_rates(folder, full, options.repeats)
    print(f"{'tickets':>12} {'form':>5} {'choice B/image':>15} {'packed B/image':>15} {'ImageNet MB':>12}")
    for kind, rows in forms.items():
        for form, cells in rows.items():
            figures = cells["choice_bytes_image"], cells["packed_bytes_image"], cells["imagenet_mb"]
            print(f"{kind:>12} {form:>5} {figures[0]:>15.1f} {figures[1]:>15.1f} {figures[2]:>12.0f}")
    for step, mb in rates.items():
        print(f"{step:>12} {mb:>9.0f} MB/s {rates['copy'] / mb:>6.1f} x copy")
    if options.json:
        result = {"rows": options.rows, "forms": forms, "mb_per_second": rates}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
