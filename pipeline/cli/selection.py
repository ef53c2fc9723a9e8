"""`dlth select`: stage 1, from flags to a plan, and from a report to what a person should know."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.cli.options import ConfigFile, DryRun, Json, PrintConfig, only_printed
from dlth.pipeline.selection.config import SelectConfig
from dlth.tickets.errors import shown
from dlth.training.distributed.ranks import ranks

if TYPE_CHECKING:
    from dlth.pipeline.selection.stage import SelectReport


@with_flags(SelectConfig)
def select(
    overrides: dict[str, Any],
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Stage 1: rank the patches of every image with a trained selector and write the ticket file."""
    from dlth.pipeline.project.settings import select_settings

    chosen = select_settings(overrides, config)
    if only_printed(chosen, print_config):
        return
    settings = chosen.config()
    from dlth.pipeline.selection import stage  # torch and timm: not before the settings are sound

    plan = stage.plan(settings, note=console.note)
    say = partial(_say, out=settings.out)
    run_pass("select", plan, plan.facts() | chosen.facts, stage.select, say, dry_run=dry_run, json=json)


def run_pass(
    name: str,
    plan: Any,
    facts: Mapping[str, object],
    work: Callable[..., Any],
    say: Callable[[Any, float], None],
    *,
    dry_run: bool,
    json: bool,
) -> None:
    """Show what command `name` will do to all images, do it, and `say` what came of it, at which rate (images/s)."""
    if dry_run:
        if console.leads():
            console.result(f"dlth {name}, dry run: nothing is written", facts, json)
        return
    quiet = json or not console.leads()
    if not quiet:
        console.result(f"dlth {name}", facts)
    with console.counting(name, plan.index.num_samples, quiet=quiet) as counter:
        wait = console.leads() and ranks().launched  # under torchrun the first rank reports for all
        report = work(plan, counter.advance, counter.skip, console.note, wait)
    if json and console.leads():
        console.as_json(report.__dict__ | {"rate": counter.rate})
    else:
        say(report, counter.rate)


def _say(report: "SelectReport", rate: float, out: str) -> None:
    """What this process did, and, from the first one, what became of the ticket file, whoever worked on it."""
    here = " here" if ranks().launched else ""
    who = "" if console.leads() else f"rank {ranks().rank}: "
    console.note(
        f"{who}{report.images:,} images read in {report.shards:,} shards{here} ({report.shards_before:,} were done"
        f" before), {len(report.skipped):,} skipped, {rate:.1f} images/s"
    )
    if report.tied and report.tied == report.images:
        console.note(
            "the scores of every image are equal where its ticket is cut: the patches' places alone decided, as with"
            " weights that are constant. Such tickets say nothing of the images."
        )
    if not console.leads():
        return
    for image in report.skipped_elsewhere:
        console.note(f"skipped by another process or an earlier run: {shown(image, console.LONGEST)}")
    skipped = len(report.skipped) + len(report.skipped_elsewhere)
    if report.complete:
        console.note(
            f"{shown(out)} is complete: {report.images_in_file:,} images, {skipped:,} skipped; its identity is"
            f" {report.identity}"
        )
    else:
        console.note(
            f"{report.left_to_others:,} shards are in other processes' hands; the last of them finishes the file and"
            " reports. If one of them died, run the same command again."
        )
