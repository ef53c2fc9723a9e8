"""`dlth label`: token labels, made by an annotator, or taken from maps that others published."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import integer, with_flags
from dlth.pipeline.cli.options import ConfigFile, DryRun, Json, PrintConfig, Split, only_printed
from dlth.pipeline.cli.selection import run_pass
from dlth.pipeline.selection.label_config import LabelConfig
from dlth.tickets.errors import shown
from dlth.training.distributed.ranks import ranks

if TYPE_CHECKING:
    from dlth.pipeline.selection.shard_pass import PassReport


@with_flags(LabelConfig)
def label(
    overrides: dict[str, Any],
    context: typer.Context,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Label the cells of every image with an annotator and write the token label file."""
    if context.invoked_subcommand is not None:
        return
    from dlth.pipeline.project.settings import label_settings

    chosen = label_settings(overrides, config)
    if only_printed(chosen, print_config):
        return
    settings = chosen.config()
    from dlth.pipeline.selection import label_stage  # torch and timm: not before the settings are sound

    plan = label_stage.plan(settings, note=console.note)
    say = partial(_say, out=settings.out)
    run_pass("label", plan, plan.facts() | chosen.facts, label_stage.label, say, dry_run=dry_run, json=json)


def import_(
    maps: Annotated[Path, typer.Argument(help="Folder of .pt maps, one an image, by its key or by its path's end.")],
    out: Annotated[Path, typer.Option(help="The token label file to write; nothing is overwritten.")],
    data: Annotated[
        str | None, typer.Option(help="Shards of the images, as `dlth label` takes them; dlth.toml's if absent.")
    ] = None,
    num_classes: Annotated[int, typer.Option(parser=integer, help="Classes of the annotator's head.")] = 1000,
    split: Split = None,
    annotator: Annotated[str, typer.Option(help="Name of the annotator, for the header.")] = "dm_nfnet_f6",
    img_size: Annotated[int, typer.Option(parser=integer, help="Side of the annotator's images in pixels.")] = 576,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Skip images without a map.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Take published maps ([2, 5, 18, 18] tensors in .pt files) as a token label file, without running code in them."""
    from dlth.pipeline.project.settings import import_settings

    shards, split, notes = import_settings(data, split)
    for text in notes:
        console.note(text)
    from dlth.pipeline.selection import label_import  # torch: not before the settings are sound

    source = label_import.Source(maps, shards, split, num_classes, annotator, img_size, allow_missing)
    plan = label_import.plan(source)
    if dry_run:
        console.result("dlth label import, dry run: nothing is written", plan.facts(), json)
        return
    with console.counting("import", len(plan.index.shards), "shards", quiet=json) as counter:
        store = plan.write(out, counter)
    facts = plan.facts() | {"file": str(out), "identity": store.identity, "skipped": store.num_skipped}
    console.result("dlth label import", facts, json)


def _say(report: "PassReport", rate: float, out: str) -> None:
    """What this process did, and, from the first one, what became of the file."""
    here = " here" if ranks().launched else ""
    console.note(
        f"{report.images:,} images read in {report.shards:,} shards{here} ({report.shards_before:,} were done before),"
        f" {len(report.skipped):,} skipped"
    )
    if not console.leads():
        return
    for image in report.skipped_elsewhere:
        console.note(f"skipped by another process or an earlier run: {shown(image, console.LONGEST)}")
    if report.complete:
        console.note(f"{shown(out)} is complete: {report.images_in_file:,} images; its identity is {report.identity}")
    else:
        console.note(
            f"{report.left_to_others:,} shards are in other processes' hands; the last of them finishes the file."
            " If one of them died, run the same command again."
        )
