"""What `select`, `train` and `evaluate` have in common on the command line: the file of settings and how it is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline import console

if TYPE_CHECKING:
    from dlth.pipeline.settled import Settled

ConfigFile = Annotated[
    Path | None,
    typer.Option(help="TOML file of settings; flags win over it. $DLTH_CONFIG or ./dlth.toml if not given."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print every setting and where its value came from, and stop.")
]


def tell(chosen: Settled[Any], print_config: bool) -> bool:
    """Say what was worked out; with `print_config` print the settings as TOML instead of using them, and give True."""
    for note in chosen.notes:
        console.lead_note(note)
    if print_config and console.leads():
        typer.echo(chosen.layers.text(), nl=False)
        if chosen.problem is not None:
            console.note(f"not enough for a run as it stands: {chosen.problem}")
    return print_config
