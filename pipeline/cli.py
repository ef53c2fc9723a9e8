"""The command line: it parses, calls one library function, and shows what came back.

Everything heavy is imported inside the commands, so that `dlth --help` and `dlth tickets info` answer at once.
Exit codes: 0 done, 1 damage found by a check, 2 bad input or a machine that refuses, 70 a mistake of dlth's, 75 stopped
on request and resumable, 130 interrupted, 141 nobody reads the result; `last_line` keeps them.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline import console
from dlth.pipeline.cli_settings import ConfigFile, PrintConfig, tell
from dlth.pipeline.demo_config import DemoConfig
from dlth.pipeline.flags import integer, with_flags
from dlth.pipeline.last_line import main
from dlth.pipeline.select_config import SelectConfig
from dlth.tickets.errors import shown
from dlth.training.ranks import ranks

if TYPE_CHECKING:
    from dlth.pipeline.select_stage import SelectReport

EXIT_DAMAGE = 1

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print the plan and its cost, write no tickets.")
]


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


@app.command()
@with_flags(SelectConfig)
def select(
    overrides: dict[str, Any],
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Stage 1: rank the patches of every image with a trained selector and write the ticket file."""
    from dlth.pipeline.settled import select_settings

    chosen = select_settings(overrides, config)
    if tell(chosen, print_config):
        return
    settings = chosen.config()
    from dlth.pipeline import select_stage  # torch and timm: not before the settings are sound

    plan = select_stage.plan(settings, say=console.note)
    facts = plan.facts() | chosen.facts
    if dry_run:
        console.as_json(facts) if json else console.facts("dlth select, dry run: nothing is written", facts)
        return
    quiet = json or not console.leads()
    if not quiet:
        console.facts("dlth select", facts)
    with console.counting("select", plan.index.num_samples, quiet=quiet) as counter:
        wait = console.leads() and ranks().launched  # under torchrun the first rank reports for all
        report = select_stage.select(plan, counter.advance, counter.skip, console.note, wait)
    if json and console.leads():
        console.as_json(report.__dict__ | {"rate": counter.rate})
        return
    here = " here" if ranks().launched else ""
    who = "" if console.leads() else f"rank {ranks().rank}: "
    console.note(
        f"{who}{report.images:,} images read in {report.shards:,} shards{here} ({report.shards_before:,} were done"
        f" before), {len(report.skipped):,} skipped, {counter.rate:.1f} images/s"
    )
    if report.tied and report.tied == report.images:
        console.note(
            "the scores of every image are equal where its ticket is cut: the patches' places alone decided, as with"
            " weights that are constant. Such tickets say nothing of the images."
        )
    if console.leads():
        _say_of_file(report, settings.out)


def _say_of_file(report: SelectReport, out: str) -> None:
    """What became of the ticket file, whoever worked on it."""
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


