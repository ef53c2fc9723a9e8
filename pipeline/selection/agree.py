"""Whether caching costs anything: tickets moved to training's views, held against a selector that sees those views.

The tickets take the way of the projected mode (`data/loading/ranked_views.py`), the selector that of the online mode
(`training/selectors/online.py`), so what is compared is what two runs of training would have trained on, mixing apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlth.data.images.augment import Augmentation
from dlth.data.images.visibility import demote
from dlth.data.joining.join import check_compatible, join
from dlth.data.loading.ranked_views import RankedViewLoader, RankedViews
from dlth.data.shards.classes import require_images
from dlth.data.shards.index import ShardIndex, open_index
from dlth.pipeline.evidence.agreement import Agreement, Seen
from dlth.pipeline.selection.agree_config import AgreeConfig
from dlth.tickets import TicketStore, num_kept
from dlth.tickets.callbacks import Note, Progress
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.provenance import describe, describe_selector, ranker_of
from dlth.tickets.ranking.ranks import num_shared
from dlth.training.device.feed import sent_ahead
from dlth.training.device.numerics import numerics
from dlth.training.device.precision import Precision
from dlth.training.device.reading import one_behind, read_later
from dlth.training.distributed.process_group import take_device
from dlth.training.models.pixels import Pixels
from dlth.training.models.registry import same_model
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.reporter import Reporter
from dlth.training.runs.inputs import augmentation_of
from dlth.training.selectors.online import OnlineSelector, open_selector
from dlth.training.selectors.patch_ranker import Scoring
from dlth.training.selectors.rankers import RANKERS


@dataclass(frozen=True, eq=False)
class AgreePlan:
    """What will be compared, opened and checked."""

    config: AgreeConfig
    store: TicketStore
    index: ShardIndex
    online: OnlineSelector
    k: int
    augmentation: Augmentation
    views: RankedViewLoader

    def facts(self) -> dict[str, object]:
        """The plan as a person would read it."""
        patches, flops = self.store.header.grid.num_patches, self.online.selector.flops[0]
        return {
            "tickets": f"{self.store.identity[:16]}, of {describe(self.store.header)}",
            "selector": self.online.text,
            "kept": f"{self.k} of {patches} patches",
            "images": f"{self.views.num_images:,} of {self.index.num_samples:,}",
            "views": ", ".join(f"{name} {value}" for name, value in self.drawn().items()),
            "cost": f"{flops / 1e9:.3f} GFLOP per image, {flops * self.views.num_images / 1e12:,.2f} TFLOP in all",
            "device": str(self.online.selector.device),
        }

    def drawn(self) -> dict[str, Any]:
        """By which settings views are drawn; those that are off are left out."""
        names = ("scale", "ratio", "hflip", "train_interpolation", "aa", "color_jitter", "reprob", "hidden", "seed")
        values = {name: getattr(self.config, name) for name in names}
        if not self.config.rand_augment and not self.config.reprob:
            del values["hidden"]
        return {name: value for name, value in values.items() if name == "seed" or value}


class _Told(Reporter):
    def __init__(self, tell: Note) -> None:
        self._tell = tell

    def note(self, text: str) -> None:
        self._tell(text)


def plan_agreement(store: TicketStore, config: AgreeConfig, note: Note = lambda text: None) -> AgreePlan:
    """Open the images and the selector, and see that they fit the tickets.

    Raises:
        InputError: tickets that no selector chose (controls), a selector without trained weights, no images
        MismatchError: tickets of another grid than the selector's, that cannot be moved, or of other images
        DlthError: what else shards, weights or settings cannot serve
    """
    header = store.header
    _refuse_unscored(header)
    grid, device = header.grid, take_device(config.device)
    k = header.k if config.keep is None else num_kept(config.keep, grid.num_patches)
    check_compatible(header, grid=grid, k=k, split=config.split or "")
    index = open_index(config.data, split=config.split)
    require_images(index)
    joined = join(index, store, "skip")
    note(f"{joined.coverage}")
    config = _ranking_as(header, config, note)
    online = open_selector(config, k, grid, device, _Told(note), "the tickets have")
    if online.selector.budget.k != k:
        raise MismatchError(f"the tickets keep {k} patches, the selector {online.selector.budget.k}: give --keep")
    if _of_another(online, header):
        note(f"the tickets are of another selector than the one in the loop, or of other blocks: {describe(header)}")
    augmentation = augmentation_of(config, online.selector.frame)
    views = RankedViewLoader(
        *(index, joined, augmentation, grid, config.seed, config.images),
        demoted=config.hidden == "demote",
        window=config.shuffle_window,
        batch_size=config.batch_size,
        workers=config.workers,
        bad_images=config.bad_images,
    )
    if not views.num_images:
        raise InputError("no image is left to compare: every one is bad or without a ticket")
    return AgreePlan(config, store, index, online, k, augmentation, views)


@numerics()
def agree(plan: AgreePlan, progress: Progress | None = None) -> Agreement:
    """Rank every view by the selector, and compare; `progress(done, total)` counts images.

    Raises:
        InputError: an image whose scores are no numbers, or images of which none can be read
        DlthError: shards that cannot be read, a corrupt image with `bad_images="error"`
    """
    parts: list[Seen] = []
    done = 0
    asked = (_asked(plan, batch) for batch in sent_ahead(plan.views, plan.online.selector.device))
    for seen in one_behind(asked):
        parts.append(seen)
        done += len(seen.area)
        if progress is not None:
            progress(done, plan.views.num_images)
    if not parts:
        raise InputError("no image could be read: nothing is compared")
    bad = len(plan.views.bad_images)
    return Agreement(
        tickets=plan.store.identity,
        tickets_are=describe(plan.store.header),
        selector=plan.online.facts(),
        selector_is=plan.online.text,
        data=plan.index.identity.named("data"),
        k=plan.k,
        num_patches=plan.store.header.grid.num_patches,
        views=plan.drawn(),
        num_images=done,
        num_left_out=bad,
        rows=Seen.joined(parts).rows(plan.k),
    )


def _refuse_unscored(header: TicketHeader) -> None:
    if header.selector.heads == "none" and header.selector.model.startswith("control"):
        raise InputError(
            f"these tickets are a control, which no selector chose: {describe(header)}. Compare the tickets that it"
            " was made from"
        )


def _ranking_as(header: TicketHeader, config: AgreeConfig, note: Note) -> AgreeConfig:
    """The settings, with the tickets' own ranker, blocks and fused token where no flag says another, if the selector is
    of their model.

    A ranker that is not one of dlth's is a user's code, which is imported at a user's word and never at a file's.
    """
    weights = WeightsFile.find(config.selector_checkpoint) if config.selector_checkpoint else None
    model = config.selector or (weights.note.model if weights is not None and weights.note is not None else None)
    theirs, ranker = header.selector, ranker_of(header)
    ranked_so = config.selector_ranker == ranker or (config.selector_ranker is None and ranker in RANKERS)
    if not (model and ranked_so and theirs.heads != "none" and same_model(model, theirs.model)):
        return config
    said = {"ranker": ranker, "blocks": theirs.blocks or None, "fuse_tokens": theirs.fuse_tokens}
    taken = {f"selector_{name}": value for name, value in said.items() if getattr(config, f"selector_{name}") is None}
    if taken:
        note(f"where no --selector-… flag says how, it ranks as the tickets' did: {describe_selector(theirs, ranker)}")
    return config.model_copy(update=taken)


def _of_another(online: OnlineSelector, header: TicketHeader) -> bool:
    """Whether the selector in the loop is not what chose the tickets."""
    ours, theirs = online.selector.info, header.selector
    same = ours.weights_sha256 == theirs.weights_sha256 and ours.fuse_tokens == theirs.fuse_tokens
    return not same or ours.blocks != theirs.blocks or online.ranker != ranker_of(header)


def _asked(plan: AgreePlan, batch: RankedViews) -> Callable[[], Seen]:
    """Rank one batch's images, on a GPU without waiting for it; the call that comes back waits, and compares."""
    selector = plan.online.selector
    pixels = Pixels(selector.frame.mean, selector.frame.std)
    precision = Precision.of(plan.config.amp, plan.config.amp_dtype, selector.device)
    with torch.no_grad(), precision():
        images = pixels(batch.images.to(selector.device))
        selection = plan.online.ranking(pixels)(images)
        scores = [selector.scores(images).float()] if isinstance(selector, Scoring) else []
    reading, known = read_later([*selection, *scores]), batch.without_images()

    def seen() -> Seen:
        rankings, gap, *scored = reading()
        return _seen(plan, known, rankings, gap, next(iter(scored), None))

    return seen


