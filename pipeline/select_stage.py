"""Stage 1: run a selector over shards once and write every image's patch ranking.

The stage is: plan (index, model, header: everything that can be wrong is found here), then for each shard that nobody
has done or is doing: decode, rank, write. Any number of processes may run it on the same file, started by torchrun, by
a scheduler or by hand, on one machine or on several that share a file system: a shard is claimed by a lock that the
kernel drops when its owner dies, so there is no lead process, nothing is done twice, and running the command again is
all the recovery there is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dlth.data.classes import require_images
from dlth.data.cores import check_workers
from dlth.data.decode import BadImageError
from dlth.data.index import ShardIndex, open_index
from dlth.pipeline.ranker import Ranked, Ranker, rank_batches
from dlth.pipeline.select_config import DEFAULT_MODEL, SelectConfig
from dlth.pipeline.shard_reader import ShardBatch, read_shards
from dlth.tickets import (
    DatasetInfo,
    Preprocessing,
    SelectorInfo,
    ShardSpec,
    ShardTickets,
    TicketHeader,
    TicketStore,
    TicketWriter,
)
from dlth.tickets.errors import InputError, shown
from dlth.tickets.progress import Note
from dlth.training import Selector
from dlth.training.compiled import check_backend
from dlth.training.distributed import pick_device
from dlth.training.frame import Frame, described
from dlth.training.models import build, default_blocks, on_black_image, patch_size_of, resolve
from dlth.training.outcome import versions
from dlth.training.ranks import ranks
from dlth.training.selector import check_weights
from dlth.training.weights import weights_digest
from dlth.training.weights_note import ABOUT_IMAGES, ABOUT_MODEL, WeightsFile

Advance = Callable[[int], None]


@dataclass(frozen=True)
class SelectPlan:
    """What a run will do, known before it does it."""

    config: SelectConfig
    header: TicketHeader
    index: ShardIndex
    selector: Selector
    device: torch.device
    gflops_per_image: float
    dense_gflops_per_image: float

    @property
    def shards(self) -> list[ShardSpec]:
        """The file's shards: those of the dataset, in the index's order."""
        return [ShardSpec(shard.name, shard.rows) for shard in self.index.shards]

    @property
    def stored_patches(self) -> int:
        """Patch indices stored for each image."""
        return self.header.k if self.header.form == "top" else self.header.grid.num_patches

    @property
    def file_bytes(self) -> int:
        """Upper bound of the ticket file's size: indices, keys, hashes, gaps; keys shrink in compression."""
        width = 1 if self.header.grid.num_patches < 256 else 2
        return self.index.num_samples * (self.stored_patches * width + self.index.key_width + 16 + 4)

    def facts(self) -> dict[str, object]:
        """The plan as a person would read it."""
        header, pixels = self.header, self.header.preprocessing
        return {
            "selector": f"{header.selector.model} ({header.selector.weights_source})",
            "weights sha256": header.selector.weights_sha256[:16],
            "view": described(header.view),
            "normalisation": f"mean {_channels(pixels.mean)}, std {_channels(pixels.std)}",
            "grid": f"{header.grid.rows}x{header.grid.cols} patches of {header.patch_size} px",
            "selection blocks": ", ".join(map(str, header.selector.blocks)),
            "tokens after each stage": " -> ".join(map(str, (header.grid.num_patches, *header.stage_tokens))),
            "kept": f"{header.k} of {header.grid.num_patches} patches (keep {header.keep},"
            f" stage keep {_rounded(header.stage_keep)})",
            "images": self.index.num_samples,
            "shards": len(self.index.shards),
            "file": f"{self.config.out}, at most {self.file_bytes / 1e6:,.1f} MB",
            "cost": f"{self.gflops_per_image:.3f} GFLOP per image (dense forward {self.dense_gflops_per_image:.3f}),"
            f" {self.gflops_per_image * self.index.num_samples / 1e3:,.1f} TFLOP in all",
            "device": f"{self.device}, {header.selector.block_dtype} blocks, float32 scores",
        }


@dataclass
class SelectReport:
    """What a run of stage 1 did, and once the file is complete, what all processes did together.

    images, shards, skipped: what this process read, and what was wrong with each image that it left without a ticket
    tied: images of those whose scores are equal at the cut, so that their patches' places alone decided it
    shards_before: done when this process began
    left_to_others: shards that other processes still worked on at the end
    images_in_file, skipped_elsewhere, identity: of the complete file; the images (shard and key) that other processes
        or earlier runs left without a ticket
    """

    complete: bool
    images: int = 0
    shards: int = 0
    tied: int = 0
    shards_before: int = 0
    skipped: list[str] = field(default_factory=list)
    left_to_others: int = 0
    images_in_file: int = 0
    skipped_elsewhere: list[str] = field(default_factory=list)
    identity: str = ""


