"""`dlth pack` and `dlth index`: images into shards, and what the shards hold."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import integer
from dlth.pipeline.cli.options import Json, Split, checked
from dlth.tickets.errors import shown

if TYPE_CHECKING:
    from dlth.data.packing.pack import PackReport

_SHOWN = 10
"""Files without an image, and renamed keys, that are named."""

Labels = Annotated[
    str | None,
    typer.Option(
        help="Labels of ImageNet's validation images: the development kit, packed or not; its ground-truth file"
        " with meta.mat beside it; a text of one synset a line; or LOC_val_solution.csv."
    ),
]


def pack(
    source: Annotated[
        list[str],
        typer.Argument(
            help="A folder of class folders, ImageNet's archives (a tar, or a folder of them), HF-style tars, or"
            " CIFAR's cifar-10-python.tar.gz."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the shards, _info.json and classes.json.")],
    split: Annotated[str, typer.Option(help="Name of the split: train-000000.tar …; of CIFAR train, val.")] = "train",
    shard_size: Annotated[int, typer.Option(parser=integer, help="Images per shard, at most.")] = 1000,
    seed: Annotated[int, typer.Option(parser=integer, help="Seed of the order.")] = 0,
    workers: Annotated[
        int | None, typer.Option(parser=integer, help="Shards written side by side; one a core, at most 8.")
    ] = None,
    labels: Labels = None,
    restart: Annotated[bool, typer.Option("--restart", help="Write the split anew instead of going on.")] = False,
    json: Json = False,
) -> None:
    """Pack images into WebDataset shards: bytes kept exactly, order shuffled by a seed, resumable."""
    from dlth.data.packing.pack import pack as pack_images
    from dlth.pipeline.project.record import obstacles, record_shards

    for text in obstacles(Path(out), split):
        console.note(text)
    with console.counting(f"pack {split}", 0, quiet=json) as counter:
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
    recorded = record_shards(report.out, split, [shard.name for shard in report.shards])
    if json:
        console.as_json(_facts(report) | {"ignored": report.ignored, "renamed": report.renamed, "settings": recorded})
        return
    console.result(f"dlth pack, split {split}", _facts(report))
    for name in report.ignored[:_SHOWN]:
        console.note(f"no image: {shown(name)}")
    for name, key in report.renamed[:_SHOWN]:
        console.note(f"renamed, as a dot would end the key: {shown(name)} -> {shown(key)}")
    for text in recorded:
        console.note(text)


def _facts(report: "PackReport") -> dict[str, object]:
    return {
        "folder": str(report.out),
        "images": report.num_samples,
        "classes": len(report.classes),
        "shards": len(report.shards),
        "shards of an earlier run": report.kept,
        "bytes": report.num_bytes,
        "files that are no images": len(report.ignored),
        "keys that differ from the base name": len(report.renamed),
    }


def index(
    data: Annotated[
        str, typer.Argument(help="Shards: brace range (quoted), folder, glob, _info.json; local or remote.")
    ],
    split: Split = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read the shards anew even if the index is fresh.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every byte instead, and compare with declared counts and digests.")
    ] = False,
    json: Json = False,
) -> None:
    """List what the shards hold, once: keys, labels, offsets and sizes, kept beside them or in the cache."""
    from dlth.data.shards.index import check_shards, open_index

    if check:
        with console.counting("check", 0, "shards", quiet=json) as counter:
            damage = check_shards(data, split=split, progress=counter)
        checked(damage, {"ok": not damage}, json)
        if not json:
            console.note(f"{shown(data)}: every shard is what was declared")
        return
    with console.counting("index", 0, "shards", quiet=json) as counter:
        opened = open_index(data, split=split, rebuild=rebuild, progress=counter)
    facts = {
        "shards": len(opened.shards),
        "images": opened.num_samples,
        "classes": opened.num_classes,
        "fingerprint": opened.fingerprint,
    } | {name: digest for name, digest in asdict(opened.identity).items() if name != "keys"}
    console.result(f"dlth index {shown(data)}", facts, json)
