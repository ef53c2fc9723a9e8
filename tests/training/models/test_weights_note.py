"""What weights say of themselves: believed within bounds, used by every command; a flag that contradicts is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
from makers.runs import Listener
from safetensors.torch import save_file

from dlth.tickets.errors import InputError, MismatchError, MissingFileError
from dlth.training.distributed.process_group import World
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.models import weights
from dlth.training.models.pixels import Pixels
from dlth.training.models.registry import build
from dlth.training.models.weights import load_weights
from dlth.training.models.weights_metadata import WeightsFile, WeightsNote
from dlth.training.runs.loop import train
from dlth.training.runs.setup import Parts, prepare
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.recipes import RECIPES
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0}


def prepared(config: TrainConfig) -> tuple[Parts, list[str]]:
    listener = Listener()
    return prepare(config, World(0, 1, torch.device("cpu")), listener), listener.notes


def noted(path: Path, note: object) -> Path:
    save_file({"x": torch.zeros(1)}, path, {"dlth": note if isinstance(note, str) else json.dumps(note)})
    return path


@pytest.mark.parametrize(
    ("note", "field"),
    [
        ({"model": 7}, "model: "),
        ({"model": ""}, "model: "),
        ({"model": "x" * 2_000}, "model: "),
        ({}, "model: "),
        ({"model": "a", "std": [0.5, 0, 0.5]}, "std.1: "),
        ({"model": "a", "mean": [0.5, 0.5]}, "mean.2: "),
        ({"model": "a", "mean": [123.7, 116.3, 103.5]}, "mean.0: "),
        ({"model": "a", "crop_pct": 1.5}, "crop_pct: "),
        ({"model": "a", "img_size": "224"}, "img_size: "),
        ({"model": "a", "k": 0}, "k: "),
        ({"model": "a", "interpolation": "../x"}, "interpolation: "),
        ({"model": "a", "model_kwargs": {"checkpoint_path": "/etc/passwd"}}, "model_kwargs: .*checkpoint_path"),
        ({"model": "a", "model_kwargs": {"pretrained": True}}, "model_kwargs: .*pretrained"),
        ({"model": "a", "model_kwargs": {"device": "meta"}}, "model_kwargs: .*device"),
        ({"model": "a", "selection": {"blocks": [], "stage_keep": "0.7"}}, "selection.blocks: "),
        ({"model": "a", "selection": {"blocks": [-1], "stage_keep": "0.7"}}, "selection.blocks.0: "),
        ({"model": "a", "selection": {"blocks": [3], "stage_keep": "1.7"}}, "selection.stage_keep: "),
        ('{"model": "a", "mean": [NaN, 0, 0]}', "mean"),
        ("[" * 10_000, "the note: "),
        ('["model"]', "the note: "),
        ("x" * 70_000, "70000 characters is too long"),
    ],
)
def test_a_note_that_cannot_be_is_refused_by_file_and_field(tmp_path: Path, note: object, field: str) -> None:
    """The file may be a stranger's: types, lengths and ranges are checked, nothing may read or fetch files."""
    with pytest.raises(InputError, match=rf"w\.safetensors.*{field}"):
        WeightsNote.read(noted(tmp_path / "w.safetensors", note))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 10**9}, "too few for a model of depth 1000000000"),
        ({"depth": 20}, "too few for the model that is said to be in it"),
        ({"embed_dim": 2**20}, "cls_token .file 1x1x32, model 1x1x1048576"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_note_of_a_larger_model_takes_no_memory(tmp_path: Path, changed: dict[str, int], message: str) -> None:
    """The model is compared with the file's shapes before it is made: no small file can name one that fills memory."""
    vit = build("vit_tiny_patch16_224", num_classes=4, img_size=32, **TINY)
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    file = WeightsFile.find(str(tmp_path / "w.safetensors"))
    with pytest.raises(MismatchError, match=message):
        file.build("vit_tiny_patch16_224", num_classes=4, img_size=32, **(TINY | changed))
    made = file.build("vit_tiny_patch16_224", num_classes=4, img_size=32, **TINY)
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in vit.state_dict().items())


def test_a_file_is_read_once_to_build_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's size, the other shapes and the weights come from one reading, and shapes are looked at once."""
    save_file(
        build("vit_tiny_patch16_224", num_classes=4, img_size=32, **TINY).state_dict(), tmp_path / "w.safetensors"
    )
    read, built = Mock(wraps=weights.load_file), Mock(wraps=timm.create_model)
    monkeypatch.setattr(weights, "load_file", read)
    monkeypatch.setattr(timm, "create_model", built)
    vit = WeightsFile.find(str(tmp_path / "w.safetensors")).build("vit_tiny_patch16_224", img_size=32, **TINY)
    assert vit.num_classes == 4
    assert (read.call_count, built.call_count) == (1, 2), "built on the meta device, and in memory"


def test_names_of_other_versions_are_left_alone(tmp_path: Path) -> None:
    """A field that this version does not know is no error; a file without a note says nothing."""
    note = WeightsNote.read(noted(tmp_path / "w.safetensors", {"model": "a", "blocks": [3, 6, 9]}))
    assert note == WeightsNote(model="a")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert WeightsFile.find(str(tmp_path / "plain.safetensors")).note is None
    with pytest.raises(MissingFileError, match=r"holds no model\.safetensors: only a finished run has it"):
        WeightsFile.find(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "rates", "told"),
    [
        ({}, {"stage_keep": "0.7"}, ""),
        ({"stage_keep": "0.7"}, {"stage_keep": "0.7"}, ""),
        ({"stage_keep": "0.8"}, {"stage_keep": "0.8"}, "--stage-keep 0.8 (recorded: stage keep 0.7)"),
        ({"keep": "0.7"}, {"keep": "0.7"}, "--keep 0.7 (recorded: stage keep 0.7)"),
    ],
    ids=str,
)
def test_the_rate_of_a_trained_selector_holds_unless_another_is_given(
    tmp_path: Path, given: dict[str, str], rates: dict[str, str], told: str
) -> None:
    """One rate comes of it, the user's or else the file's; a final share is not the rate of a stage, and is named."""
    note = {"model": "a", "selection": {"blocks": [3, 6], "stage_keep": "0.7"}}
    file, notes = WeightsFile.find(str(noted(tmp_path / "w.safetensors", note))), list[str]()
    settled = file.settle_rates(dict.fromkeys(("stage_keep", "keep", "tokens")) | given, notes.append)
    assert {name: rate for name, rate in settled.items() if rate is not None} == rates
    assert [told in text for text in notes] == [True] * bool(told)


