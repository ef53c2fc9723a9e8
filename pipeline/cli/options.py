"""The options and arguments that several commands have, each written once, and what they share in acting on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.exit_codes import EXIT_DAMAGE
from dlth.pipeline.cli.flags import integer
from dlth.tickets.errors import DlthError

if TYPE_CHECKING:
    from dlth.pipeline.project.settings import CommandSettings

ConfigFile = Annotated[
    Path | None,
    typer.Option(help="TOML file of settings; flags win over it. $DLTH_CONFIG or ./dlth.toml if not given."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print every setting and where its value came from, and stop.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, and write nothing.")]

File = Annotated[Path, typer.Argument(help="The ticket file (a folder, tickets.zarr).")]
Files = Annotated[list[Path], typer.Argument(help="Ticket files, two or more.")]
Out = Annotated[Path, typer.Option(help="The ticket file to write; nothing is overwritten.")]
Shards = Annotated[str, typer.Option(help="Shards of the images, as `dlth select` takes them.")]
Labelled = Annotated[str | None, typer.Option(help="Shards of the images, for figures by class.")]
Split = Annotated[str | None, typer.Option(help="Split to take from an _info.json.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="A class of the shards, by name or number; needs --data, may be given several times."),
]
Keep = Annotated[
    str | None, typer.Option(help="Share of all patches that a ticket keeps; the file's own if not given.")
]
Tokens = Annotated[int | None, typer.Option(parser=integer, help="The same as a number of patches.")]


def only_printed(chosen: "CommandSettings[Any]", print_config: bool) -> bool:
    """Say what was worked out; with `print_config` print the settings as TOML instead of using them, and give True."""
    for note in chosen.notes:
        console.lead_note(note)
    if print_config and console.leads():
        typer.echo(chosen.layers.text(), nl=False)
        if chosen.problem is not None:
            console.note(f"not enough for a run as it stands: {chosen.problem}")
    return print_config


def checked(damage: Sequence[DlthError], told: Mapping[str, object], json: bool, notes: Sequence[str] = ()) -> None:
    """What a check found, with what else is `told` where the result is JSON; ends the command where there is damage."""
    if json:
        console.as_json({**told, "damage": [str(problem) for problem in damage]})
    else:
        for problem in damage:
            console.note(f"damaged[{problem.code}]: {problem}")
        for text in notes:
            console.note(f"note: {text}")
    if damage:
        raise typer.Exit(EXIT_DAMAGE)
