"""Evaluation: exact averages, the same from a run and from its checkpoint, per image, for any weights."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from makers.runs import Listener
from makers.tickets import select_tickets
from safetensors.torch import load_file, save_file

from dlth.data.images.decode import decode
from dlth.data.images.views import render
from dlth.data.shards.index import open_index
from dlth.pipeline.cli.training import show_evaluation
from dlth.tickets import TicketStore, ViewSpec
from dlth.tickets.derive.controls import control
from dlth.tickets.errors import InputError, MismatchError
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.models.ticket_vit import TicketViT
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.runs.checkpoint import write_tensors
from dlth.training.runs.loop import planned, train
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]


def settings(config: TrainConfig, **overrides: object) -> EvalConfig:
    values = {"checkpoint": config.out, "val": config.val, "val_tickets": config.val_tickets}
    return EvalConfig(**{**values, "workers": 0, "batch_size": 4, "device": "cpu", **overrides})


def test_a_checkpoint_gives_what_its_run_reported_whatever_the_batch(make_run: MakeRun, tmp_path: Path) -> None:
    """The file names its model and budget; accuracies are equal and losses agree to 1e-6, in batches of 4 or 8."""
    config = make_run(model_ema=True, model_ema_decay=0.5, mean=(0.4, 0.4, 0.4))
    reported = train(config).evaluation
    for weights, use_ema in (("model", False), ("ema", True)):
        table = evaluate(settings(config, use_ema=use_ema, out=str(tmp_path / "images.npz"))).table()
        for kind, row in reported[weights].items():
            assert {name: table[kind][name] for name in ("top1", "top5", "images", "tokens")} == {
                name: row[name] for name in ("top1", "top5", "images", "tokens")
            }
            assert table[kind]["loss"] == pytest.approx(row["loss"], abs=1e-6)
    with np.load(tmp_path / "images.npz", allow_pickle=False) as images:
        assert images["keys"].tolist() == [key for s in range(2) for key in open_index(config.val).keys(s)]
        assert images["random_loss"].mean(dtype=np.float64) == pytest.approx(
            reported["ema"]["random"]["loss"], abs=1e-6
        )


def test_the_numbers_are_those_of_a_hand_made_loop(make_run: MakeRun) -> None:
    """Every image alone, through timm's model and its ticket from the file: the same loss and the same hits."""
    config = make_run(epochs=1, warmup_epochs=0)
    train(config)
    result = evaluate(settings(config))
    model = timm.create_model(config.model, img_size=32, num_classes=4, **config.model_kwargs).eval()
    model.load_state_dict(load_file(Path(config.out) / "model.safetensors"))
    student, index, store = TicketViT(model), open_index(config.val), TicketStore(config.val_tickets)
    losses, hits = {"dense": [], "ticket": []}, {"dense": [], "ticket": []}
    for number in range(index.num_samples):
        pixels = render(decode(index.read(number), where="test"), ViewSpec("center", 32, 32, "0.9", "bicubic"))
        image = (pixels[None] / 255 - 0.5) / 0.5
        shard, row = store.find(index.key(number))
        ticket = torch.from_numpy(store.patches(shard)[row][None, :8].astype(np.int64))
        for kind, patches in (("dense", None), ("ticket", ticket)):
            with torch.inference_mode():
                logits = student(image, patches)
            losses[kind].append(F.cross_entropy(logits, torch.tensor([int(index.label[number])])).item())
            hits[kind].append(int(logits.argmax()) == int(index.label[number]))
    for kind in losses:
        assert result.results[kind].loss == pytest.approx(np.array(losses[kind]), abs=1e-5)
        assert result.results[kind].top1.tolist() == hits[kind]


def test_a_checkpoint_folder_of_the_loop_evaluates_too(make_run: MakeRun) -> None:
    """Weights inside a training checkpoint are a file like any other, and know what they are."""
    config = make_run(epochs=1, warmup_epochs=0)
    result = train(config)
    inside = next(Path(config.out).glob("checkpoints/step-*/model.safetensors"))
    table = evaluate(settings(config, checkpoint=str(inside))).table()
    assert table["ticket"]["top1"] == result.evaluation["model"]["ticket"]["top1"]


def test_weights_know_the_crop_and_the_random_tokens_of_their_run(make_run: MakeRun) -> None:
    """crop_pct and seed come from the file: every kind of tokens gives the run's numbers; flags still win."""
    config = make_run(crop_pct=0.6, seed=7, epochs=1, warmup_epochs=0)
    reported = train(config).evaluation["model"]
    losses = {kind: row["loss"] for kind, row in evaluate(settings(config)).table().items()}
    assert losses == pytest.approx({kind: row["loss"] for kind, row in reported.items()}, abs=1e-6)
    notes: list[str] = []
    other = evaluate(settings(config, crop_pct=1.0, seed=8), notes.append).table()
    assert all(abs(other[kind]["loss"] - losses[kind]) > 1e-5 for kind in losses)
    assert any(f"against what {config.out} records of itself: --crop-pct 1.0 (recorded: 0.6)" in n for n in notes)