def plan(config: SelectConfig, say: Note = lambda text: None) -> SelectPlan:
    """Open the shards, build the selector and fix the header, without writing anything.

    Raises:
        DlthError: shards, model, weights or budget cannot serve; the message says which and what can.
    """
    device = pick_device(config.device)
    check_workers(config.workers)
    if config.torchcompile is not None:
        check_backend(config.torchcompile)
    weights = WeightsFile.find(config.checkpoint, config.use_ema) if config.checkpoint else None
    said = _said(config, weights, say)
    model_name = resolve(said["model"])
    if model_name != said["model"]:
        say(f"{shown(said['model'])} is timm's {model_name}")
    index = open_index(config.data, split=config.split or None)
    require_images(index)
    vit, source = _load_selector(config, said, weights)
    blocks = config.blocks or default_blocks(vit)
    given = (config.keep, config.stage_keep, config.tokens)
    keep = "0.7" if given == (None, None, None) else config.keep
    selector = Selector(vit, config.stage_keep, blocks, config.fuse_tokens, keep=keep, tokens=config.tokens)
    frame = Frame.of(vit, **{name: said[name] for name in ABOUT_IMAGES})
    header = _header(config, selector, frame, index, model_name, source)
    check_weights(vit, source, header.selector.weights_sha256)
    size = header.view.height, header.view.width
    costs = on_black_image(lambda image: (_gflops(selector.rank, image), _gflops(selector.vit, image)), size)
    selector.to(device)
    return SelectPlan(config, header, index, selector, device, *costs)


def select(
    plan: SelectPlan,
    progress: Advance = lambda images: None,
    skip: Advance = lambda images: None,
    say: Note = lambda text: None,
    wait: bool = False,
) -> SelectReport:
    """Rank the patches of every image of the plan that is not yet in the file, and finish the file if it is whole.

    Args:
        plan: what to do
        progress: told how many images were ranked since it was last told
        skip: told how many images an earlier run had done
        say: told in words what a person should know
        wait: stay until the file is complete, for the shards in other processes' hands; those of a process that died
            are done here
    Raises:
        DlthError: a damaged shard, a corrupt image with `bad_images="error"`, a file of another configuration, an
            image whose scores are no numbers
    """
    config, index = plan.config, plan.index
    writer = TicketWriter(config.out, plan.header, plan.shards, index.key_width)
    report = SelectReport(complete=writer.complete)
    todo = writer.missing()
    report.shards_before = len(index.shards) - len(todo)
    skip(sum(shard.rows for shard in index.shards) - sum(index.shards[s].rows for s in todo))
    if report.shards_before and todo:
        say(f"resuming {shown(config.out)}: {report.shards_before} of {len(index.shards)} shards are done")
    mine: set[int] = set()
    while not report.complete:
        if missing := writer.missing():
            mine |= _rank_missing(plan, writer, missing, report, progress, say)
        report.complete = writer.finish()
        if not (wait or report.complete):
            break
        writer.wait()
    report.left_to_others = len(writer.missing())
    if report.complete:
        store = TicketStore(config.out)
        report.identity, report.images_in_file = store.identity, store.num_rows
        report.skipped_elsewhere = [text for shard, text in _skipped_images(store) if shard not in mine]
    return report


def _skipped_images(store: TicketStore) -> Iterator[tuple[int, str]]:
    """Shard index, and shard and key in words, of every image without a ticket."""
    for place, shard in enumerate(store.shards):
        if shard.skipped:
            for row in np.flatnonzero(store.skipped(place)):
                yield place, f"shard {shown(shard.name)}, key {shown(store.keys(place)[row])}"


def _rank_missing(
    plan: SelectPlan,
    writer: TicketWriter,
    todo: list[int],
    report: SelectReport,
    progress: Advance,
    say: Note,
) -> set[int]:
    """Rank the shards of `todo` that nobody else has; gives back which were done here."""
    config, index = plan.config, plan.index
    amp = getattr(torch, config.amp_dtype) if config.amp else None
    backend, size = config.torchcompile, config.batch_size
    ranker = Ranker(plan.selector, plan.header.preprocessing, plan.device, amp, backend, size, say)
    with contextlib.ExitStack() as claims:
        held: dict[int, contextlib.ExitStack] = {}

        def claimed() -> Iterator[int]:
            for shard in _from_own_start(todo):
                claim = claims.enter_context(contextlib.ExitStack())
                if not claim.enter_context(writer.claim(shard)):
                    continue
                if index.shards[shard].rows == 0:
                    writer.write(shard, _no_tickets(plan))
                    claim.close()
                    continue
                held[shard] = claim
                yield shard

        batches = read_shards(claimed(), index, plan.header.view, config.batch_size, config.workers)
        parts: list[tuple[ShardBatch, Ranked]] = []
        done: set[int] = set()
        for batch, ranked in rank_batches(batches, ranker, config.threads):
            if batch.problems and config.bad_images == "error":
                raise BadImageError(batch.problems[0]).advised()
            for problem in batch.problems:
                say(f"skipped: {problem}")
            _check_scores(plan, batch, ranked[1])
            report.skipped += batch.problems
            report.tied += int((ranked[1][batch.good] == 0).sum())
            parts.append((batch, ranked))
            report.images += len(batch.good)
            progress(len(batch.good))
            if batch.start + len(batch.good) == index.shards[batch.shard].rows:
                writer.write(batch.shard, _assemble(plan, parts))
                held.pop(batch.shard).close()
                done.add(batch.shard)
                report.shards += 1
                parts = []
    return done


