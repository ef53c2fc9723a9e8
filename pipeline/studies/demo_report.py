"""What the demo reports: what came out, whether it bears the claim, and how to make it again.

Numbers come from the files that the runs left (result.json, metrics.jsonl, eval.npz, the ticket files), so the report
can be made again without training, and cannot say anything that no run said.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dlth.data.images.decode import decode
from dlth.data.shards.index import ShardIndex, open_index
from dlth.pipeline.judging.arm_comparison import Comparison, compare_arms
from dlth.pipeline.pages import figures
from dlth.pipeline.pages.report import Picture, Report, Section, Table, Verdict, write_page
from dlth.tickets import TicketStore
from dlth.tickets.errors import MismatchError
from dlth.training import Selector, TicketViT
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.models.registry import build
from dlth.training.models.weights import load_weights
from dlth.training.runs.result import MAX_RESULT_BYTES
from dlth.training.runs.runlog import RESULT, logged_epochs
from dlth.training.runs.sealed_json import read_sealed
from dlth.training.settings.comparable import comparable

ARMS = ("ticket", "random", "dense")
TOKENS = ("dense", "ticket", "random")
"""The arms whose tokens every model is evaluated on, in the order of the table's columns."""
MARGIN = 2.0
"""Points within which one arm counts as as good as another."""
CLAUSES = (("ticket", "as good as", "dense"), ("ticket", "better than", "random"), ("dense", "better than", "random"))
"""What the paper claims of the three arms."""
SCORED_IMAGES = 600
"""Validation images on which recall by block is scored."""


@dataclass(frozen=True)
class Runs:
    """What the students' runs left, by arm; lists are in the order of the seeds."""

    results: Mapping[str, list[dict[str, Any]]]
    epochs: Mapping[str, list[list[dict[str, Any]]]]
    images: Mapping[str, list[Mapping[str, np.ndarray]]]

    @classmethod
    def load(cls, out: Path, seeds: Sequence[int]) -> Self:
        """Read the runs' folders; raises MismatchError where a difference would not be the arms', DamageError."""

        def by_arm(read: Callable[[Path], Any]) -> dict[str, list[Any]]:
            return {arm: [read(out / f"{arm}-{seed}") for seed in seeds] for arm in ARMS}

        results = by_arm(lambda run: read_sealed(run / RESULT, MAX_RESULT_BYTES)[0])
        if differences := comparable([result for runs in results.values() for result in runs]):
            raise MismatchError("these runs cannot be compared; they differ in\n  " + "\n  ".join(differences))
        images = by_arm(lambda run: dict(np.load(run / "eval.npz", allow_pickle=False)))
        return cls(results, by_arm(logged_epochs), images)

    def top1(self, arm: str, tokens: str) -> list[float]:
        """Accuracies in percent of an arm's seeds, evaluated on the tokens of an arm."""
        return [run["evaluation"]["model"][tokens]["top1"] for run in self.results[arm]]

    def compare(self, first: str, second: str) -> Comparison:
        """Two arms, each on the tokens it is judged by."""
        hits = [np.stack([run[f"{judged_on(arm)}_top1"] for run in self.images[arm]]) for arm in (first, second)]
        return compare_arms(hits[0], hits[1], MARGIN)


def judged_on(arm: str) -> str:
    """The arm whose tokens an arm is judged on: its own at test time; for the random arm that is the selector's."""
    return "dense" if arm == "dense" else "ticket"


def write_demo_report(
    out: Path, seeds: Sequence[int], weights: Path, model: Mapping[str, Any], commands: Sequence[str]
) -> Path:
    """Write `report.html` and its PNG pictures to the demo's folder; returns the HTML file's path."""
    runs = Runs.load(out, seeds)
    store = TicketStore(out / "tickets" / "val.zarr")
    index = open_index(str(out / "shards" / "val-*.tar"))
    known = json.loads((out / "shards" / "informative.json").read_text())
    recall = ticket_recall(store, known)
    by_block = recall_by_block(index, known, weights, model, store.header.keep)
    report = Report(
        title="Winning tickets among handwritten digits",
        lead=_lead(runs, store),
        verdicts=verdicts(runs),
        sections=(
            _ticket_section(store, index, known, recall),
            _accuracy_section(runs),
            _difference_section(runs),
            _recall_section(by_block, store),
            _curve_section(runs),
            _cost_section(runs, store, model),
            Section("How it was made", commands=tuple(commands)),
        ),
        footer=_footer(runs, store),
    )
    return write_page(report, out / "report.html")


def ticket_recall(store: TicketStore, known: Mapping[str, Sequence[int]]) -> float:
    """Mean share of an image's known patches among the first k of its ticket."""
    shares = []
    for shard in range(len(store.shards)):
        rows = store.read(shard)
        for key, ranking in zip(rows.keys, rows.patches[:, : store.header.k], strict=True):
            shares.append(np.isin(known[key], ranking).mean())
    return float(np.mean(shares))


