"""`dlth train`, `dlth train-selector`, `dlth evaluate`: flags to a configuration, a run to lines, bars and a table."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.cli.options import ConfigFile, DryRun, Json, PrintConfig, only_printed
from dlth.pipeline.cli.sharing import fetched
from dlth.tickets.errors import shown
from dlth.training.reporter import Reporter
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.recipes import SELECTORS_UNLESS_SAID, UNLESS_SAID
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

if TYPE_CHECKING:
    from dlth.pipeline.project.settings import CommandSettings


class ConsoleReporter(Reporter):
    """Draws a run: the plan, a bar (or plain lines) over the epoch's steps, a line per epoch."""

    def __init__(
        self, quiet: bool = False, facts: Mapping[str, Any] | None = None, command: str = "dlth train"
    ) -> None:
        self.command, self.quiet, self.facts = command, quiet, facts or {}
        self._stack = ExitStack()
        self._counter: console.Counter | None = None

    def started(self, facts: Mapping[str, Any]) -> None:
        """Print the plan."""
        if not self.quiet:
            console.result(self.command, {**facts, **self.facts})

    def note(self, text: str) -> None:
        """Pass on what a person should know."""
        console.note(text)

    def stepped(self, record: Mapping[str, Any]) -> None:
        """Move the bar of the epoch."""
        if self._counter is None:
            label = f"epoch {record['epoch'] + 1}"
            counting = console.counting(label, record["num_batches"], "steps", quiet=self.quiet)
            self._counter = self._stack.enter_context(counting)
            self._counter.skip(record["batch"])  # the first step is over before there is a clock to its rate
        else:
            self._counter.advance(1)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Close the bar and print the epoch's line."""
        self.close()
        if self.quiet:
            return
        arms = [arm for arm in ("dense", "dropping", "ticket", "random") if f"eval_{arm}_top1" in record]
        top1 = [f"{arm} {record[f'eval_{arm}_top1']:.2f} %" for arm in arms]
        accuracy = " | top-1 on tokens: " + ", ".join(top1) if top1 else ""
        loss = "no number" if record["train_loss"] is None else f"{record['train_loss']:.4f}"
        console.note(
            f"epoch {record['epoch'] + 1} | loss {loss}{accuracy} | lr {record['lr']:.2e}"
            f" | {record['images_per_second']:.0f} images/s"
        )

    def close(self) -> None:
        """Take the bar away."""
        self._stack.close()
        self._stack, self._counter = ExitStack(), None


def recipe_help(kind: type[TrainConfig], unless_said: str, shown_by: str = "--print-config") -> str:
    """The help of `--recipe`, of a command that trains."""
    return (
        f"Start from a recipe: {', '.join(kind.recipes)}, none; what it sets takes the place of defaults below,"
        f" {shown_by} shows it. (Default: {unless_said}.)"
    )