def _check_scores(plan: SelectPlan, batch: ShardBatch, gap: np.ndarray) -> None:
    """Raises InputError, naming image and weights, where a sound image's scores are no numbers (its gap is NaN)."""
    lost = np.flatnonzero(np.isnan(gap) & batch.good)
    if not len(lost):
        return
    selector, pixels = plan.header.selector, plan.header.preprocessing
    key = plan.index.key(int(plan.index.row_start[batch.shard]) + batch.start + int(lost[0]))
    cause = f"{selector.block_dtype} blocks may have overflowed: try --amp-dtype bfloat16, or no --amp"
    raise InputError(
        f"shard {shown(plan.index.shards[batch.shard].name)}, key {shown(key)}: the scores of its patches are no"
        f" numbers, so it cannot have a ticket ({len(lost)} of {len(gap)} images of its batch). Ranked by"
        f" {shown(selector.model)} ({shown(selector.weights_source)}, sha256 {selector.weights_sha256[:16]}) on"
        f" {plan.device}, mean {_channels(pixels.mean)}, std {_channels(pixels.std)}:"
        f" {cause if plan.config.amp else 'look at the weights, and at --mean and --std'}"
    )


def _from_own_start(todo: list[int]) -> list[int]:
    """The missing shards, each process of a torchrun job beginning elsewhere, so that they rarely meet."""
    here = ranks()
    start = len(todo) * here.rank // here.size
    return todo[start:] + todo[:start]


def _no_tickets(plan: SelectPlan) -> ShardTickets:
    """The rows of an empty shard."""
    images, patches = np.zeros((0, 16), np.uint8), np.zeros((0, plan.stored_patches), np.int64)
    return ShardTickets((), images, patches, np.zeros(0, np.float32), skipped=np.zeros(0, bool))


def _assemble(plan: SelectPlan, parts: list[tuple[ShardBatch, Ranked]]) -> ShardTickets:
    """One shard's rows from its batches; a bad image keeps its row, key and hash, and the writer blanks its ticket."""
    keys = tuple(plan.index.keys(parts[0][0].shard))
    skipped = ~np.concatenate([batch.good for batch, _ in parts])
    hashes = np.concatenate([batch.hashes for batch, _ in parts])
    patches = np.concatenate([ranking for _, (ranking, _) in parts])[:, : plan.stored_patches]
    gap = np.concatenate([gaps for _, (_, gaps) in parts])
    return ShardTickets(keys, hashes, patches, gap, skipped)


def _said(config: SelectConfig, weights: WeightsFile | None, say: Note) -> dict[str, Any]:
    """Model and images as the user gave them, else as the weights record them; a contradiction is told."""
    said = {name: getattr(config, name, None) for name in (*ABOUT_MODEL, *ABOUT_IMAGES)}
    if weights is not None:
        said, against = weights.settle(said)
        if against:
            say(against)
    return said | {"model": said["model"] or DEFAULT_MODEL, "model_kwargs": said["model_kwargs"] or {}}


def _load_selector(
    config: SelectConfig, said: Mapping[str, Any], weights: WeightsFile | None
) -> tuple[torch.nn.Module, str]:
    """The model, and where its weights are from."""
    torch.manual_seed(config.seed)
    options = {"num_classes": said["num_classes"], "img_size": said["img_size"], **said["model_kwargs"]}
    if weights is not None:
        return weights.build(said["model"], **options), weights.path.name
    vit = build(said["model"], pretrained=config.pretrained, **options)
    return vit, "timm hub" if config.pretrained else f"random weights, seed {config.seed}"


def _header(
    config: SelectConfig, selector: Selector, frame: Frame, index: ShardIndex, model_name: str, source: str
) -> TicketHeader:
    return TicketHeader(
        form="top" if config.top_only else "full",
        grid=selector.grid,
        patch_size=patch_size_of(selector.vit),
        k=selector.budget.k,
        keep=selector.budget.keep,
        stage_keep=selector.budget.stage_keep,
        stage_tokens=selector.budget.stage_tokens,
        view=replace(frame.eval_view, kind=config.view),
        preprocessing=Preprocessing(mean=frame.mean, std=frame.std, decoder=f"torchvision {version('torchvision')}"),
        selector=SelectorInfo(
            model=model_name,
            weights_sha256=weights_digest(selector.vit),
            weights_source=source,
            blocks=tuple(selector.blocks),
            fuse_tokens=config.fuse_tokens,
            block_dtype=config.amp_dtype if config.amp else "float32",
        ),
        dataset=DatasetInfo(
            name=config.dataset, split=config.split, count=index.num_samples, fingerprint=index.fingerprint
        ),
        versions=versions(),
        creator=config.creator,
        license=config.license,
        created=config.created,
    )


def _gflops(function: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        function(images)
    return counter.get_total_flops() / 1e9


def _channels(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _rounded(stage_keep: str) -> str:
    return f"{float(stage_keep):.4g}" if stage_keep else "-"
