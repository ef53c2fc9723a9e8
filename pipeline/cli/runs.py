"""`dlth runs`: how the runs of a study, or of any folder of runs, stand."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.options import Json
from dlth.tickets.errors import MissingFileError, shown
from dlth.tickets.store.disk import user_path

if TYPE_CHECKING:
    from dlth.pipeline.evidence.run_states import RunState

COLUMNS = ("state", "arm", "seed", "epoch", "top-1 %", "step", "age", "patches", "run")
"""Those that a narrow terminal can do without come last."""
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def runs(
    folder: Annotated[str, typer.Argument(help="A study's folder, one that holds runs, or a run's own.")],
    json: Json = False,
) -> None:
    """How runs stand: arm, epoch, accuracy so far, whether somebody works on them, and when they last wrote."""
    from dlth.pipeline.evidence.run_states import run_states

    if not (states := run_states(user_path(folder))):
        raise MissingFileError(f"{shown(folder)} holds no run: name a study's folder, one that holds runs, or a run's")
    if json:
        console.as_json({"runs": [as_plain(state) for state in states]})
        return
    console.write(runs_table(states, console.room()))
    for state in states:
        if state.problem:
            console.note(f"{shown(state.name)}: {state.problem}")


def runs_table(states: Sequence["RunState"], room: int | None) -> str:
    """A line for each run: as many columns as have room, or all where arm and seed do not tell runs apart."""
    alike = len({(state.arm, state.seed) for state in states}) < len(states)
    return console.aligned(COLUMNS, run_rows(states), None if alike else room)


def run_rows(states: Sequence["RunState"]) -> list[tuple[object, ...]]:
    """A table's row for each run; what is not known is empty."""
    return [
        (
            state.state,
            str(state.arm),
            _told(state.seed),
            _of(state.epoch, state.epochs),
            "" if state.top1 is None else f"{state.top1:.2f}",
            _of(state.step, state.steps),
            "" if state.age is None else _ago(state.age),
            _told(state.k),
            state.name,
        )
        for state in states
    ]


def as_plain(state: "RunState") -> dict[str, Any]:
    """A run's state as JSON holds it."""
    return asdict(state) | {"folder": str(state.folder), "age": state.age}


def _told(number: int | None) -> str:
    return "" if number is None else str(number)


def _ago(seconds: float) -> str:
    """In the largest unit of which two have passed: 95 s, 12 min, 30 h, 4 d."""
    unit, length = next((name, size) for name, size in _UNITS if seconds >= 2 * size or size == 1)
    return f"{seconds // length:.0f} {unit}"


def _of(count: int, whole: int | None) -> str:
    return f"{count}/{whole}" if whole else str(count) if count else ""
