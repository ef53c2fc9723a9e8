"""What a ticket file costs, from ten thousand to ImageNet's 1.28 million rows, with rankings from a fake selector.

    python benchmarks/bench_store.py --rows 10000 100000 1281167 --json store.json

Each size runs in a process of its own, so that peak memory is its own. 'write' is what select pays per image beside the
model (checks, zstd, fsync, record, digest); 'finish' reads everything back; 'read' is one shard, digest and permutation
checks included; page cache warm. Growth is peak resident memory above what the imports take.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from makers.tickets import DEIT, make_header

from dlth.tickets import DatasetInfo, ShardSpec, ShardTickets, TicketStore, TicketWriter, generator

PATCHES = 196
SHARD_ROWS = 1_000
COLUMNS = {
    "rows": "rows",
    "shards": "shards",
    "write_rows_s": "write rows/s",
    "finish_s": "finish s",
    "mib": "MiB",
    "bytes_row": "bytes/row",
    "open_ms": "open ms",
    "read_ms": "read ms/shard",
    "patches_ms": "patches ms/shard",
    "verify_s": "verify s",
    "index_s": "key index s",
    "find_us": "find µs",
    "write_mib": "write +MiB",
    "read_mib": "read +MiB",
    "verify_mib": "verify +MiB",
}


def fake_tickets(shard_index: int, rows: int) -> ShardTickets:
    """Random rankings (they do not compress, as real ones hardly do) under keys of ImageNet's form."""
    rng = generator("bench_store", shard_index)
    patches = np.argsort(rng.random((rows, PATCHES), dtype=np.float32), axis=1).astype(np.uint8)
    images = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
    keys = tuple(f"n{shard_index:08d}_{row}" for row in range(rows))
    return ShardTickets(keys, images, patches, rng.random(rows, dtype=np.float32), np.zeros(rows, dtype=bool))


def peak_mib() -> float:
    """Peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bench_write(path: Path, num_rows: int) -> dict[str, float]:
    """Write a whole file; making the fake rows is not counted."""
    base = peak_mib()
    sizes = [min(SHARD_ROWS, num_rows - start) for start in range(0, num_rows, SHARD_ROWS)]
    shards = [ShardSpec(f"fake-{index:06d}.tar", rows) for index, rows in enumerate(sizes)]
    spent = 0.0
    writer = TicketWriter(
        path, make_header(**DEIT, dataset=DatasetInfo("fake", "train", num_rows, "")), shards, key_width=16
    )
    for index, rows in enumerate(sizes):
        tickets = fake_tickets(index, rows)
        start = time.perf_counter()
        with writer.claim(index) as mine:
            if mine:
                writer.write(index, tickets)
        spent += time.perf_counter() - start
    written = peak_mib() - base
    finish = seconds(writer.finish)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "rows": num_rows,
        "shards": len(sizes),
        "write_rows_s": num_rows / spent,
        "finish_s": finish,
        "mib": size / 2**20,
        "bytes_row": size / num_rows,
        "write_mib": written,
    }


def bench_read(path: Path, num_rows: int) -> dict[str, float]:
    """Open, read by shard, index, find."""
    base = peak_mib()
    opens = [seconds(lambda: TicketStore(path)) for _ in range(5)]
    store = TicketStore(path)
    reads = [seconds(lambda index=index: store.read(index)) for index in range(len(store.shards))]
    fresh = TicketStore(path)
    patches = [seconds(lambda index=index: fresh.patches(index)) for index in range(len(store.shards))]
    grown = peak_mib() - base
    key = store.keys(len(store.shards) // 2)[0]
    index_s = seconds(lambda: store.find(key))
    finds = [seconds(lambda: store.find(key)) for _ in range(100)]
    return {
        "open_ms": 1e3 * statistics.median(opens),
        "read_ms": 1e3 * statistics.median(reads),
        "patches_ms": 1e3 * statistics.median(patches),
        "index_s": index_s,
        "find_us": 1e6 * statistics.median(finds),
        "read_mib": grown,
    }


def bench_verify(path: Path, num_rows: int) -> dict[str, float]:
    """The full check."""
    base = peak_mib()
    store = TicketStore(path)
    spent = seconds(lambda: _assert_sound(store))
    return {"verify_s": spent, "verify_mib": peak_mib() - base}


def _assert_sound(store: TicketStore) -> None:
    findings = store.verify()
    if findings:
        raise SystemExit(f"the benchmark's own file is damaged: {findings[0]}")


def bench(num_rows: int, folder: Path) -> dict[str, float]:
    """All figures of one size; each step in a fresh process."""
    path = folder / f"bench-{num_rows}.zarr"
    result: dict[str, float] = {}
    for step in (bench_write, bench_read, bench_verify):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result |= pool.apply(step, (path, num_rows))
    shutil.rmtree(path)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_281_167])
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = [bench(num_rows, Path(folder)) for num_rows in options.rows]
    for name, title in COLUMNS.items():
        cells = (f"{result[name]:>14,.0f}" if result[name] >= 100 else f"{result[name]:>14.2f}" for result in results)
        print(f"{title:>18}", *cells)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