def recall_by_block(
    index: ShardIndex, known: Mapping[str, Sequence[int]], weights: Path, model: Mapping[str, Any], keep: str
) -> dict[str, float]:
    """Recall of the known patches when the selector scores at one block, or at three in a row."""
    vit = build(model["model"], num_classes=model["num_classes"], img_size=model["img_size"], **model["model_kwargs"])
    load_weights(vit, weights)
    count = min(SCORED_IMAGES, index.num_samples)
    keys = [index.key(i) for i in range(count)]
    images = torch.stack(
        [decode(data, where=key) for key, data in zip(keys, index.read_many(list(range(count))), strict=True)]
    )
    frame = Frame.of(vit)
    pixels = Pixels(frame.mean, frame.std)(images)
    depth = model["model_kwargs"]["depth"]
    choices = [(block,) for block in range(depth)] + [tuple(range(depth - 3, depth))]
    recalls = {}
    for blocks in choices:
        selector = Selector(vit, blocks=blocks, keep=keep)
        rankings = selector.rank(pixels).numpy()[:, : selector.budget.k]
        hits = [np.isin(known[key], ranking).mean() for key, ranking in zip(keys, rankings, strict=True)]
        name = f"block {blocks[0]}" if len(blocks) == 1 else "blocks " + ", ".join(map(str, blocks))
        recalls[name] = float(np.mean(hits))
    return recalls


def step_gflops(model: Mapping[str, Any], k: int | None) -> float:
    """GFLOP of one image's forward and backward, keeping k patches (None: all)."""
    vit = build(model["model"], num_classes=model["num_classes"], img_size=model["img_size"], **model["model_kwargs"])
    student, side = TicketViT(vit), model["img_size"]
    patches = None if k is None else torch.arange(k)[None]
    counter = FlopCounterMode(display=False)
    with counter:
        student(torch.zeros(1, 3, side, side), patches).sum().backward()
    return counter.get_total_flops() / 1e9


def _lead(runs: Runs, store: TicketStore) -> str:
    header, result = store.header, runs.results["ticket"][0]
    return (
        f"A small vision transformer learns ten digits, each drawn into 4 of the {header.grid.num_patches} patches of a"
        f" cluttered canvas. Three arms see the same images in the same order for {result['epochs']} epochs: the"
        f" {header.k} patches that a selector chose (ticket), as many random ones (random), all of them (dense)."
    )


def verdicts(runs: Runs) -> tuple[Verdict, ...]:
    """The paper's clauses, each held against the runs; with fewer than three seeds none is decided."""
    return tuple(_verdict(runs, *clause) for clause in CLAUSES)


def _verdict(runs: Runs, first: str, claim: str, second: str) -> Verdict:
    came, as_good = runs.compare(first, second), claim == "as good as"
    one, two = (f"{np.mean(runs.top1(arm, judged_on(arm))):.1f} %" for arm in (first, second))
    within = f" within {MARGIN:g} points" if as_good else ""
    tested = f"equivalence p = {came.equivalence_p_value:.2g}" if as_good else f"p = {came.p_value:.2g}"
    figures = f"{one} against {two}, {came.difference:+.1f} points, 95 % interval {_interval(came)}, {tested}"
    outcome = came.as_good if as_good else came.better
    if came.about == "models":
        outcome, figures = "not decided", f"fewer than three seeds say nothing of arms. These models: {figures}"
    return Verdict(outcome, f"The {first} arm is {claim} the {second} arm{within}: {figures}.")


def _interval(came: Comparison) -> str:
    return f"{came.low:+.1f} to {came.high:+.1f}"


def _ticket_section(
    store: TicketStore, index: ShardIndex, known: Mapping[str, Sequence[int]], recall: float
) -> Section:
    header, rows = store.header, store.read(0)
    count = min(12, len(rows.keys))
    panels = []
    for key, ranking, data in zip(rows.keys[:count], rows.patches, index.read_many(list(range(count))), strict=False):
        image = figures.enlarged(decode(data, where=key).permute(1, 2, 0).numpy())
        pictures = (image, figures.kept_only(image, ranking, header.k, header.grid))
        panels.append([figures.outlined(each, np.array(known[key]), header.grid, figures.KNOWN) for each in pictures])
    names = ("image", f"the {header.k} patches of its ticket")
    sheet = figures.panel_sheet(panels, [f"a {index.label[i]}" for i in range(count)], names)
    caption = (
        f"Validation images, and what their tickets of {header.k} patches leave; outlined: the four patches that carry"
        f" the digit. Mean recall of those over all validation images: {recall:.3f}."
    )
    return Section("Tickets", pictures=(Picture("tickets", sheet, caption),))


