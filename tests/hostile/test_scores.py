"""Scores that are no numbers, or say nothing: no ticket file is made of the first, the second are told.

Sorted, NaN leaves patches in their own order: a file of such tickets (0, 1, 2, … for every image) is whole by every
digest. So it has to be refused where the scores are made, and told where a file is looked at.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.runs import KWARGS, select_config
from safetensors.torch import save_file
from typer.testing import CliRunner

from dlth.pipeline.cli.app import app
from dlth.pipeline.selection.stage import SelectReport, plan, select
from dlth.tickets import TicketStore
from dlth.tickets.derive.controls import control
from dlth.tickets.errors import InputError
from dlth.training.models.registry import build


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., str]:
    """``weights({tensor name: factor})`` -> a file of a tiny selector whose tensors were multiplied."""

    def make(factors: dict[str, float]) -> str:
        torch.manual_seed(0)
        state = build("vit_tiny_patch16_224", num_classes=4, img_size=32, **KWARGS).state_dict()
        path = tmp_path / f"{len(list(tmp_path.glob('*.safetensors')))}.safetensors"
        save_file({name: tensor * factors.get(name, 1.0) for name, tensor in state.items()}, path)
        return str(path)

    return make


def run(data: str, out: Path, checkpoint: str, **changes: Any) -> SelectReport:
    return select(plan(select_config(data, out, checkpoint=checkpoint, **changes)))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "blocks.3.attn.qkv.weight", "head.bias"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    make_shards: Callable[..., Any], weights: Callable[..., str], tmp_path: Path, name: str, factor: float
) -> None:
    """Wherever they are, and before anything is written: the file, its digest and the tensor."""
    out = tmp_path / "t.zarr"
    with pytest.raises(InputError, match=rf"0\.safetensors, sha256 [0-9a-f]{{16}}\) hold .*no numbers: {name} has"):
        run(make_shards(1, 2).spec, out, weights({name: factor}))
    assert not out.exists()
    assert not Path(f"{out}.partial").exists()


@pytest.mark.parametrize(
    ("factors", "changes", "advice"),
    [
        pytest.param({}, {"std": (1e-45,) * 3}, "look at the weights, and at --mean and --std", id="deviation"),
        pytest.param({"blocks.0.mlp.fc1.weight": 1e38}, {}, "look at the weights", id="weights too large"),
        pytest.param(
            {"blocks.0.mlp.fc1.weight": 1e5, "blocks.0.mlp.fc2.weight": 1e5},
            {"amp": True, "amp_dtype": "float16"},
            "float16 blocks may have overflowed: try --amp-dtype bfloat16",
            id="half precision",
        ),
    ],
)
def test_an_image_whose_scores_are_no_numbers_stops_stage_1(
    make_shards: Callable[..., Any],
    weights: Callable[..., str],
    tmp_path: Path,
    factors: dict[str, float],
    changes: dict[str, Any],
    advice: str,
) -> None:
    """Finite weights that overflow: the error names shard, key, weights and what to try, and no file appears."""
    shards = make_shards(1, 2)
    with pytest.raises(InputError) as caught:
        run(shards.spec, tmp_path / "t.zarr", weights(factors), **changes)
    for part in (f"shard train-000000.tar, key {shards.keys[0][0]}: the scores", "0.safetensors, sha256 ", advice):
        assert part in str(caught.value)
    assert not (tmp_path / "t.zarr").exists()


def test_tickets_that_are_all_alike_are_told(
    make_shards: Callable[..., Any], weights: Callable[..., str], tmp_path: Path
) -> None:
    """Constant weights make a legal file: `select`, `verify` and `stats` say what it is, as of a control by place."""
    constant = weights({f"blocks.{block}.attn.qkv.weight": 0.0 for block in range(4)})
    data = make_shards(2, 3).spec
    report = run(data, tmp_path / "flat.zarr", constant)
    assert (report.images, report.tied) == (6, 6)
    sound = run(data, tmp_path / "sound.zarr", weights({"blocks.1.attn.qkv.weight": 30.0}))
    assert sound.tied == 0
    control(TicketStore(tmp_path / "sound.zarr"), "centre").write(tmp_path / "centre.zarr")
    told = {}
    for name in ("flat", "centre", "sound"):
        for command in ("verify", "stats"):
            result = CliRunner().invoke(app, ["tickets", command, str(tmp_path / f"{name}.zarr")])
            assert result.exit_code == 0, result.output
            told[name, command] = "all 6 tickets keep the same 8 of 16 patches" in result.output
            assert ("control: centre" in result.output) == (name == "centre")
    assert told == {(name, command): name != "sound" for name, command in told}
    words = ["tickets", "verify", str(tmp_path / "flat.zarr"), "--json"]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert (found["ok"], len(found["notes"])) == (True, 1)
