"""Training LV-ViT by token labels: joined, moved, used, resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.runs import Listener
from makers.tickets import write_labels
from safetensors.torch import load_file

from dlth.tickets.errors import InputError, MismatchError, MissingTicketError
from dlth.training.distributed.process_group import World
from dlth.training.distributed.signals import StopRequest
from dlth.training.models.registry import build
from dlth.training.models.small_dense import laid_out
from dlth.training.models.students import make_student
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import Training, train
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
LVVIT: dict[str, Any] = {
    "model": "lvvit_t",
    "model_kwargs": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "stem_width": 8},
    "smoothing": 0.1,
    "epochs": 2,
}


def test_labels_teach_and_resume_exactly(make_run: MakeRun, tmp_path: Path) -> None:
    """A run by token labels ends elsewhere than one without, names them, and resumed is the same to the bit. All that
    moves and mixes labels is on: crops, mirrors, warps, mixup and cutmix.
    """
    moving = {"mixup": 0.8, "cutmix": 1.0, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "mix_group": 2} | LVVIT
    plain = make_run("plain", **moving)
    store = write_labels(plain.data, tmp_path / "labels.zarr")
    runs = {}
    for name in ("whole", "parts"):
        config = make_run(name, token_labels=str(store.path), **moving)
        if name == "parts":
            Training(config, World(0, 1, torch.device("cpu")), Reporter()).run(StopRequest(requested=True))
            config = config.model_copy(update={"resume": "auto"})
        runs[name] = train(config)
    assert runs["whole"].data["token_labels"] == store.identity
    assert "token labels for 18 of 21 images" in runs["whole"].data["coverage"]["labels"]
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in runs}
    assert all((weights["whole"][name] == value).all() for name, value in weights["parts"].items())
    assert train(plain).train_loss != runs["whole"].train_loss


def test_mixtoken_and_the_random_arm(make_run: MakeRun, tmp_path: Path) -> None:
    """Labels follow tokens that MixToken pastes and that random tickets keep, and the loss falls."""
    settings = LVVIT | {"mix_token": 1.0, "arm": "random", "keep": "0.5", "epochs": 4, "lr": 3e-3}
    config = make_run("run", **settings)
    store = write_labels(config.data, tmp_path / "labels.zarr")
    heard = Listener()
    train(config.model_copy(update={"token_labels": str(store.path)}), reporter=heard)
    losses = [step["loss"] for step in heard.steps]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize(("how", "options"), [("zero", {}), ("small-dense", {"dynamic_img_size": True})])
def test_labels_are_of_the_patches_that_have_logits(
    make_run: MakeRun, tmp_path: Path, how: str, options: dict[str, Any]
) -> None:
    """LV-ViT that is given zeros or a smaller image learns from the labels of the patches whose logits it gives, in
    their order; patches of another size than its own have none.
    """
    settings = LVVIT | {"how": how, "epochs": 1, "warmup_epochs": 0, "model_kwargs": LVVIT["model_kwargs"] | options}
    config = make_run("run", **settings)
    config = config.model_copy(update={"token_labels": str(write_labels(config.data, tmp_path / "labels.zarr").path)})
    assert np.isfinite(train(config).train_loss)
    student = make_student(build("lvvit_t", img_size=32, num_classes=4, **settings["model_kwargs"]), how)
    numbers = torch.arange(16.0).reshape(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    patches = torch.tensor([[7, 2, 9, 4, 1, 0, 3, 5]])
    if how == "zero":
        assert student.labelled(patches) is None
        assert student.train()(numbers.expand(1, 3, 32, 32), patches).patches.shape[1] == 16
    else:
        assert (
            student.labelled(patches).flatten().tolist()
            == laid_out(numbers, patches, 8)[0, 0, ::8, ::8].flatten().tolist()
        )
    with pytest.raises(InputError, match="own patches of 8 pixels, not of 16: leave out --patch-size"):
        train(config.model_copy(update={"patch_size": 16, "out": str(tmp_path / "other")}))


def test_what_does_not_fit_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """Labels of another head, without rows for some images, and a model without patch logits: each is named first."""
    config = make_run("run", **LVVIT)
    for options, error, message in (
        ({"num_classes": 5}, MismatchError, "the token labels are of 5 classes, and the student's head has 4"),
        ({"leave_out": 2}, MissingTicketError, r"2 images without a token label .*\n?.*run dlth label on these shards"),
    ):
        path = write_labels(config.data, tmp_path / f"{error.__name__}.zarr", **options).path
        with pytest.raises(error, match=message):
            train(config.model_copy(update={"token_labels": str(path)}))
    with pytest.raises(InputError, match=r"VisionTransformer has no logits of patches .* LV-ViT has"):
        train(make_run("vit", token_labels=str(path)))