def test_validation_tickets_say_the_view_unless_a_user_does(make_run: MakeRun, tmp_path: Path) -> None:
    """Training and evaluation take the tickets' crop, not one that weights merely record; where a user chose another,
    in training or now, it is kept, and coverage and result name both.
    """
    config = make_run(epochs=1, warmup_epochs=0)
    insisting = make_run("insisting", crop_pct=1.0, epochs=1, warmup_epochs=0)
    taken, kept = train(config), train(insisting)
    assert (taken.val_view, kept.val_view) == ("center 32x32, crop 0.9, bicubic", "center 32x32, crop 1, bicubic")
    assert taken.val_tickets_view == kept.val_tickets_view == "center 32x32, crop 0.9, bicubic"
    assert "moved" not in taken.data["coverage"]["val"]
    told = (
        f"tickets made on {kept.val_tickets_view} are moved to the evaluation's {kept.val_view}; the selector never saw"
    )
    assert told in kept.data["coverage"]["val"]

    written = Path(insisting.out) / "model.safetensors"
    note = WeightsNote.read(written)
    assert note is not None
    recorded = tmp_path / "recorded.safetensors"
    write_tensors(recorded, load_file(written), note.model_copy(update={"crop_chosen": False}).model_dump(mode="json"))
    notes: list[str] = []
    found = evaluate(settings(insisting, checkpoint=str(recorded)), notes.append).table()
    assert found["ticket"]["view"] == found["ticket"]["tickets_view"] == taken.val_view
    assert any("seen as their tickets were made" in note and "not with crop_pct 1.0" in note for note in notes)
    for options in ({}, {"crop_pct": 1.0, "checkpoint": str(recorded)}):
        notes.clear()
        again = evaluate(settings(insisting, **options), notes.append).table()
        assert any(told in note for note in notes)
        assert again["ticket"]["loss"] == pytest.approx(kept.evaluation["model"]["ticket"]["loss"], abs=1e-6)
    assert again["ticket"]["loss"] != pytest.approx(found["ticket"]["loss"], abs=1e-4)


def test_tickets_for_evaluation_given_for_training_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    """Before the first step: a centre view and a validation split are told; a split of another name is refused."""
    base = make_run(val=None, val_tickets=None)
    view = ViewSpec("center", 32, 32, "0.9")
    tickets = select_tickets(open_index(base.data), tmp_path / "centre.zarr", view=view, split="val").path
    config = make_run(val=None, val_tickets=None, tickets=str(tickets))
    listener = Listener()
    told = listener.notes
    planned(config, reporter=listener)
    assert any(
        "training: these tickets were made on center 32x32, crop 0.9, bicubic, outside of which nothing has a rank"
        in text
        and "for the split 'val': they look like tickets for evaluation" in text
        for text in told
    )
    with pytest.raises(MismatchError, match="split: the file is for 'val', the images are 'train'"):
        planned(config.model_copy(update={"split": "train"}))
    told.clear()
    planned(base, reporter=listener)
    assert not any("look like" in text for text in told)


def test_results_tables_and_curves_say_whose_tickets_they_are_of(make_run: MakeRun, tmp_path: Path) -> None:
    """A control's run differs in words, not in an identity alone: in the result, the summary and the evaluation."""
    config = make_run(epochs=1, warmup_epochs=0)
    centre = control(TicketStore(config.tickets), "centre").write(tmp_path / "centre.zarr")
    other = make_run("centre", tickets=str(tmp_path / "centre.zarr"), epochs=1, warmup_epochs=0)
    plain = "selector tiny (weights unknown, random), blocks 0"
    made = f"made from tickets of tiny (identity {TicketStore(config.tickets).identity[:12]}…)"
    result = train(other)
    assert result.tickets == centre.identity
    assert (result.tickets_are, result.val_tickets_are) == (f"control: centre; {made}", plain)
    (row,) = csv.DictReader((Path(other.out) / "summary.csv").open())
    assert (row["tickets_are"], row["val_tickets_are"]) == (result.tickets_are, plain)
    assert evaluate(settings(other)).table()["ticket"]["tickets_are"] == plain
    assert train(make_run("random", arm="random", epochs=1, warmup_epochs=0)).tickets_are == ""


