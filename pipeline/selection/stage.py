"""Stage 1: run a selector over shards once and write every image's patch ranking.

The stage is: plan (index, model, header: everything that can be wrong is found here), then for each shard that nobody
has done or is doing: decode, rank, write. Any number of processes may run it on the same file, started by torchrun, by
a scheduler or by hand, on one machine or on several that share a file system: `shard_pass.py` says how.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import numpy as np

from dlth.data.cores import check_workers
from dlth.data.images.several_views import SeveralViews
from dlth.data.loading.shard_reader import ShardBatch, read_shards
from dlth.data.shards.classes import require_images
from dlth.data.shards.index import ShardIndex, open_index
from dlth.pipeline.selection.config import DEFAULT_MODEL, SelectConfig
from dlth.pipeline.selection.shard_pass import Advance, PassReport, ShardPass
from dlth.tickets import (
    DatasetInfo,
    Preprocessing,
    ShardSpec,
    ShardTickets,
    TicketHeader,
    TicketWriter,
    ViewSpec,
)
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, shown
from dlth.tickets.format.provenance import AVERAGED, DEFAULT_RANKER, RANKER, ranker_of
from dlth.training.device.compiled import check_backend
from dlth.training.device.numerics import numerics
from dlth.training.distributed.process_group import take_device
from dlth.training.models.frame import described
from dlth.training.models.registry import ARGUMENTS, resolve
from dlth.training.models.weights_metadata import ABOUT_IMAGES, ABOUT_MODEL, ABOUT_SELECTION, WeightsFile
from dlth.training.runs.result import versions
from dlth.training.selectors.batch_ranker import BatchRanker, Ranked, rank_batches
from dlth.training.selectors.chosen import Chosen, choose
from dlth.training.selectors.patch_ranker import PatchRanker
from dlth.training.selectors.rankers import RankerSpec


@dataclass(frozen=True)
class SelectPlan:
    """What a run will do, known before it does it.

    several: the views averaged over, None where there is one
    why_ranker: why its ranker was taken, where nobody named one and it is not the default
    """

    config: SelectConfig
    header: TicketHeader
    index: ShardIndex
    ranker: PatchRanker
    several: SeveralViews | None = None
    why_ranker: str = ""

    @property
    def shards(self) -> list[ShardSpec]:
        """The file's shards: those of the dataset, in the index's order."""
        return [ShardSpec(shard.name, shard.rows) for shard in self.index.shards]

    def facts(self) -> dict[str, object]:
        """The plan as a person would read it."""
        header, pixels = self.header, self.header.preprocessing
        stage_keep = f"{float(header.stage_keep):.4g}" if header.stage_keep else "-"
        views = 1 if self.several is None else len(self.several)
        gflops, dense = (flops / 1e9 for flops in self.ranker.flops)
        # indices, keys, hashes and gaps; keys shrink in compression
        row_bytes = header.ranked * (1 if header.grid.num_patches < 256 else 2) + self.index.key_width + 16 + 4
        return {
            "selector": f"{header.selector.model} ({header.selector.weights_source})",
            "ranker": ranker_of(header) + (f" ({self.why_ranker})" if self.why_ranker else ""),
            "weights sha256": header.selector.weights_sha256[:16],
            "view": described(header.view),
            **({} if self.several is None else {"averaged over": self.several.text}),
            "normalisation": f"mean {_channels(pixels.mean)}, std {_channels(pixels.std)}",
            "grid": f"{header.grid.rows}x{header.grid.cols} patches of {header.patch_size} px",
            "selection blocks": ", ".join(map(str, header.selector.blocks)),
            "tokens after each stage": " -> ".join(map(str, (header.grid.num_patches, *header.stage_tokens))),
            "kept": f"{header.k} of {header.grid.num_patches} patches (keep {header.keep}, stage keep {stage_keep})",
            "images": self.index.num_samples,
            "shards": len(self.index.shards),
            "file": f"{self.config.out}, at most {self.index.num_samples * row_bytes / 1e6:,.1f} MB",
            "cost": f"{gflops:.3f} GFLOP per {'image' if views == 1 else f'view, {views} views an image'}"
            f" (dense forward {dense:.3f}), {gflops * views * self.index.num_samples / 1e3:,.1f} TFLOP in all",
            "device": f"{self.ranker.device}, {header.selector.block_dtype} blocks, float32 scores",
        }


@dataclass
class SelectReport(PassReport):
    """What a run of stage 1 did; `tied`: images whose scores are equal at the cut, so that their patches' places alone
    decided it.
    """

    tied: int = 0


def plan(config: SelectConfig, note: Note = lambda text: None, ranker: str | PatchRanker | None = None) -> SelectPlan:
    """Open the shards, make the ranker and fix the header, without writing anything.

    Args:
        config: what to do
        note: told in words what a person should know
        ranker: takes the place of the settings' one: a name, `package.module:name`, or a ranker itself, which needs
            none of the settings' model, weights, blocks and rates
    Raises:
        DlthError: shards, model, weights or budget cannot serve; the message says which and what can.
    """
    device = take_device(config.device)
    check_workers(config.workers)
    if config.torchcompile is not None:
        check_backend(config.torchcompile)
    spec = _ranker_spec(config, note)
    index = open_index(config.data, split=config.split or None)
    require_images(index)
    chosen = choose(ranker if ranker is not None else config.ranker, spec, device)
    view = replace(chosen.ranker.frame.eval_view, kind=config.view)
    several = _several_views(config, view, chosen.ranker)
    header = _header(config, chosen, view, several, index)
    return SelectPlan(config, header, index, chosen.ranker, several, chosen.why)


@numerics()
def select(
    plan: SelectPlan,
    progress: Advance = lambda images: None,
    skip: Advance = lambda images: None,
    note: Note = lambda text: None,
    wait: bool = False,
) -> SelectReport:
    """Rank the patches of every image of the plan that is not yet in the file, and finish the file if it is whole.

    Args:
        plan: what to do
        progress: told how many images were ranked since it was last told
        skip: told how many images an earlier run had done
        note: told in words what a person should know
        wait: stay until the file is complete, for the shards in other processes' hands; those of a process that died
            are done here
    Raises:
        DlthError: a damaged shard, a corrupt image with `bad_images="error"`, a file of another configuration, an
            image whose scores are no numbers
    """
    config, index, report = plan.config, plan.index, SelectReport()
    ranker = BatchRanker(plan.ranker, config.amp, config.amp_dtype, config.torchcompile, config.batch_size, note)

    def ranked(shards: Iterable[int]) -> Iterable[tuple[ShardBatch, Ranked]]:
        batches = read_shards(shards, index, plan.header.view, config.batch_size, config.workers, plan.several)
        return rank_batches(batches, ranker, config.threads)

    def check(batch: ShardBatch, result: Ranked) -> None:
        gap = result[1]
        _check_scores(plan, batch, gap)
        report.tied += int((gap == 0).sum())

    writer = TicketWriter(config.out, plan.header, plan.shards, index.key_width)
    rows, skip_bad = partial(_assemble, plan), config.bad_images == "skip"
    ShardPass(writer, index, ranked, check, rows, skip_bad).run(report, progress, skip, note, wait)
    return report


def _check_scores(plan: SelectPlan, batch: ShardBatch, gap: np.ndarray) -> None:
    """Raises InputError, naming image and weights, where a sound image's scores are no numbers (its gap is NaN)."""
    lost = np.flatnonzero(batch.good)[np.isnan(gap)]
    if not len(lost):
        return
    selector, pixels = plan.header.selector, plan.header.preprocessing
    key = plan.index.key(int(plan.index.row_start[batch.shard]) + batch.start + int(lost[0]))
    cause = f"{selector.block_dtype} blocks may have overflowed: try --amp-dtype bfloat16, or no --amp"
    raise InputError(
        f"shard {shown(plan.index.shards[batch.shard].name)}, key {shown(key)}: the scores of its patches are no"
        f" numbers, so it cannot have a ticket ({len(lost)} of {len(gap)} images of its batch). Ranked by"
        f" {shown(selector.model)} ({shown(selector.weights_source)}, sha256 {selector.weights_sha256[:16]}) on"
        f" {plan.ranker.device}, mean {_channels(pixels.mean)}, std {_channels(pixels.std)}:"
        f" {cause if plan.config.amp else 'look at the weights, and at --mean and --std'}"
    )


