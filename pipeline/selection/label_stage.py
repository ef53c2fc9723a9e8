"""Token labelling: run an annotator over shards once and write what it sees in each cell of every image.

It goes as stage 1 does: plan, then the shards that nobody has done or is doing, by `shard_pass.py`. The annotator
always sees the whole image, so that every crop lies inside its map.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from timm.models import get_pretrained_cfg

from dlth.data.cores import check_workers
from dlth.data.loading.shard_reader import ShardBatch, read_shards
from dlth.data.shards.classes import require_images
from dlth.data.shards.index import ShardIndex, open_index
from dlth.pipeline.selection.label_config import LabelConfig
from dlth.pipeline.selection.shard_pass import Advance, PassReport, ShardPass
from dlth.tickets import DatasetInfo, Preprocessing, ShardSpec
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, shown
from dlth.tickets.format.label_header import AnnotatorInfo, LabelHeader
from dlth.tickets.format.label_rows import ShardLabels
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.store.label_writer import LabelWriter
from dlth.training.device.compiled import check_backend
from dlth.training.device.numerics import numerics
from dlth.training.distributed.process_group import take_device
from dlth.training.models.annotator import Annotator
from dlth.training.models.frame import Frame, described
from dlth.training.models.registry import image_size_of, resolve
from dlth.training.models.weights import weights_digest
from dlth.training.models.weights_metadata import ABOUT_IMAGES, ABOUT_MODEL, WeightsFile
from dlth.training.runs.result import versions
from dlth.training.selectors.batch_ranker import BatchRanker, Ranked, rank_batches
from dlth.training.selectors.rankers import RankerSpec


@dataclass(frozen=True)
class LabelPlan:
    """What a run will do, known before it does it."""

    config: LabelConfig
    header: LabelHeader
    index: ShardIndex
    annotator: Annotator

    def facts(self) -> dict[str, object]:
        """The plan as a person would read it."""
        header, num_images = self.header, self.index.num_samples
        row_bytes = 4 * header.num_best * header.grid.num_patches + self.index.key_width + 16
        gflops = self.annotator.flops / 1e9
        return {
            "annotator": f"{header.annotator.model} ({header.annotator.weights_source})",
            "weights sha256": header.annotator.weights_sha256[:16],
            "view": described(header.view),
            "grid": f"{header.grid} cells",
            "stored": f"the {header.num_best} best of {header.num_classes} classes of each cell",
            "images": num_images,
            "shards": len(self.index.shards),
            "file": f"{self.config.out}, at most {num_images * row_bytes / 1e6:,.1f} MB",
            "cost": f"{gflops:.3f} GFLOP per image, {gflops * num_images / 1e3:,.1f} TFLOP in all",
            "device": f"{self.annotator.device}, {header.annotator.dtype}",
        }


def plan(config: LabelConfig, note: Note = lambda text: None) -> LabelPlan:
    """Open the shards, build the annotator and fix the header, without writing anything.

    Raises:
        DlthError: shards, model or weights cannot serve; the message says which and what can.
    """
    device = take_device(config.device)
    check_workers(config.workers)
    if config.torchcompile is not None:
        check_backend(config.torchcompile)
    spec, img_size = _spec(config, note)
    index = open_index(config.data, split=config.split or None)
    require_images(index)
    model, source = spec.load()
    height, width = image_size_of(model)
    if height != width:
        raise InputError(f"an annotator sees square images, this one is built for {height}x{width}: give --img-size")
    frame = Frame.of(model, Grid(1, 1), img_size or height, **spec.images)
    annotator = Annotator(model.to(device), frame, config.num_best)
    dtype = config.amp_dtype if config.amp else "float32"
    info = AnnotatorInfo(resolve(spec.model), weights_digest(model), source, dtype)
    return LabelPlan(config, _header(config, annotator, info, index), index, annotator)


@numerics()
def label(
    plan: LabelPlan,
    progress: Advance = lambda images: None,
    skip: Advance = lambda images: None,
    note: Note = lambda text: None,
    wait: bool = False,
) -> PassReport:
    """Label the cells of every image of the plan that is not yet in the file, and finish the file if it is whole.

    Arguments as those of `ShardPass.run`. Raises DlthError as it does, and for scores that are no numbers.
    """
    config, index, report = plan.config, plan.index, PassReport()
    annotate = BatchRanker(plan.annotator, config.amp, config.amp_dtype, config.torchcompile, config.batch_size, note)

    def labelled(shards: Iterable[int]) -> Iterable[tuple[ShardBatch, Ranked]]:
        batches = read_shards(shards, index, plan.header.view, config.batch_size, config.workers)
        return rank_batches(batches, annotate, config.threads)

    def check(batch: ShardBatch, result: Ranked) -> None:
        lost = np.flatnonzero(batch.good)[~np.isfinite(result[1]).all(axis=(1, 2, 3))]
        if len(lost):
            key = index.key(int(index.row_start[batch.shard]) + batch.start + int(lost[0]))
            raise InputError(
                f"shard {shown(index.shards[batch.shard].name)}, key {shown(key)}: the annotator's scores are no"
                " numbers: look at the weights, and at --mean, --std and --amp-dtype"
            )

    def rows(parts: list[tuple[ShardBatch, Ranked]]) -> ShardLabels:
        return _assemble(plan, parts)

    writer = LabelWriter(config.out, plan.header, _shards(index), index.key_width)
    ShardPass(writer, index, labelled, check, rows, config.bad_images == "skip").run(report, progress, skip, note, wait)
    return report


def _shards(index: ShardIndex) -> list[ShardSpec]:
    return [ShardSpec(shard.name, shard.rows) for shard in index.shards]


def _assemble(plan: LabelPlan, parts: list[tuple[ShardBatch, Ranked]]) -> ShardLabels:
    """One shard's rows from its batches; a bad image keeps its row, key and hash, without labels."""
    header, keys = plan.header, tuple(plan.index.keys(parts[0][0].shard))
    good = np.concatenate([batch.good for batch, _ in parts])
    shape = (len(keys), header.num_best, header.grid.rows, header.grid.cols)
    classes, scores = np.zeros(shape, np.uint16), np.zeros(shape, np.float16)
    classes[good] = np.concatenate([part for _, (part, _) in parts])
    scores[good] = np.concatenate([part for _, (_, part) in parts])
    return ShardLabels(keys, np.concatenate([batch.hashes for batch, _ in parts]), classes, scores, skipped=~good)