def test_evaluation_says_how_images_and_tickets_met(make_run: MakeRun) -> None:
    """The report of the join is passed on, not swallowed."""
    config = make_run(epochs=1, warmup_epochs=0)
    train(config)
    notes: list[str] = []
    evaluate(settings(config), notes.append)
    assert any("validation: tickets for 11 of 11 images" in note for note in notes)


def test_foreign_weights_need_a_model_name(make_run: MakeRun, tmp_path: Path) -> None:
    """A .pth of timm's form says nothing of its model: the name is asked for, and then it is measured densely."""
    config = make_run()
    index = open_index(config.val)
    model = timm.create_model(config.model, img_size=32, num_classes=4, **config.model_kwargs)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "foreign.pth")
    foreign = settings(config, checkpoint=str(tmp_path / "foreign.pth"), val_tickets=None)
    with pytest.raises(InputError, match=r"foreign\.pth does not say of which model it is: give --model"):
        evaluate(foreign)
    named = {"model": config.model, "model_kwargs": config.model_kwargs, "img_size": 32}
    result = evaluate(foreign.model_copy(update=named))
    assert json.dumps(sorted(result.table())) == '["dense"]'
    assert result.labels.tolist() == index.label.tolist()
    with pytest.raises(MismatchError, match="does not fit"):
        evaluate(foreign.model_copy(update=named | {"img_size": 48}))


@pytest.mark.parametrize(("missing", "shown_as"), [("dense", "whole"), ("random", "random")])
def test_images_measured_without_a_ticket_are_counted_in_the_tickets_row(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], missing: str, shown_as: str
) -> None:
    """21 of 32 images have a ticket: the row says how many have none, the table and a note too, and who they are."""
    config = make_run(epochs=1, warmup_epochs=0, val=None, val_tickets=None)
    train(config)
    both = {"val": str(Path(config.data).parent / "*" / "*.tar"), "val_tickets": config.tickets}
    notes: list[str] = []
    result = evaluate(settings(config, missing=missing, **both), notes.append)
    row, ticket, stand_ins = result.table()["ticket"], result.results["ticket"], result.stand_ins
    assert (row["images"], row[shown_as], stand_ins.sum()) == (32, 11, 11)
    assert row["top1_with_ticket"] == pytest.approx(100 * ticket.top1[~stand_ins].mean())
    assert np.array_equal(
        ticket.loss[stand_ins], result.results["dense" if missing == "dense" else "random"].loss[stand_ins]
    )
    assert not np.array_equal(ticket.loss, result.results["dense"].loss)
    assert any("11 of the 32 images under 'ticket' have none and were measured on" in note for note in notes)
    assert {"whole", "random", "top1_with_ticket"}.isdisjoint(result.table()["dense"])
    show_evaluation({"model": result.table()})
    printed = "".join(capsys.readouterr())
    assert f"ticket, 11 of 32 {shown_as}" in printed


def test_outputs_that_are_no_numbers_are_no_answers(make_run: MakeRun, tmp_path: Path) -> None:
    """NaN logits, sorted, name the lowest class: they count as wrong and are told, whatever the label."""
    config = make_run(arm="dense", tickets=None, val_tickets=None, epochs=1, warmup_epochs=0)
    train(config)
    weights = load_file(f"{config.out}/model.safetensors")
    weights["head.bias"] = weights["head.bias"] * float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    about = {"model": config.model, "model_kwargs": config.model_kwargs, "img_size": config.img_size}
    told: list[str] = []
    result = evaluate(settings(config, checkpoint=str(tmp_path / "nan.safetensors"), **about), told.append)
    assert (result.labels == 0).any()
    assert (result.table()["dense"]["top1"], result.table()["dense"]["top5"]) == (0, 0)
    assert any("11 of 11 images on dense tokens got no numbers from the model" in text for text in told)


def test_images_are_needed(make_run: MakeRun, make_shards: Callable[..., Any]) -> None:
    """train and evaluate refuse shards without an image before the first step, for training and for validation."""
    config, none = make_run(epochs=1, warmup_epochs=0), make_shards(1, 0, split="none").spec
    for given in ({"data": none}, {"val": none}):
        with pytest.raises(InputError, match="none: 1 shards hold no image"):
            train(config.model_copy(update=given))
    train(config)
    with pytest.raises(InputError, match="none: 1 shards hold no image"):
        evaluate(settings(config, val=none))


def test_results_take_no_other_files_place(make_run: MakeRun) -> None:
    """`--out` is refused before anything is done where its name is not a result's: shards and weights stay whole."""
    config = make_run()
    shard = next(Path(str(config.val)).glob("*.tar"))
    before = shard.read_bytes()
    with pytest.raises(InputError, match=r"per-image results are a \.npz file"):
        evaluate(settings(config, out=str(shard)))
    assert shard.read_bytes() == before
