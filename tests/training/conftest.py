"""Tiny timm models of every family, with weights large enough that attention differs from patch to patch; tiny runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import HybridEmbed
from timm.models.eva import Eva
from torch import nn

from dlth.data.identity import content_hash
from dlth.data.index import ShardIndex, open_index
from dlth.tickets import (
    Budget,
    DatasetInfo,
    Grid,
    Preprocessing,
    SelectorInfo,
    ShardSpec,
    ShardTickets,
    TicketHeader,
    TicketWriter,
    ViewSpec,
    generator,
)
from dlth.training.config import TrainConfig
from dlth.training.layers import layered
from dlth.training.toml_text import to_toml

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
"""16 patches of a 4x4 grid."""


class OverlappingStem(HybridEmbed):
    """A convolutional stem whose patches see their neighbours."""

    def __init__(self, **kwargs: object) -> None:
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1))
        kwargs |= {"backbone": backbone, "patch_size": 1}
        super().__init__(**kwargs)


FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "deit3": ("deit3_small_patch16_224", {"no_embed_class": True}),
    "dynamic": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "padded": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "dynamic_img_pad": True}),
    "rectangle": ("vit_tiny_patch16_224", {"img_size": (32, 48)}),
    "no positions": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "clip": ("vit_base_patch16_clip_224", {"qk_norm": True}),
    "overlapping": ("vit_tiny_patch16_224", {"embed_layer": OverlappingStem}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva02 clip": ("eva02_base_patch16_clip_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3 dynamic": ("vit_small_patch16_dinov3", {"dynamic_img_size": True}),
    "rope mixed": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "sapiens2": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
}


@pytest.fixture(scope="session")
def tiny_vit() -> Callable[..., nn.Module]:
    """``tiny_vit(family="plain", seed=0, **options)`` -> a model in evaluation mode; `options` go to timm."""

    def make(family: str = "plain", seed: int = 0, **options: object) -> nn.Module:
        name, changes = FAMILIES[family]
        torch.manual_seed(seed)
        vit = timm.create_model(name, **SIZE | changes | options)
        for key, weight in vit.named_parameters():
            if weight.ndim > 1 and not key.startswith("rope"):
                nn.init.normal_(weight, std=0.15)
        if isinstance(vit, Eva):
            for block in vit.blocks:  # layer scale starts at 1e-5 in some
                for gamma in (block.gamma_1, block.gamma_2):
                    if gamma is not None:
                        nn.init.constant_(gamma, 0.5)
        return vit.eval()

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `family` argument runs for each of them."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


KEEP = "0.5"


def write_tickets(
    index: ShardIndex,
    path: Path,
    view: ViewSpec,
    split: str,
    budget: Budget | None = None,
    form: str = "full",
    bad: Collection[str] = (),
) -> Path:
    """A ticket file whose rankings are random, named by each image's key; its grid is that of the view.

    `bad`: keys whose image could not be read.
    """
    grid = Grid(view.height // 8, view.width // 8)
    budget = budget or Budget.from_keep(KEEP, grid.num_patches, 1)
    header = TicketHeader(
        form=form,
        grid=grid,
        patch_size=8,
        k=budget.k,
        keep=budget.keep,
        stage_keep=budget.stage_keep,
        stage_tokens=budget.stage_tokens,
        view=view,
        preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, "torchvision"),
        selector=SelectorInfo("tiny", "", "random", (0,)),
        dataset=DatasetInfo("pictures", split, index.num_samples, index.fingerprint),
    )
    writer = TicketWriter(path, header, [ShardSpec(shard.name, shard.rows) for shard in index.shards], 40)
    for place, shard in enumerate(index.shards):
        keys = tuple(index.keys(place))
        patches = np.stack([generator("ticket", key).permutation(grid.num_patches) for key in keys])
        patches = patches[:, : header.ranked].astype(np.uint8)
        ids = np.arange(index.row_start[place], index.row_start[place + 1])
        hashes = b"".join(content_hash(encoded) for encoded in index.read_many(ids))
        images = np.frombuffer(hashes, np.uint8).reshape(-1, 16)
        gap, skipped = np.zeros(shard.rows, np.float32), np.array([key in bad for key in keys])
        patches[skipped], gap[skipped] = 255, np.nan
        with writer.claim(place) as mine:
            assert mine
            writer.write(place, ShardTickets(keys, images, patches, gap, skipped))
    assert writer.finish()
    return path


@pytest.fixture
def make_tickets() -> Callable[..., Path]:
    """``make_tickets(index, path, view, split, budget=None, form="full", bad=())``: see `write_tickets`."""
    return write_tickets


@pytest.fixture
def make_run(make_shards: Callable[..., Any], tmp_path: Path) -> Callable[..., TrainConfig]:
    """``make_run(out="run", **overrides)`` -> the settings of a tiny ticket run on real shards with real tickets.

    21 training images (batches of 8: the last of an epoch has 5), 11 validation images, 16 patches of which 8 are kept.
    """
    made: dict[str, Any] = {}

    def make(out: str = "run", **overrides: Any) -> TrainConfig:
        if not made:
            for split, rows, seed in (("train", [7, 5, 9], 0), ("val", [6, 5], 1)):
                index = open_index(make_shards(len(rows), rows, split=split, seed=seed).spec)
                view = ViewSpec("whole", 32, 32) if split == "train" else ViewSpec("center", 32, 32, "0.9")
                made[split] = index, str(write_tickets(index, tmp_path / f"{split}.zarr", view, split))
        settings = {
            "data": str(tmp_path / "train"),
            "val": str(tmp_path / "val"),
            "tickets": made["train"][1],
            "val_tickets": made["val"][1],
            "out": str(tmp_path / out),
            "model": "vit_tiny_patch16_224",
            "model_kwargs": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "img_size": 32,
            "epochs": 2,
            "warmup_epochs": 1,
            "batch_size": 8,
            "lr": 1e-3,
            "workers": 0,
            "log_interval": 1,
            "device": "cpu",
        }
        return layered(settings | overrides)

    return make


TRAIN = """
import os, signal, sys
from dlth.training.layers import layered
from dlth.training.loop import train
from dlth.training.reporter import Reporter

class Signals(Reporter):
    def stepped(self, record):
        for number, step in zip(sys.argv[2::2], sys.argv[3::2]):
            if record["step"] == int(step):
                os.kill(os.getpid(), int(number))

sys.exit(train(layered({"resume": "auto"}, config_file=sys.argv[1]), reporter=Signals()).exit_code)
"""


@pytest.fixture
def train_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``train_process(config, ranks=1, signals={step: signal})`` -> a process that ran `train`, signalling itself.

    With several ranks torchrun starts them; a signal then goes to each of them.
    """
    script = tmp_path / "train_once.py"
    script.write_text(TRAIN)

    def run(
        config: TrainConfig, ranks: int = 1, signals: dict[int, int] | None = None
    ) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "settings.toml"
        file.write_text(to_toml(config))
        launch = [sys.executable]
        if ranks > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        sent = [str(part) for step, number in (signals or {}).items() for part in (int(number), step)]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [*launch, str(script), str(file), *sent]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

    return run
