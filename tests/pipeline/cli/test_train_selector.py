"""`dlth train-selector` as a user types it: settings from flags and dlth.toml, a plan, a run, mistakes."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.models import tiny_vit
from makers.runs import KWARGS

from dlth.tickets import TicketStore
from dlth.training.settings.selector_config import SelectorTrainConfig

Run = Callable[..., tuple[int, str, str]]
MODEL = ("--model", "vit_tiny_patch16_224", "--img-size", 32)


@pytest.fixture
def project(make_shards: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with shards, a dlth.toml that names them, and weights as EViT publishes them."""
    monkeypatch.chdir(tmp_path)
    shards = make_shards(1, [8], split="train")
    kwargs = ", ".join(f"{name} = {value}" for name, value in KWARGS.items())
    (tmp_path / "dlth.toml").write_text(
        f'data = "{shards.spec}"\nval = "{shards.spec}"\n[train-selector]\nblocks = [1, 2]\nstage_keep = 0.6\n'
        f"workers = 0\nmodel_kwargs = {{{kwargs}}}\n"
    )
    torch.save({"model": tiny_vit(num_classes=4).state_dict()}, tmp_path / "deit.pth")
    return tmp_path


def test_settings_of_a_selectors_training_have_a_table_and_a_recipe(dlth: Run, project: Path) -> None:
    """[train-selector] is read; EViT's recipe is taken where none is named; what belongs to tickets is not shown."""
    code, out, _ = dlth("train-selector", "--init-from", "deit.pth", "--print-config")
    settings = tomllib.loads(out)
    assert code == 0
    assert (settings["blocks"], settings["stage_keep"], settings["recipe"]) == ([1, 2], "0.6", "evit")
    assert (settings["lr_base"], settings["min_lr"], settings["weight_decay"]) == (2e-5, 2e-6, 1e-6)
    assert (settings["epochs"], settings["warmup_epochs"], settings["drop_path"]) == (30, 0, 0.0)
    assert not {"arm", "tickets", "keep", "selector"} & settings.keys()
    assert settings["out"] == "runs/selector-deit-stage0.6-seed42"
    helps = [str(field.description) for field in SelectorTrainConfig.names().values()]
    assert [text for text in helps if "student" in text.lower() or "milestones" in text] == []


def test_a_plan_writes_nothing_a_run_gives_weights_to_select_with(dlth: Run, project: Path) -> None:
    """--dry-run says stages and tokens; --json gives the result; dlth select takes the folder and nothing else."""
    words = (*MODEL, "--init-from", "deit.pth", "--recipe", "none", "--epochs", 1, "--batch-size", 4, "--out", "run")
    words = ("train-selector", *words, "--warmup-epochs", 0)
    code, out, err = dlth(*words, "--dry-run")
    assert code == 0, err
    assert "blocks 1,2: 16 -> 10 -> 6 tokens" in out
    assert not (project / "run").exists()
    code, out, err = dlth(*words, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["arm"], result["k"], result["steps"]) == ("selector", 6, 2)
    assert result["evaluation"]["model"].keys() == {"dense", "dropping"}
    code, out, err = dlth("select", "--checkpoint", "run", "--out", "t.zarr", "--workers", 0, "--split", "train")
    assert code == 0, err
    header = TicketStore(project / "t.zarr").header
    assert (header.selector.blocks, header.stage_keep, header.k) == ((1, 2), "0.6", 6)


@pytest.mark.parametrize(
    ("words", "table", "message"),
    [
        (("--tickets", "t.zarr"), "", "No such option"),
        (("--stage-keep", "7"), "", "--stage-keep: the share must be above 0"),
        ((), "tickets = 't.zarr'\n", "has 'tickets' under [train-selector]: it belongs under [train]"),
        ((), "stage_kep = 1\n", "did you mean 'stage_keep'?"),
        (("--recipe", "evil"), "", "did you mean 'evit'?"),
        (("--recipe", "lvvit"), "", "recipe lvvit is not for a selector (dlth train-selector); evit, deit, cifar10,"),
        (("--keep-schedule", "0:0.5,3:1.0"), "", "--keep-schedule: Input should be 'none' or 'cosine', found"),
    ],
    ids=str,
)
def test_mistakes_end_with_2_and_a_line(dlth: Run, project: Path, words: Any, table: str, message: str) -> None:
    """Flags, keys and values that a selector's training does not have are named, with where they belong."""
    with (project / "dlth.toml").open("a") as file:
        file.write(table)
    code, _, err = dlth("train-selector", *MODEL, *words)
    assert code == 2
    assert message in " ".join(err.split())