def _seen(plan: AgreePlan, batch: RankedViews, rankings: Tensor, gap: Tensor, scores: Tensor | None) -> Seen:
    """One batch's images, ranked int64 [B, P] with gaps float32 [B], by scores float32 [B, P] where there are any."""
    k = plan.k
    if bool(gap.isnan().any()):
        key = batch.keys[int(gap.isnan().nonzero()[0])]
        raise InputError(f"key {shown(key)}: the selector's scores of its view are no numbers: look at its weights")
    if batch.hidden is not None and plan.config.hidden == "demote":
        rankings = demote(rankings, batch.hidden)
    own = rankings[:, :k]
    others = [ranking[:, :k] for ranking in (batch.moved, batch.unmoved, batch.drawn)]
    num_patches = plan.store.header.grid.num_patches
    common = np.stack([num_shared(own.numpy(), other.numpy(), num_patches) for other in others], axis=1)
    caught = np.stack([_caught(scores, other, own) for other in others], axis=1)
    return Seen(common, caught, batch.area, batch.mirrored)


def _caught(scores: Tensor | None, ours: Tensor, own: Tensor) -> np.ndarray:
    """Float64 [B]: score of `ours` int64 [B, k] as a share of that of `own`; NaN without scores that have shares."""
    if scores is None or bool((scores < 0).any()):
        return np.full(len(own), np.nan)
    ours_sum, own_sum = (scores.double().gather(1, patches).sum(dim=1) for patches in (ours, own))
    return (ours_sum / own_sum).numpy()
