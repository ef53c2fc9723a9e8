"""What dlth does with a GPU, each figure beside what the GPU can do: the second half of `make gpu`.

    python benchmarks/bench_device.py --device cuda --write

DeiT-S, -T and -B at 224 px, keep 0.9, 0.7 and 0.5, batch 256, bfloat16, eager and compiled; medians of rounds in which
candidates take turns, with the lowest and the highest round. Everything is made on the machine, and nothing is begun
after --minutes: first the device's limits, then all that is eager, then runs from JPEGs, then what must be compiled,
DeiT-S first, which takes some 20 to 40 seconds for each candidate the first time. inductor keeps what it compiled, so a
second call comes further. What is measured is printed, and written, as it comes: a kill costs what is under way. On a
CPU the same runs in seconds with a model of two blocks, and its numbers say nothing.

`--authors FOLDER` names a copy of the repository of the paper's authors, and runs its code.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from device import authors
from device.bench import COMPILED, Bench, about
from device.data import RECIPES, Files, make_files
from device.from_jpegs import jpeg_rows
from device.limits import measure_limits
from device.machine import facts
from device.page import Table, put_into, section
from device.right import Right
from device.scope import FULL, TINY, Scope
from device.selectors import selector_rows
from device.steps import step_rows
from device.timing import NO_TIME, Deadline, Row, free, that_fits
from makers.compilers import inductor_lacks
from rounds import markdown

from dlth.tickets.errors import DlthError, InputError, shown
from dlth.training.distributed.process_group import pick_device
from dlth.training.run_files import write_errors, write_text

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
LIMITS, SELECTORS, STEPS, JPEGS = "limits", "selectors", "steps", "from JPEGs"
Group = tuple[str, Row, Callable[[int], list[Row]]]
"""A table, the first columns of the rows to come, and what measures them at a batch."""


def groups(bench: Bench) -> list[Group]:
    """Everything but the limits, the most important first."""
    found: list[Group] = []
    for compiled in (False, True) if bench.scope.compiler else (False,):
        for name in bench.scope.models:
            row = about(name, compiled)
            found.append((STEPS, row, partial(step_rows, bench, name, compiled)))
            found.append((SELECTORS, row, partial(selector_rows, bench, name, compiled)))
        if not compiled:
            found += [(JPEGS, {"recipe": recipe}, partial(jpeg_rows, bench, recipe)) for recipe in RECIPES]
    return found


@dataclass
class Found:
    """What was measured so far: rows by table, what went wrong, and how many groups are still to come."""

    rows: dict[str, list[Row]]
    failures: list[str]
    left: int

    def add(self, table: str, rows: list[Row]) -> None:
        """Rows of a group, shown as they come."""
        self.rows[table] += rows
        print(markdown(rows), file=sys.stderr, flush=True)


def measure(
    scope: Scope, device: torch.device, deadline: Deadline, folder: Path, theirs: ModuleType | None
) -> Iterator[Found]:
    """The same, longer after each group; a group that fails is a row that says so, and the next one is measured."""
    limits, rows = measure_limits(scope, device, deadline)
    bench = Bench(scope, device, deadline, limits, Files(folder), theirs)
    found = Found({LIMITS: [], STEPS: [], SELECTORS: [], JPEGS: []}, [], len(groups(bench)))
    found.add(LIMITS, rows)
    yield found
    if not deadline.passed:
        make_files(scope, bench.files)
    for table, row, rows_of in groups(bench):
        start, told = time.perf_counter(), f"{table}, {', '.join(row.values())}"
        if why := _left_out(row, deadline):
            rows = [row | {"batch": why}]
        else:
            try:
                rows = that_fits(rows_of, scope.batch, row)
            except Exception as error:  # told, and the exit code says it: other groups may do better
                traceback.print_exc()
                found.failures.append(f"{told}: {type(error).__name__}")
                rows = [row | {"batch": f"failed: {type(error).__name__}"}]
        print(f"\n{time.perf_counter() - start:6.1f} s  {told}", file=sys.stderr)
        found.add(table, rows)
        found.left -= 1
        yield found
        free()


def _left_out(row: Row, deadline: Deadline) -> str:
    """Why a group is not measured; empty if it is."""
    if deadline.passed:
        return NO_TIME
    lack = inductor_lacks("cuda") if row.get("compute") == COMPILED else ""
    return f"not measured (needs {lack})" if lack else ""


def tables(found: Mapping[str, list[Row]], scope: Scope) -> list[Table]:
    """The tables of what was measured here, with what their columns mean."""
    return [
        Table("What the device does at best", "Measured here; the limits of the tables below.", found[LIMITS]),
        Table(
            "Training step",
            "`dlth train`'s step with the recipe deit, no averages: images of the loader, bfloat16, AdamW. *online* has"
            " the selector in the loop, which is not compiled; beside compiled steps patch dropout and online have the"
            " middle keep alone. Of time ratios the median is told, lowest and highest round in brackets; the"
            " goal is the share of the operations and 3 points. A limit is images/s if nothing else cost time: counted"
            " operations at the rate of the bf16 product, counted bytes at that of the copy (*unfused*: inputs and"
            " outputs of every operation; *least*: what backward needs written and read once, and the optimizer), of"
            " the step that is not compiled. What stays in the cache is faster than by bytes.",
            found[STEPS],
        ),
        Table(
            "Selector",
            "Ranking of all patches, bfloat16, against the model's own forward, and against the authors' selector,"
            " which keeps as many patches at each stage (only with `--authors`). Theirs is never compiled, so the goal"
            " is judged where ours is not.",
            found[SELECTORS],
        ),
        Table(
            "From JPEGs",
            f"JPEGs of {'×'.join(map(str, scope.jpeg))}, not compiled; *deit* without averages and repeated"
            " augmentation. The loader by itself, the step by itself, and `dlth train` as a whole; how long its loop"
            " waited for a batch, and, of as many steps after those, for how much of the time no kernel ran. Limits"
            " are of the step on whole images; *sending* is the batch's bytes at the rate of a copy from the host.",
            found[JPEGS],
        ),
    ]


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu; auto takes a GPU where there is one")
    parser.add_argument("--minutes", type=_minutes, default=9.0, help="after which nothing is begun")
    parser.add_argument("--since", type=float, help="from when they count, in seconds of the Unix epoch; from now")
    parser.add_argument("--authors", type=Path, help="a copy of the repository of the paper's authors; runs its code")
    parser.add_argument("--tests", type=Path, help="what tests/gpu found, as its --gpu-table wrote it")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="look at the arguments alone, before any GPU time is spent"
    )
    parser.add_argument("--write", action="store_true", help="put the section into docs/benchmarks.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to make shards, some 2 GB; the system's temporary folder")
    return parser.parse_args(words)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not (math.isfinite(minutes) and minutes >= 0):
        raise argparse.ArgumentTypeError(f"minutes are a number from 0 on, got {shown(text)}")
    return minutes


def main(words: list[str] | None = None) -> int:
    options = parsed(words)
    deadline, device = Deadline.after(options.minutes, options.since), pick_device(options.device)
    scope = FULL if device.type == "cuda" else TINY
    theirs = authors.load(options.authors) if options.authors is not None else None
    right = Right.read(options.tests) if options.tests is not None else Right([], [])
    if options.folder is not None and not options.folder.is_dir():
        raise InputError(f"--folder {shown(options.folder)} is no folder: shards are made in one that is there")
    about = facts(device)
    if options.check:
        return 0
    if options.json is not None:
        _write_json(options.json, {"machine": about, "notes": ["nothing was measured yet"], "tables": {}})
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for found in measure(scope, device, deadline, Path(folder), theirs):
            notes = _notes(found, options)
            shown_tables = [*right.tables(), *tables(found.rows, scope)]
            text = section(about, _command(options), right.verdict, shown_tables, notes)
            if options.json is not None:
                content = {"machine": about, "notes": notes, "right": asdict(right), "tables": found.rows}
                _write_json(options.json, content)
            if options.write and scope is FULL:
                put_into(options.page, text)
    print(text)
    if options.write and scope is not FULL:
        print(f"\nnot written into {options.page.name}: these are figures of a CPU", file=sys.stderr)
    return 1 if found.failures else 0


def _command(options: argparse.Namespace) -> str:
    """What gives the section again."""
    return f"make gpu WRITE=1 MINUTES={options.minutes:g}{' AUTHORS=…' if options.authors is not None else ''}"


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    """Raises DlthError where the file cannot be written."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def _notes(found: Found, options: argparse.Namespace) -> list[str]:
    """What a reader must know of what is missing."""
    missing = sum(NO_TIME in row.values() for rows in found.rows.values() for row in rows)
    notes = [f"failed: {failure}" for failure in found.failures]
    if found.left:
        notes.append(f"Ended early: {found.left} groups of rows are not here.")
    if missing:
        told = f"{missing} rows, of which some stand for a group, say {NO_TIME}"
        notes.append(f"{told}: it ended after {options.minutes:g} minutes; `MINUTES` gives more.")
    if options.authors is None:
        notes.append("The authors' code was not run: no `--authors`.")
    return notes


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DlthError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
