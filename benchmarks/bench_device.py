"""What dlth does with a GPU, each figure beside what the GPU can do: the second half of `make gpu`.

    python benchmarks/bench_device.py --device cuda --write

DeiT-S, -T and -B at 224 px, keep 0.9, 0.7 and 0.5, batch 256, bfloat16, eager and compiled; medians of rounds in which
candidates take turns, with the lowest and the highest round. Everything is made on the machine, and nothing is begun
after --minutes: first the device's limits, then all that is eager, then runs from JPEGs, then what must be compiled,
DeiT-S first, which takes some 20 to 40 seconds for each candidate the first time. inductor keeps what it compiled, so a
second call comes further. On a CPU the same runs in seconds with a model of two blocks, and its numbers say nothing.

`--authors FOLDER` names a copy of the repository of the paper's authors, and runs its code.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
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
from device.scope import FULL, TINY, Scope
from device.selectors import selector_rows
from device.steps import step_rows
from device.timing import NO_TIME, Deadline, Row, free, that_fits

from dlth.tickets.errors import DlthError
from dlth.training.distributed.process_group import pick_device

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


def measure(
    scope: Scope, device: torch.device, deadline: Deadline, folder: Path, theirs: ModuleType | None
) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows by table, and what went wrong; a group that fails is a row that says so, and the next one is measured."""
    limits, rows = measure_limits(scope, device, deadline)
    found: dict[str, list[Row]] = {LIMITS: rows, STEPS: [], SELECTORS: [], JPEGS: []}
    failures: list[str] = []
    bench = Bench(scope, device, deadline, limits, Files(folder), theirs)
    if not deadline.passed:
        make_files(scope, bench.files)
    for table, row, rows_of in groups(bench):
        if why := _left_out(row, deadline):
            found[table].append(row | {"batch": why})
            continue
        start = time.perf_counter()
        try:
            found[table] += that_fits(rows_of, scope.batch, row)
        except Exception as error:  # told, and the exit code says it: a GPU that is lent has more to give
            traceback.print_exc()
            failures.append(f"{table}, {', '.join(row.values())}: {type(error).__name__}")
            found[table].append(row | {"batch": f"failed: {type(error).__name__}"})
        print(f"{time.perf_counter() - start:6.1f} s  {table}, {', '.join(row.values())}", file=sys.stderr)
        free()
    return found, failures


def _left_out(row: Row, deadline: Deadline) -> str:
    """Why a group is not measured; empty if it is."""
    if deadline.passed:
        return NO_TIME
    needs_compiler = row.get("compute") == COMPILED and not any(map(shutil.which, ("cc", "gcc", "clang")))
    return "not measured (no C compiler, which inductor calls)" if needs_compiler else ""


def tables(found: dict[str, list[Row]], right: list[Row]) -> list[Table]:
    """The tables of the section, with what their columns mean; `right`: rows of tests/gpu."""
    return [
        Table("Right (`tests/gpu`)", "Largest difference from the same on the CPU, and what the test allows.", right),
        Table("What the device does at best", "Measured here; the limits of the tables below.", found[LIMITS]),
        Table(
            "Training step",
            "`dlth train`'s step with the recipe deit, no averages: images of the loader, bfloat16, AdamW. *online* has"
            " the selector in the loop. Of time ratios the median is told, lowest and highest round in brackets; the"
            " goal is the share of the operations and 3 points. A limit is images/s if nothing else cost time: counted"
            " operations at the rate of the bf16 product, counted bytes at that of the copy (*unfused*: inputs and"
            " outputs of every operation; *least*: what backward needs written and read once, and the optimizer).",
            found[STEPS],
        ),
        Table(
            "Selector",
            "Ranking of all patches, bfloat16, against the model's own forward, and the authors' selector at the same"
            " rate per stage (empty without `--authors`; theirs is not compiled).",
            found[SELECTORS],
        ),
        Table(
            "From JPEGs",
            "JPEGs of 500×375: the loader by itself, the step by itself, and `dlth train` as a whole; how long its loop"
            " waited for a batch, and for how much of the time no kernel ran.",
            found[JPEGS],
        ),
    ]


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu; auto takes a GPU where there is one")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which nothing is begun")
    parser.add_argument("--authors", type=Path, help="a copy of the repository of the paper's authors; runs its code")
    parser.add_argument("--tests", type=Path, help="what tests/gpu measured, as JSON; a table of its own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="put the section into docs/benchmarks.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to make shards, 2 GB; the system's temporary folder")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    options = parsed(words)
    deadline, device = Deadline.after(options.minutes), pick_device(options.device)
    on_gpu = device.type == "cuda"
    theirs = authors.load(options.authors) if options.authors is not None else None
    right = json.loads(options.tests.read_text()) if options.tests is not None else []
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found, failures = measure(FULL if on_gpu else TINY, device, deadline, Path(folder), theirs)
    about_machine, notes = facts(device), _notes(found, failures, options)
    text = section(about_machine, f"make gpu WRITE=1 MINUTES={options.minutes:g}", tables(found, right), notes)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": about_machine, "notes": notes, "tables": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.write and on_gpu:
        put_into(options.page, text)
    elif options.write:
        print(f"\nnot written into {options.page.name}: these are figures of a CPU", file=sys.stderr)
    return 1 if failures else 0


def _notes(found: dict[str, list[Row]], failures: list[str], options: argparse.Namespace) -> list[str]:
    """What a reader must know of what is missing."""
    missing = sum(NO_TIME in row.values() for rows in found.values() for row in rows)
    notes = [f"failed: {failure}" for failure in failures]
    if missing:
        notes.append(f"{missing} rows were {NO_TIME} within {options.minutes:g} minutes; `--minutes` gives more.")
    if options.authors is None:
        notes.append("The authors' code was not run: no `--authors`.")
    return notes


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DlthError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