def _assemble(plan: SelectPlan, parts: list[tuple[ShardBatch, Ranked]]) -> ShardTickets:
    """One shard's rows from its batches; a bad image keeps its row, key and hash, without a ticket."""
    keys = tuple(plan.index.keys(parts[0][0].shard))
    hashes = np.concatenate([batch.hashes for batch, _ in parts])
    good = np.concatenate([batch.good for batch, _ in parts])
    patches = np.zeros((len(keys), plan.header.ranked), np.int64)
    patches[good] = np.concatenate([ranking for _, (ranking, _) in parts])[:, : plan.header.ranked]
    gap = np.full(len(keys), np.nan, np.float32)
    gap[good] = np.concatenate([gaps for _, (_, gaps) in parts])
    return ShardTickets(keys, hashes, patches, gap, skipped=~good)


def _ranker_spec(config: SelectConfig, note: Note) -> RankerSpec:
    """The ranker that the settings ask for, with what its weights record; a contradiction is told."""
    weights = WeightsFile.find(config.checkpoint, config.use_ema) if config.checkpoint else None
    settings = {name: getattr(config, name, None) for name in (*ABOUT_MODEL, *ABOUT_IMAGES, *ABOUT_SELECTION)}
    rates = {name: getattr(config, name) for name in ("stage_keep", "keep", "tokens")}
    if weights is not None:
        settings, rates = weights.settle(settings, note), weights.settle_rates(rates, note)
    model = settings["model"] or DEFAULT_MODEL
    if resolve(model) != model:
        note(f"{shown(model)} is timm's {resolve(model)}")
    if all(rate is None for rate in rates.values()):
        rates = {"stage_keep": None, "keep": "0.7"}
    return RankerSpec(
        model,
        {"num_classes": settings["num_classes"], "img_size": settings["img_size"], **(settings["model_kwargs"] or {})},
        weights,
        images={name: settings[name] for name in ABOUT_IMAGES},
        blocks=settings["blocks"],
        fuse_tokens=bool(settings["fuse_tokens"]),
        rates=rates,
        flags=ARGUMENTS,
        seed=None if config.pretrained else config.seed,
    )