@with_flags(TrainConfig)
def train(
    overrides: dict[str, Any],
    recipe: Annotated[str | None, typer.Option(help=recipe_help(TrainConfig, UNLESS_SAID))] = None,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Stage 2: train a student on tickets, on as many random patches, or on all patches."""
    from dlth.pipeline.project.settings import train_settings

    chosen = train_settings(overrides | ({"recipe": recipe} if recipe is not None else {}), config)
    if not only_printed(chosen, print_config):
        _train("dlth train", chosen, dry_run, json)


@with_flags(SelectorTrainConfig)
def train_selector(
    overrides: dict[str, Any],
    recipe: Annotated[str | None, typer.Option(help=recipe_help(SelectorTrainConfig, SELECTORS_UNLESS_SAID))] = None,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Before stage 1: fine-tune a trained ViT with patch dropping switched on (EViT), to select with it.

    Recipe evit stands in for the defaults below: 30 epochs, lr-base 2e-5, no warm-up, … (--print-config shows all).
    """
    from dlth.pipeline.project.settings import train_selector_settings

    chosen = train_selector_settings(overrides | ({"recipe": recipe} if recipe is not None else {}), config)
    if not only_printed(chosen, print_config):
        _train("dlth train-selector", chosen, dry_run, json)


def _train(command: str, chosen: "CommandSettings[Any]", dry_run: bool, json: bool) -> None:
    """Train as `chosen`, or say what would be done; ends with the run's exit code."""
    settings = chosen.config()
    from dlth.training.runs.loop import planned
    from dlth.training.runs.loop import train as run
    from dlth.training.runs.pruned import later_start

    if console.leads():
        fetched(settings.tickets, settings.val_tickets)
    reporter = ConsoleReporter(json, chosen.facts, command)
    if text := later_start(settings):
        console.lead_note(text)
    if dry_run:
        facts = planned(settings, reporter=reporter) | chosen.facts
        if console.leads():
            console.result(f"{command}, dry run: nothing is trained", facts, json)
        return
    try:
        result = run(settings, reporter=reporter)
    finally:
        reporter.close()
    if console.leads():
        if json:
            console.as_json(result.to_json())
        else:
            show_result(result.to_json(), settings.out)
    raise typer.Exit(result.exit_code)


@with_flags(EvalConfig)
def evaluate(
    overrides: dict[str, Any], config: ConfigFile = None, print_config: PrintConfig = False, json: Json = False
) -> None:
    """Measure any checkpoint on all patches, the selector's patches and random ones, side by side."""
    from dlth.pipeline.project.settings import evaluate_settings

    chosen = evaluate_settings(overrides, config)
    if only_printed(chosen, print_config):
        return
    settings = chosen.config()
    from dlth.training.evaluation.evaluate import evaluate as run

    for name, value in chosen.facts.items():
        console.lead_note(f"{name}: {shown(value)}")
    table = run(settings, console.note).table()
    if not console.leads():
        return
    if json:
        console.as_json(table)
        return
    show_evaluation({Path(settings.checkpoint).name: table})
    if settings.out is not None:
        console.note(f"per-image results are in {shown(settings.out)}")


def show_result(result: Mapping[str, Any], out: str) -> None:
    """Print what came out of a run: accuracy by kind of tokens, speed, where it lies."""
    if result["status"] == "stopped":
        console.note(f"stopped on request at step {result['steps']}: --resume auto goes on from there")
        return
    show_evaluation(result["evaluation"])
    speed = result["throughput"]
    mode = f", mode {result['mode']}" if result["mode"] else ""
    console.note(
        f"arm {result['arm']}{mode}: {result['k']} of {result['num_patches']} patches, {result['epochs']} epochs,"
        f" {speed['images_per_second']:.0f} images/s, {speed['tokens_per_second']:.0f} tokens/s"
    )
    if result["tickets_are"]:
        console.note(f"trained on tickets of: {result['tickets_are']}")
    if result["whole_images"]:
        console.note(f"{result['whole_images']:,} times an image was trained on all patches, as there was no ticket")
    console.note(f"weights, log and result are in {shown(out)}")


def show_evaluation(evaluation: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print a table of accuracies, a row for each set of weights and kind of tokens."""
    rows = [
        (
            weights,
            _tokens(kind, line),
            int(line["tokens"]),
            *(round(line[name], 2) for name in ("top1", "top5")),
            round(line["loss"], 4),
        )
        for weights, table in evaluation.items()
        for kind, line in table.items()
    ]
    if rows:
        columns = ("weights", "evaluated on", "patches", "top-1 %", "top-5 %", "loss")
        whose = {
            line["tickets_are"] for table in evaluation.values() for line in table.values() if "tickets_are" in line
        }
        console.table("; ticket: ".join(["validation", *sorted(whose)]), columns, rows)


def _tokens(kind: str, line: Mapping[str, Any]) -> str:
    """The kind of tokens, and how many images of the row had none of it and were shown otherwise."""
    others = [f", {line[way]} of {line['images']} {way}" for way in ("whole", "random") if way in line]
    return kind + "".join(others)
