"""`dlth tickets agree`: figures that a few lines by hand give too, and files that cannot be compared."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from makers.runs import KWARGS, SMALL
from makers.tickets import select_tickets
from safetensors.torch import save_file

from dlth.data.images.augment import Augmentation, augment
from dlth.data.images.decode import decode
from dlth.data.loading.order import epoch_order
from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.agreement import read_agreement, write_agreement
from dlth.pipeline.selection.agree import agree, plan_agreement
from dlth.pipeline.selection.agree_config import AgreeConfig
from dlth.tickets import SelectorInfo, TicketStore, View, ViewSpec, project
from dlth.tickets.derive.controls import control
from dlth.tickets.errors import DamageError, InputError
from dlth.tickets.format.provenance import RANKER
from dlth.training.models.pixels import Pixels
from dlth.training.selectors.evit import Selector
from dlth.training.settings.layering import checked

MODEL = "vit_tiny_patch16_224"
WHOLE = {"scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3), "hflip": 0.0}
"""The whole of an image of 48 x 64 pixels."""
Dlth = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(make_shards: Callable[..., Any], tmp_path: Path, dlth: Dlth) -> dict[str, Any]:
    """Shards of 12 images, a selector's weights, and the tickets that stage 1 makes of both: 8 of 16 patches."""
    data = make_shards(2, 6).spec
    torch.manual_seed(0)
    vit = timm.create_model(MODEL, num_classes=4, img_size=32, **(KWARGS | {"depth": 2}))
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight *= 10  # attention that differs from patch to patch
    weights, file = tmp_path / "selector.safetensors", tmp_path / "train.zarr"
    save_file(vit.state_dict(), weights)
    sized = ("--num-classes", 4, "--keep", "0.5", "--blocks", "0,1", "--workers", 0, "--data", data)
    assert dlth("select", *SMALL, *sized, "--checkpoint", weights, "--out", file)[0] == 0
    words = {"selector": MODEL, "selector_checkpoint": str(weights), "selector_kwargs": KWARGS | {"depth": 2}}
    words |= {"selector_blocks": (0, 1), "img_size": 32, "workers": 0, "seed": 7, "batch_size": 5, "device": "cpu"}
    return {"data": data, "file": file, "vit": vit.eval(), "settings": {**words, "data": data}}


def compared(world: dict[str, Any], note: Callable[[str], None] = lambda text: None, **changes: Any) -> Any:
    config = checked(AgreeConfig, world["settings"] | changes)
    return agree(plan_agreement(TicketStore(world["file"]), config, note))


def test_in_the_view_that_stage_1_saw_tickets_are_the_selectors_own(world: dict[str, Any]) -> None:
    """The whole image, uncropped: every patch in common, all of the score caught; moved or not is the same."""
    whole = {"train_interpolation": "bicubic", **WHOLE}
    (row, *_) = compared(world, **whole).rows
    assert (row.views, row.num_images) == ("all", 12)
    assert row.projected == row.not_moved
    assert (row.projected.share, row.projected.iou, row.projected.caught) == (1.0, 1.0, 1.0)
    assert row.random.share < 0.8