def test_a_run_started_from_weights_sees_images_as_they_were_trained(make_run: MakeRun) -> None:
    """`--init-from RUN` takes model, arguments, size, mean, deviation and crop from it; flags win and are named."""
    first = make_run("first", mean=(0.1,) * 3, std=(0.2,) * 3, crop_pct=0.7, val_tickets=None, **SHORT)
    train(first)
    plain = {"model": None, "model_kwargs": {}, "img_size": None, "val_tickets": None, "init_from": first.out}
    parts, told = prepared(make_run("second", **plain, **SHORT))
    frame = parts.inputs.frame
    assert (frame.mean, frame.std, frame.crop_pct, frame.size) == ((0.1,) * 3, (0.2,) * 3, 0.7, (32, 32))
    assert parts.config.model_kwargs == first.model_kwargs
    assert not any("records" in text for text in told)
    parts, told = prepared(make_run("third", **plain, mean=(0.3,) * 3, **SHORT))
    assert parts.inputs.frame.mean == (0.3,) * 3
    assert any("--mean 0.3,0.3,0.3 (recorded: 0.1,0.1,0.1)" in text for text in told)


def test_averaged_weights_of_a_folder_and_of_a_file(make_run: MakeRun) -> None:
    """--use-ema takes the folder's averages; a file that holds none is refused, not silently taken as it is."""
    config = make_run(model_ema=True, model_ema_decay=0.5, **SHORT)
    train(config)
    values = {"val": config.val, "workers": 0, "device": "cpu", "use_ema": True}
    assert evaluate(EvalConfig(checkpoint=config.out, **values)).results["dense"].seen.all()
    with pytest.raises(InputError, match="holds no averaged weights"):
        evaluate(EvalConfig(checkpoint=f"{config.out}/model.safetensors", **values))


def test_a_recipes_crop_gives_way_to_the_validation_tickets(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user did not say himself does not keep evaluation from the tickets' own view."""
    monkeypatch.setitem(RECIPES, "smoke", RECIPES["smoke"] | {"crop_pct": 0.5})
    parts, told = prepared(make_run(recipe="smoke"))
    assert parts.config.crop_pct == 0.5
    assert parts.inputs.frame.crop_pct == 0.9
    assert any("seen as their tickets were made, center 32x32, crop 0.9" in text for text in told)
    parts, _ = prepared(make_run(recipe="smoke", val_tickets=None))
    assert parts.inputs.frame.crop_pct == 0.5


def test_the_online_selector_is_what_its_run_records(make_run: MakeRun) -> None:
    """A run's folder alone says model, arguments, size and normalisation; the result names it and no ticket file."""
    look = {"mean": (0.1,) * 3, "std": (0.2,) * 3}
    teacher = make_run("teacher", arm="dense", tickets=None, val=None, val_tickets=None, **look, **SHORT)
    train(teacher)
    config = make_run(
        "online", mode="online", val_tickets=None, selector_checkpoint=teacher.out, selector_blocks=(0, 1), **SHORT
    )
    parts, _ = prepared(config)
    assert parts.online is not None
    assert parts.select is not None
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    own = Pixels((0.1,) * 3, (0.2,) * 3)(images)
    assert torch.equal(parts.select(parts.pixels(images)).patches, parts.online.selector.rank(own))

    result = train(config)
    assert config.tickets is not None
    assert (result.arm, result.mode, result.tickets) == ("ticket", "online", "")
    digest = result.selector["weights_sha256"]
    assert digest == load_weights(parts.online.selector.vit, Path(teacher.out) / "model.safetensors").sha256
    assert (result.selector["model"], result.selector["blocks"]) == ("vit_tiny_patch16_224", [0, 1])
    assert result.selector["weights_source"] == "model.safetensors"
    line = f"selector vit_tiny_patch16_224 (weights {digest[:12]}…, model.safetensors), blocks 0,1, in the loop"
    assert result.tickets_are == result.val_tickets_are == result.evaluation["model"]["ticket"]["tickets_are"] == line


def test_a_selector_of_another_patch_size_sees_images_of_its_own_size(make_run: MakeRun) -> None:
    """Same grid, half the pixels: the student's images are resized to the size that the selector records."""
    small = {"model_kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}, "img_size": 16}
    teacher = make_run("teacher", arm="dense", tickets=None, val=None, val_tickets=None, **small, **SHORT)
    train(teacher)
    shared = {"mode": "online", "selector_checkpoint": teacher.out, "selector_blocks": (0, 1), **SHORT}
    parts, _ = prepared(make_run("online", **shared))
    assert parts.select is not None
    assert parts.select(torch.zeros(2, 3, 32, 32)).patches.shape == (2, 16)
    with pytest.raises(InputError, match="selector ranks 4x4 patches, the student has 3x3"):
        prepared(make_run("other", img_size=24, tickets=None, val=None, val_tickets=None, keep="0.5", **shared))