def _several_views(config: SelectConfig, view: ViewSpec, ranker: PatchRanker) -> SeveralViews | None:
    """The views that the settings ask to average over."""
    if config.average_views is None:
        return None
    return SeveralViews(view, ranker.frame.grid, config.average_views, config.crop_scale, config.seed)


def _header(
    config: SelectConfig, chosen: Chosen, view: ViewSpec, several: SeveralViews | None, index: ShardIndex
) -> TicketHeader:
    ranker, frame, budget = chosen.ranker, chosen.ranker.frame, chosen.ranker.budget
    return TicketHeader(
        form="top" if config.top_only else "full",
        grid=frame.grid,
        patch_size=frame.patch_size,
        k=budget.k,
        keep=budget.keep,
        stage_keep=budget.stage_keep,
        stage_tokens=budget.stage_tokens,
        view=view,
        preprocessing=Preprocessing(mean=frame.mean, std=frame.std, decoder=f"torchvision {version('torchvision')}"),
        selector=replace(ranker.info, block_dtype=config.amp_dtype if config.amp else "float32"),
        dataset=DatasetInfo(
            name=config.dataset, split=config.split, count=index.num_samples, fingerprint=index.fingerprint
        ),
        versions=versions(),
        creator=config.creator,
        license=config.license,
        created=config.created,
        extensions={
            **({} if chosen.name == DEFAULT_RANKER else {RANKER: chosen.name}),
            **({} if several is None else {AVERAGED: several.facts()}),
        },
    )


def _channels(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