@app.command()
def pack(
    source: Annotated[
        list[str],
        typer.Argument(
            help="A folder of class folders, ImageNet's archives (a tar, or a folder of them), or HF-style tars."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the shards, _info.json and classes.json.")],
    split: Annotated[str, typer.Option(help="Name of the split: train-000000.tar …")] = "train",
    shard_size: Annotated[int, typer.Option(parser=integer, help="Images per shard, at most.")] = 1000,
    seed: Annotated[int, typer.Option(parser=integer, help="Seed of the order.")] = 0,
    workers: Annotated[
        int | None, typer.Option(parser=integer, help="Shards written side by side; one a core, at most 8.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Labels of ImageNet's validation images: the development kit, packed or not; its ground-truth file"
            " with meta.mat beside it; a text of one synset a line; or LOC_val_solution.csv."
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Write the split anew instead of going on.")] = False,
    json: Json = False,
) -> None:
    """Pack images into WebDataset shards: bytes kept exactly, order shuffled by a seed, resumable."""
    from dlth.data.pack import pack as pack_images
    from dlth.pipeline.project_record import obstacles, record_shards

    for text in obstacles(Path(out), split):
        console.note(text)
    with console.counting(f"pack {split}", 0, "images", quiet=json) as counter:
        report = pack_images(
            source[0] if len(source) == 1 else source,
            out,
            split=split,
            samples_per_shard=shard_size,
            seed=seed,
            workers=workers,
            labels=labels,
            progress=counter,
            resume=not restart,
        )
    facts = {
        "folder": str(report.out),
        "images": report.num_samples,
        "classes": len(report.classes),
        "shards": len(report.shards),
        "shards of an earlier run": report.kept,
        "bytes": report.num_bytes,
        "files that are no images": len(report.ignored),
        "keys that differ from the base name": len(report.renamed),
    }
    recorded = record_shards(report.out, split, [shard.name for shard in report.shards])
    if json:
        console.as_json(facts | {"ignored": report.ignored, "renamed": report.renamed, "settings": recorded})
        return
    console.facts(f"dlth pack, split {split}", facts)
    for name in report.ignored[:10]:
        console.note(f"no image: {shown(name)}")
    for name, key in report.renamed[:10]:
        console.note(f"renamed, as a dot would end the key: {shown(name)} -> {shown(key)}")
    for text in recorded:
        console.note(text)


@app.command()
def index(
    data: Annotated[
        str, typer.Argument(help="Shards: brace range (quoted), folder, glob, _info.json; local or remote.")
    ],
    split: Annotated[str | None, typer.Option(help="Split to take from an _info.json.")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read the shards anew even if the index is fresh.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every byte instead, and compare with declared counts and digests.")
    ] = False,
    json: Json = False,
) -> None:
    """List what the shards hold, once: keys, labels, offsets and sizes, kept beside them or in the cache."""
    from dlth.data.index import check_shards, open_index

    if check:
        with console.counting("check", 0, "shards", quiet=json) as counter:
            damage = check_shards(data, split=split, progress=counter)
        if json:
            console.as_json({"ok": not damage, "damage": [str(problem) for problem in damage]})
        for problem in [] if json else damage:
            console.note(f"damaged[{problem.code}]: {problem}")
        if damage:
            raise typer.Exit(EXIT_DAMAGE)
        if not json:
            console.note(f"{shown(data)}: every shard is what was declared")
        return
    with console.counting("index", 0, "shards", quiet=json) as counter:
        found = open_index(data, split=split, rebuild=rebuild, progress=counter)
    facts = {
        "shards": len(found.shards),
        "images": found.num_samples,
        "classes": found.num_classes,
        "fingerprint": found.fingerprint,
    } | {name: digest for name, digest in asdict(found.identity).items() if name != "keys"}
    console.as_json(facts) if json else console.facts(f"dlth index {shown(data)}", facts)


@app.command()
@with_flags(DemoConfig)
def demo(overrides: dict[str, Any]) -> None:
    """The whole pipeline in minutes on a CPU: shards, a selector, tickets, three arms, a report."""
    from dlth.pipeline.cli_train import ConsoleReporter
    from dlth.pipeline.demo import Demo
    from dlth.training.layers import checked

    config = checked(DemoConfig, overrides)
    report = Demo(config, console.note, ConsoleReporter(), console.counting).run()
    console.note(f"open {shown(report)} in a browser")


def _registered() -> None:
    """Attach the command groups that live in files of their own."""
    from dlth.pipeline import cli_share, cli_show, cli_ticket_exchange, cli_ticket_tools  # noqa: F401  (add to `tickets`)
    from dlth.pipeline.cli_tickets import tickets
    from dlth.pipeline.cli_train import evaluate, train

    app.command()(train)
    app.command()(evaluate)
    app.add_typer(tickets, name="tickets", help="Look at ticket files and check them.")


_registered()

if __name__ == "__main__":
    main()