def _accuracy_section(runs: Runs) -> Section:
    values = {arm: {tokens: runs.top1(arm, tokens) for tokens in TOKENS} for arm in ARMS}
    rows = tuple((f"{arm} arm", *map(_spread, table.values())) for arm, table in values.items())
    caption = (
        "Bars are means, dots are seeds. Every model is evaluated on all patches, the selector's, and random ones."
    )
    ticket = runs.results["ticket"][0]
    return Section(
        "Accuracy",
        texts=(
            f"Top-1 accuracy in percent, mean ± standard deviation over {len(runs.results['ticket'])} seeds, on"
            " the whole validation set. Arms are compared on the tokens that they are meant for: dense on all, ticket"
            " and random on the selector's.",
            f"The ticket arm is trained on tickets of {ticket['tickets_are']}; ticket tokens are, for every arm, those"
            f" of {ticket['val_tickets_are']}.",
        ),
        tables=(Table(("trained on", "all tokens", "ticket tokens", "random tokens"), rows),),
        pictures=(Picture("accuracy", figures.accuracies(values), caption),),
    )


def _difference_section(runs: Runs) -> Section:
    rows = []
    for first, _, second in CLAUSES:
        came = runs.compare(first, second)
        tests = (f"{came.p_value:.2g}", f"{came.equivalence_p_value:.2g}")
        rows.append((f"{first} − {second}", f"{came.difference:+.1f}", _interval(came), *tests))
    if came.about == "arms":
        text = (
            f"These are statements about arms: {came.num_seeds} runs of each and {came.num_images:,} images are taken"
            " as samples, so an interval says where the difference would lie with other seeds and other images."
        )
    else:
        text = (
            "These are statements about the models at hand, not about arms: other images could have come, but other"
            " seeds are not considered, and they would move the difference too."
        )
    limits = (
        "They hold for arms trained as here: this small model, these images, so many epochs. Not decided means that"
        " these runs can neither show nor exclude it; more seeds (--seeds) narrow the intervals."
    )
    columns = ("difference", "points", "95 % interval", "p (no difference)", f"p ({MARGIN:g} points or more)")
    return Section("Differences", texts=(text, limits), tables=(Table(columns, tuple(rows)),))


def _recall_section(by_block: Mapping[str, float], store: TicketStore) -> Section:
    chance = store.header.k / store.header.grid.num_patches
    caption = (
        f"Recall of the known patches by where the selector scores, {SCORED_IMAGES} validation images,"
        f" {store.header.k} patches kept. This file was made at block"
        f" {', '.join(map(str, store.header.selector.blocks))}."
    )
    return Section(
        "Where the selector looks",
        texts=(
            "After the first block, tokens carry their neighbours' content, and the class token's attention need not"
            " stay where the pixels are. Which blocks select is the user's choice (--blocks), and worth a look.",
        ),
        pictures=(Picture("recall", figures.recalls(list(by_block), list(by_block.values()), chance), caption),),
    )


def _curve_section(runs: Runs) -> Section:
    top1 = {arm: _by_epoch(runs.epochs[arm], f"eval_{judged_on(arm)}_top1") for arm in ARMS}
    loss = {arm: _by_epoch(runs.epochs[arm], "train_loss") for arm in ARMS}
    return Section(
        "Curves",
        pictures=(
            Picture(
                "curves-accuracy",
                figures.curves(top1, "top-1 accuracy, %"),
                "Validation accuracy by epoch; dense on all tokens, the others on ticket tokens. One line a seed.",
            ),
            Picture("curves-loss", figures.curves(loss, "training loss"), "Training loss by epoch."),
        ),
    )


def _by_epoch(runs: Sequence[Sequence[Mapping[str, Any]]], column: str) -> list[list[tuple[int, float]]]:
    """For each run the epochs, from 1, at which it has a value in the column, and the value."""
    return [[(row["epoch"] + 1, row[column]) for row in run if row.get(column) is not None] for run in runs]


def _cost_section(runs: Runs, store: TicketStore, model: Mapping[str, Any]) -> Section:
    rows = []
    dense_gflops = step_gflops(model, None)
    dense_ms = _step_ms(runs.results["dense"])
    for arm in ARMS:
        gflops = step_gflops(model, None if arm == "dense" else store.header.k)
        ms = _step_ms(runs.results[arm])
        cost = (f"{gflops:.4f}", f"{gflops / dense_gflops:.2f}", f"{ms:.0f}", f"{ms / dense_ms:.2f}")
        rows.append((f"{arm} arm", f"{runs.results[arm][0]['k']}", *cost))
    columns = ("arm", "patches", "GFLOP per image", "of dense", "ms of compute per step", "of dense")
    return Section(
        "Cost of a training step",
        texts=("FLOPs are counted (forward and backward); times are the runs' own means over all steps.",),
        tables=(Table(columns, tuple(rows)),),
    )


def _step_ms(results: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([1000 * run["throughput"]["compute_seconds"] / run["steps"] for run in results]))


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def _footer(runs: Runs, store: TicketStore) -> str:
    result = runs.results["ticket"][0]
    versions = ", ".join(f"{name} {text}" for name, text in result["versions"].items())
    seeds = ", ".join(str(run["seed"]) for run in runs.results["ticket"])
    return f"Ticket file {store.identity}. Seeds {seeds}. Mode {result['mode']}. Device {result['device']}. {versions}."