def _header(config: LabelConfig, annotator: Annotator, info: AnnotatorInfo, index: ShardIndex) -> LabelHeader:
    frame = annotator.frame
    return LabelHeader(
        grid=annotator.grid,
        num_best=annotator.num_best,
        num_classes=annotator.num_classes,
        view=replace(frame.eval_view, kind="whole"),
        preprocessing=Preprocessing(mean=frame.mean, std=frame.std, decoder=f"torchvision {version('torchvision')}"),
        annotator=info,
        dataset=DatasetInfo(config.dataset, config.split, index.num_samples, index.fingerprint),
        versions=versions(),
        creator=config.creator,
        license=config.license,
        created=config.created,
    )


def _spec(config: LabelConfig, note: Note) -> tuple[RankerSpec, int | None]:
    """The model that the settings ask for, with what its weights record, and the side of its images if that was said.
    A model without an image size of its own (any convolutional one) is not built for one, and takes them all the same.
    """
    weights = WeightsFile.find(config.checkpoint, config.use_ema) if config.checkpoint else None
    settings: dict[str, Any] = {name: getattr(config, name, None) for name in (*ABOUT_MODEL, *ABOUT_IMAGES)}
    settings["model"] = config.annotator
    if weights is not None:
        settings = weights.settle(settings, note)
    if settings["model"] is None:
        raise InputError(f"{shown(config.checkpoint)} does not record its model: name it (--annotator)")
    known = get_pretrained_cfg(resolve(settings["model"]))
    fixed = known is not None and known.fixed_input_size
    options = {"num_classes": settings["num_classes"]} | ({"img_size": settings["img_size"]} if fixed else {})
    spec = RankerSpec(
        settings["model"],
        {**options, **(settings["model_kwargs"] or {})},
        weights,
        images={name: settings[name] for name in ABOUT_IMAGES},
        blocks=None,
        fuse_tokens=False,
        rates={},
        flags="--model-kwargs and --img-size",
        seed=None if config.pretrained else config.seed,
    )
    return spec, settings["img_size"]
