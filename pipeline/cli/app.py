"""The command line: every command by its name; each parses, calls one library function, and shows what came back.

Everything heavy is imported inside the commands, so that `dlth --help` and `dlth tickets info` answer at once.
Exit codes: 0 done, 1 damage found by a check, 2 bad input or a machine that refuses, 70 a mistake of dlth's, 75 stopped
on request and resumable, 130 interrupted, 141 nobody reads the result; `error_handler` keeps them.
"""

from collections.abc import Iterable
from importlib.metadata import version
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.main import get_command

from dlth.pipeline.cli import (
    agreeing,
    comparing,
    console,
    exchange,
    labelling,
    masks,
    pruning,
    reporting,
    reproducing,
    runs,
    selection,
    shards,
    sharing,
    show,
    studies,
    ticket_info,
    ticket_tools,
    training,
)

COMMANDS = (
    (selection, "select"),
    (shards, "pack index"),
    (studies, "demo"),
    (comparing, "compare"),
    (pruning, "prune"),
    (training, "train train_selector evaluate"),
    (reporting, "report"),
    (runs, "runs"),
)
TICKETS = (
    (ticket_info, "info verify"),
    (agreeing, "agree"),
    (ticket_tools, "stats diff merge subset union intersect inverse control"),
    (sharing, "shrink pack unpack push pull sign"),
    (show, "show"),
    (exchange, "export import_ match remap"),
)
MASKS = ((masks, "info verify"),)
"""Module -> its commands, those of `dlth tickets` and `dlth masks` below, in the order of the help pages."""


def _group(commands: Iterable[tuple[ModuleType, str]], **options: Any) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, **options)
    for module, names in commands:
        for name in names.split():
            group.command(name.rstrip("_").replace("_", "-"))(getattr(module, name))
    return group


app = _group(COMMANDS, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(_group(TICKETS), name="tickets", help="Look at ticket files and check them.")
app.add_typer(_group(MASKS), name="masks", help="Look at masks of weights and check them.")
_labels = typer.Typer(invoke_without_command=True)
_labels.callback()(labelling.label)
_labels.command("import")(labelling.import_)
app.add_typer(_labels, name="label")
_rows = _group(((reproducing, "list_ run check"),), cls=reproducing.RowsOrCommand)
app.add_typer(_rows, name="reproduce", help="The paper's experiments, row by row.")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dlth {version('dlth')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Winning tickets for vision transformers: select each image's best patches once, train on them often."""
    console.listen()


command_line = get_command(app)
"""What the words of a command line are held against; building it is most of the time of a command that is refused."""