def test_without_flags_it_ranks_as_the_tickets_did_but_by_no_code_that_a_file_names(
    world: dict[str, Any], dlth: Dlth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of another ranker and block: both are taken and said, a flag wins; a module named in a header is not
    imported.
    """
    of_vit = ("--num-classes", 4, "--keep", "0.5", "--workers", 0, "--data", world["data"], "--ranker", "cls-attention")
    weights, file = world["settings"]["selector_checkpoint"], tmp_path / "other.zarr"
    assert dlth("select", *SMALL, *of_vit, "--blocks", "0", "--checkpoint", weights, "--out", file)[0] == 0
    said: list[str] = []
    plain = {"train_interpolation": "bicubic", **WHOLE, "selector_blocks": None}
    assert compared(world | {"file": file}, said.append, **plain).rows[0].projected.share == 1.0
    assert "blocks 0, ranked by cls-attention" in said[-1]
    assert "another selector" not in said[-1]
    by_flag = compared(world | {"file": file}, said.append, **plain | {"selector_ranker": "feature-norm"})
    assert by_flag.selector["ranker"] == "feature-norm"
    monkeypatch.chdir(tmp_path)
    Path("own_ranker.py").write_text("open('imported', 'w')")
    header = {"selector": SelectorInfo(MODEL, "", "", (0,)), "extensions": {RANKER: "own_ranker:made"}}
    strange = select_tickets(open_index(world["data"]), tmp_path / "strange.zarr", **header).path
    found = compared(world | {"file": strange}, said.append, **plain)
    assert (found.selector["ranker"], Path("imported").exists()) == ("evit", False)
    assert "another selector than the one in the loop" in said[-1]


def test_figures_are_those_of_a_loop_by_hand(world: dict[str, Any]) -> None:
    """Crops and mirrors of a run's first epoch: the shares, IoU, score caught and counts by area are counted anew."""
    said: list[str] = []
    found = compared(world, said.append, images=9, scale=(0.2, 1.0), selector_blocks=(0,))
    assert any("another selector than the one in the loop, or of other blocks" in text for text in said)
    index, store = open_index(world["data"]), TicketStore(world["file"])
    selector = Selector(world["vit"], blocks=(0,), keep="0.5")
    crops = Augmentation(size=(32, 32), scale=(0.2, 1.0), mean=(0.5,) * 3, std=(0.5,) * 3)
    shares, caught, areas = [], [], []
    for number in epoch_order(np.diff(index.row_start), 7, 0)[:9].tolist():
        key, picture = index.key(number), decode(index.read(number), where="")
        seen = augment(picture, crops, selector.grid, 7, 0, key)
        pixels = Pixels((0.5,) * 3, (0.5,) * 3)(seen.image[None])
        own = set(selector.rank(pixels)[0, :8].tolist())
        ranking = store.patches_at(np.array([number]))
        moved = project(ranking, View.whole(selector.grid), seen.view)[0, :8].tolist()
        scores = selector.scores(pixels)[0].double()
        shares.append(len(own & set(moved)) / 8)
        caught.append(float(scores[moved].sum() / scores[sorted(own)].sum()))
        areas.append((abs(np.linalg.det(seen.view.matrix[:, :2])), seen.view.matrix[0, 0] < 0))
    every = found.rows[0].projected
    assert every.share == pytest.approx(np.mean(shares))
    assert every.spread == pytest.approx(np.std(shares))
    assert every.iou == pytest.approx(np.mean([share / (2 - share) for share in shares]))
    assert every.caught == pytest.approx(np.mean(caught))
    assert 0.5 < every.caught < 1.0
    counts = {row.views: row.num_images for row in found.rows}
    assert counts["all"] == 9
    assert counts.get("area 0.25 to 0.5", 0) == sum(0.25 <= area < 0.5 for area, _ in areas)
    assert counts["mirrored"] == sum(mirrored for _, mirrored in areas)
    assert counts["mirrored"] + counts["not mirrored"] == 9


def test_the_command_gives_the_same_with_worker_processes_and_leaves_a_file(
    world: dict[str, Any], dlth: Dlth, tmp_path: Path
) -> None:
    """JSON, the table and the file left for a report say what the function says, hidden patches demoted on both sides;
    one number altered in the file is damage, and whatever is no agreement keeps its place."""
    drawn = ("--aa", "rand-m9-mstd0.5", "--reprob", "0.5", "--images", 8, "--seed", 7, "--batch-size", 5)
    kwargs = ",".join(f"{name}={value}" for name, value in (KWARGS | {"depth": 2}).items())
    words = ("--selector", world["settings"]["selector_checkpoint"], "--selector-kwargs", kwargs, "--img-size", 32)
    assert "--selector" in dlth("tickets", "agree", world["file"], *words, "--data", world["data"])[2]
    named = ("--selector-checkpoint", words[1], *words[2:], "--selector", MODEL, "--selector-blocks", "0,1")
    out = tmp_path / "agreement.json"
    call = ("tickets", "agree", world["file"], *named, *drawn, "--data", world["data"], "--out", out, "--workers", 1)
    code, text, _ = dlth(*call, "--json")
    assert code == 0
    expected = compared(world, aa="rand-m9-mstd0.5", reprob=0.5, images=8)
    assert json.loads(text)["rows"] == json.loads(json.dumps([asdict(row) for row in expected.rows]))
    assert expected.views["hidden"] == "demote"
    assert json.dumps(asdict(read_agreement(out))) == json.dumps(asdict(expected))
    _, table, told = dlth(*call)
    assert "not moved" in table
    assert "by chance 0.500" in table
    assert "agreement.json" in told
    out.write_text(out.read_text().replace('"num_images": 8', '"num_images": 9', 1))
    with pytest.raises(DamageError, match="damaged"):
        read_agreement(out)
    damaged = out.read_text()
    code, _, told = dlth(*call, "--dry-run")
    assert code == 2
    assert "holds something else" in told
    with pytest.raises(InputError, match="holds something else"):
        write_agreement(out, expected)
    assert out.read_text() == damaged


def test_what_cannot_be_compared_is_refused(
    world: dict[str, Any], make_shards: Callable[..., Any], tmp_path: Path, dlth: Dlth
) -> None:
    """A control, tickets of another grid, a set without order, other images: one error each, which says what to do."""
    kwargs = ",".join(f"{name}={value}" for name, value in (KWARGS | {"depth": 2}).items())
    named = ("--selector", MODEL, "--selector-kwargs", kwargs, "--img-size", 32, "--workers", 0)
    named += ("--selector-checkpoint", world["settings"]["selector_checkpoint"])
    index, data = open_index(world["data"]), world["data"]
    control(TicketStore(world["file"]), "centre").write(tmp_path / "centre.zarr")
    coarse = select_tickets(index, tmp_path / "coarse.zarr", view=ViewSpec("whole", 24, 24)).path
    best = select_tickets(index, tmp_path / "best.zarr", form="top").path
    others = make_shards(1, 3, split="others", seed=5, folder=tmp_path / "b").spec
    for file, shards, problem in (
        (tmp_path / "centre.zarr", data, "a control, which no selector chose"),
        (coarse, data, "the selector ranks 4x4 patches, the tickets have 3x3"),
        (best, data, "needs 'full'"),
        (world["file"], others, "no image has a ticket"),
    ):
        code, _, told = dlth("tickets", "agree", file, *named, "--data", shards)
        assert (code, problem in told.replace("\n", " ")) == (2, True), told


def test_the_next_views_are_queued_before_a_selectors_answer_is_read(world: dict[str, Any]) -> None:
    """On a device whose numbers cannot be read, rankings and scores of two batches are asked for before any is."""
    asked = plan_agreement(TicketStore(world["file"]), checked(AgreeConfig, world["settings"]))
    selector, embedded = asked.online.selector.to("meta"), []
    selector.vit.patch_embed.register_forward_hook(lambda module, images, tokens: embedded.append(len(tokens)))
    with pytest.raises(NotImplementedError, match="meta"):
        agree(asked)
    assert embedded == [5, 5, 5, 5]
