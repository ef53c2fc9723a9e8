"""Memory and time of the ticket tools from ten thousand to ImageNet's 1.28 million rows: both must not grow together.

    python benchmarks/bench_ticket_tools.py --rows 10000 100000 1281167 --json tools.json

Every figure comes from a process of its own: growth is its peak resident memory above what it had after the imports,
so that 'open' (a file opened, its manifest parsed) says what of it every tool pays. 'repacked' compares with a file of
the same images in other shards and order. Rankings are random, so masks are as hard to encode as they can be; page
cache warm, times include reading, checking and writing. Tools that write a ticket file end with the writer's own check
of the whole (24 bytes a row).
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from makers.tickets import DEIT, make_header

from dlth.data.sharing.parquet import export_parquet
from dlth.tickets import DatasetInfo, ShardSpec, ShardTickets, TicketStore, generator
from dlth.tickets.derive.algebra import union
from dlth.tickets.derive.controls import control
from dlth.tickets.derive.draft import Draft
from dlth.tickets.derive.edit import subset_by_classes
from dlth.tickets.exchange.coco import export_coco
from dlth.tickets.exchange.imports import ImportOptions, import_draft
from dlth.tickets.exchange.npz import NpzTable, export_npz
from dlth.tickets.statistics.compare import compare
from dlth.tickets.statistics.stats import ticket_stats

PATCHES, SHARD_ROWS, CLASSES = 196, 1_000, 1_000
BLOCKS = 8
"""Different blocks of random rankings; shards take them in turn, since making them all anew takes minutes."""


def write(path: Path, num_rows: int, order: np.ndarray, shift: int) -> None:
    """A file of `num_rows` rows; `order` int64 [rows] is which image stands where, `shift` makes another selector's."""
    header = make_header(**DEIT, dataset=DatasetInfo("fake", "train", num_rows, ""))
    rng = generator("bench_ticket_tools", shift)
    blocks = [
        np.argsort(rng.random((SHARD_ROWS, PATCHES), dtype=np.float32), axis=1).astype(np.uint8) for _ in range(BLOCKS)
    ]
    gap = rng.random(SHARD_ROWS, dtype=np.float32)

    def rows(shard_index: int) -> ShardTickets:
        ids = order[shard_index * SHARD_ROWS : (shard_index + 1) * SHARD_ROWS]
        keys = tuple(f"n{image % CLASSES:08d}_{image}" for image in ids.tolist())
        images = np.repeat(ids.astype("<u8").view(np.uint8).reshape(-1, 8), 2, axis=1)
        patches = blocks[shard_index % BLOCKS][: len(ids)]
        return ShardTickets(keys, images, patches, gap[: len(ids)], np.zeros(len(ids), dtype=bool))

    counts = [len(order[start : start + SHARD_ROWS]) for start in range(0, num_rows, SHARD_ROWS)]
    specs = tuple(ShardSpec(f"fake-{index:06d}.tar", count) for index, count in enumerate(counts))
    Draft(header, specs, 24, rows).write(path)


def make_files(folder: Path, num_rows: int) -> None:
    """Two selectors' files packed alike, and one packed otherwise."""
    straight = np.arange(num_rows)
    write(folder / "a", num_rows, straight, 0)
    write(folder / "b", num_rows, straight, 1)
    write(folder / "c", num_rows, generator("packing").permutation(num_rows), 2)
    export_npz(TicketStore(folder / "a"), folder / "in.npz")


def opened(folder: Path, name: str) -> TicketStore:
    """A file as the command line opens it."""
    return TicketStore(folder / name, cache_shards=2)


def labels(store: TicketStore) -> Callable[[int], np.ndarray]:
    """The class in each key."""
    return lambda shard: np.array([int(key[1:9]) for key in store.keys(shard)])


TOOLS: dict[str, Callable[[Path], object]] = {
    "open": lambda at: opened(at, "a"),
    "stats": lambda at: ticket_stats(opened(at, "a")),
    "stats by class": lambda at: ticket_stats(store := opened(at, "a"), labels(store)),
    "diff": lambda at: compare(opened(at, "a"), opened(at, "b")),
    "diff repacked": lambda at: compare(opened(at, "a"), opened(at, "c")),
    "union": lambda at: union([opened(at, "a"), opened(at, "b")]).write(at / "union"),
    "control": lambda at: control(opened(at, "a"), "other-image").write(at / "control"),
    "subset": lambda at: subset_by_classes(store := opened(at, "a"), range(500), labels(store)).write(at / "subset"),
    "export npz": lambda at: export_npz(opened(at, "a"), at / "out.npz"),
    "export parquet": lambda at: export_parquet(opened(at, "a"), at / "out.parquet"),
    "export coco": lambda at: export_coco(opened(at, "a"), at / "out.json"),
    "import npz": lambda at: import_draft(NpzTable(at / "in.npz"), ImportOptions()).write(at / "import"),
}


def peak_mib() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # a spawned process inherits its parent's ru_maxrss
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measured(tool: str, folder: Path, answer: Connection) -> None:
    """Run one tool in this process and send seconds and growth."""
    base, start = peak_mib(), time.perf_counter()
    kept = TOOLS[tool](folder)
    answer.send((time.perf_counter() - start, peak_mib() - base))
    del kept


def run(tool: str, folder: Path) -> tuple[float, float]:
    """Seconds and growth in MiB of one tool, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(tool, folder, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    for name in ("union", "control", "subset", "import"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in folder.glob("out.*"):
        file.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the files")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS), help="what to measure")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if not given")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    results: dict[str, dict[int, tuple[float, float]]] = {tool: {} for tool in options.tools}
    for num_rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            make_files(Path(name), num_rows)
            for tool in options.tools:
                results[tool][num_rows] = run(tool, Path(name))
                print(f"{num_rows:,} {tool}: {results[tool][num_rows]}", file=sys.stderr, flush=True)
    heads = [f"{rows:,} rows: s | +MiB" for rows in options.rows]
    print("| tool | " + " | ".join(heads) + " |\n|---|" + "---|---|" * len(heads))
    for tool, by_rows in results.items():
        print(f"| {tool} | " + " | ".join(f"{spent:.1f} | {grown:.0f}" for spent, grown in by_rows.values()) + " |")
    if options.json:
        figures = [
            {"tool": tool, "rows": rows, "seconds": spent, "growth_mib": grown}
            for tool, by_rows in results.items()
            for rows, (spent, grown) in by_rows.items()
        ]
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
