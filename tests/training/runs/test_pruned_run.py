"""Training under a mask: everything that a run writes holds to it, and nothing else changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from makers.masks import mask_file
from makers.runs import Listener, stopped_after
from safetensors.torch import load_file, save_file
from torch.nn.utils import get_total_norm

from dlth.tickets.errors import DamageError, InputError, MismatchError
from dlth.training.distributed.process_group import World
from dlth.training.distributed.signals import StopRequest
from dlth.training.models.registry import build
from dlth.training.models.weights import tensors_digest
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.pruning.mask_file import MaskFile
from dlth.training.runs import checkpoint
from dlth.training.runs.loop import Training, planned, train
from dlth.training.runs.resume import take_over
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
WORLD = World(0, 1, torch.device("cpu"))
SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "val": None, "val_tickets": None}


def masked_run(make_run: MakeRun, path: Path, out: str = "run", **options: Any) -> tuple[TrainConfig, MaskFile]:
    """A run under a mask of half of the weights of its model, and the mask."""
    config = make_run(out, **options)
    torch.manual_seed(1)
    model = build(config.student, num_classes=4, img_size=32, **config.model_kwargs)
    mask = mask_file(model, config.student, path)
    return config.model_copy(update={"mask": str(path)}), mask


def revived(tensors: dict[str, torch.Tensor], mask: MaskFile) -> int:
    """Masked weights among named tensors that are not zero."""
    return sum(int(tensors[name][~kept].count_nonzero()) for name, kept in mask.masks.items())


@pytest.mark.parametrize(
    "options",
    [
        {"amp": True, "model_ema": True, "model_ema_decay": 0.9, "grad_accum_steps": 2, "batch_size": 4, "mix_group": 2}
        | {"clip_grad": 1.0, "opt": "muon"},
        {"amp": True, "amp_dtype": "float16", "torchcompile": "eager", "channels_last": True, "model_ema": True},
    ],
    ids=["bfloat16, average, accumulation, clipping, muon", "float16's scaler, compiled, channels last"],
)
def test_all_that_a_run_writes_holds_to_its_mask(make_run: MakeRun, tmp_path: Path, options: dict[str, Any]) -> None:
    """Weights, best ones, average and checkpoint: masked weights are zero in each; the log says how many remain."""
    config, mask = masked_run(make_run, tmp_path / "mask.safetensors", epochs=1, warmup_epochs=0, **options)
    listener = Listener()
    result = train(config, reporter=listener)
    out = Path(config.out)
    for name in ("model", "model_best", "model_ema"):
        weights = load_file(out / f"{name}.safetensors")
        assert revived(weights, mask) == 0
        assert sum(int(weights[parameter].count_nonzero()) for parameter in mask.masks) == mask.remaining
    found = checkpoint.newest(out / "checkpoints")
    assert found is not None
    parts = checkpoint.load(found).parts
    assert [revived(parts[name], mask) for name in ("model", "ema")] == [0, 0]
    (epoch,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if '"epoch"' in line][-1:]
    assert epoch["remaining_weights"] == mask.remaining == mask.prunable // 2
    assert (result.mask, result.prunable_weights, result.remaining_weights) == (
        mask.identity,
        mask.prunable,
        mask.remaining,
    )
    note = WeightsNote.read(out / "model.safetensors")
    assert note is not None
    assert note.mask == mask.identity
    model = timm.create_model(
        config.model, img_size=32, num_classes=4, checkpoint_path=str(out / "model.safetensors"), **config.model_kwargs
    )
    assert revived(dict(model.state_dict()), mask) == 0


def test_the_norm_and_its_clipping_are_of_the_pruned_network(make_run: MakeRun, tmp_path: Path) -> None:
    """A step tells the norm of the gradient without its masked entries, which is less than that of the whole one."""
    config, mask = masked_run(make_run, tmp_path / "mask.safetensors", **SHORT)
    norms = {}
    for under_mask in (True, False):
        parts = Training(config, WORLD, Listener()).parts
        parts.stepper.masks = parts.stepper.masks if under_mask else None
        parts.set_rate(0, 0)
        norms[under_mask] = parts.stepper(next(parts.train_steps(0, 0)), 0, parts.budget(0, 0)).grad_norm
        gradients = {name: each.grad for name, each in parts.student.model.named_parameters() if each.grad is not None}
    by_hand = get_total_norm([each * mask.masks.get(name, True) for name, each in gradients.items()])
    assert norms[True] == pytest.approx(float(by_hand), rel=1e-6)
    assert norms[True] < 0.95 * norms[False]


def test_a_stopped_run_under_a_mask_goes_on_to_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    """Stopped and resumed, with the files of mask and first weights moved meanwhile: the same weights as undisturbed.
    Another mask, no mask, and other first weights are refused by name.
    """
    config, mask = masked_run(make_run, tmp_path / "mask.safetensors", **SHORT)
    model = build(config.student, num_classes=4, img_size=32, **config.model_kwargs)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    config = config.model_copy(update={"init_from": str(tmp_path / "w.safetensors"), "opt": "nadamw"})
    undisturbed = train(config)
    assert undisturbed.initial_weights == tensors_digest(model.state_dict())  # as they were before they were masked
    again = config.model_copy(update={"out": str(tmp_path / "again")})
    stopped_after(again, 2)
    moved = {}
    for name, file in (("mask", "mask.safetensors"), ("init_from", "w.safetensors")):
        (tmp_path / file).rename(tmp_path / f"moved-{file}")
        moved[name] = str(tmp_path / f"moved-{file}")
    again = again.model_copy(update={"resume": "auto", **moved})
    mask_file(model, config.student, tmp_path / "other.safetensors", rate="0.25")
    others = {"mask": {"mask": str(tmp_path / "other.safetensors")}, "initial weights": {"init_from": None}}
    for name, changes in others.items():
        with pytest.raises(MismatchError, match=f"{name}: the checkpoint has [0-9a-f]+, this run "):
            train(again.model_copy(update=changes))
    with pytest.raises(MismatchError, match=r"mask: the checkpoint has [0-9a-f]+, this run None"):
        train(again.model_copy(update={"mask": None}))
    result = train(again)
    assert (result.weights_sha256, result.mask) == (undisturbed.weights_sha256, mask.identity)


def test_a_run_whose_masked_weight_comes_alive_saves_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    """A masked weight that is not zero is a bug: it ends the run before its checkpoint, and the parameter is named."""
    config, mask = masked_run(make_run, tmp_path / "mask.safetensors", **SHORT)
    name, kept = next(iter(mask.masks.items()))

    class Reviver(Listener):
        def stepped(self, record: Any) -> None:
            with torch.no_grad():
                training.parts.student.model.get_parameter(name)[~kept] = 0.5

    training = Training(config, WORLD, Reviver())
    with pytest.raises(AssertionError, match=rf"masked weights of \['{name}'\] are not zero after step 3: not saved"):
        training.run(StopRequest())
    assert checkpoint.newest(Path(config.out) / "checkpoints") is None
    assert not (Path(config.out) / "model.safetensors").exists()


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_a_checkpoint_with_a_revived_weight_is_damaged(make_run: MakeRun, tmp_path: Path, part: str) -> None:
    """What is not zero where the mask has it masked was not written under it: refused, and the parameter named."""
    config, mask = masked_run(make_run, tmp_path / "mask.safetensors", model_ema=True, **SHORT)
    stopped_after(config, 1)
    found = checkpoint.newest(Path(config.out) / "checkpoints")
    assert found is not None
    saved, name = checkpoint.load(found), "blocks.1.mlp.fc1.weight"
    gone = int((~mask.masks[name] & ~mask.masks["blocks.0.mlp.fc1.weight"]).view(-1).nonzero()[0])
    moments = [value for value in saved.parts["optimizer"].values() if value.shape == mask.masks[name].shape]
    revived = moments[0] if part == "optimizer" else saved.parts[part][name]
    revived.view(-1)[gone] = 0.5
    parts = Training(config.model_copy(update={"resume": "auto"}), WORLD, Listener()).parts
    with pytest.raises(DamageError, match=r"blocks\.\d\.mlp\.fc1\.weight is not zero where the run's mask"):
        take_over(saved, parts)


def test_a_run_keeps_its_mask_and_overwrites_no_other(make_run: MakeRun, tmp_path: Path) -> None:
    """The same bytes, from before the first step on; a folder that holds another's mask is refused, with --mask and
    without it; the run's own may lie there before, as a study's do.
    """
    config, _ = masked_run(make_run, tmp_path / "mask.safetensors", **SHORT)
    given, own = tmp_path / "mask.safetensors", Path(config.out) / "mask.safetensors"

    class Watching(Listener):
        def stepped(self, record: Any) -> None:
            assert own.read_bytes() == given.read_bytes()

    own.parent.mkdir()
    torch.manual_seed(1)
    other = build(config.student, num_classes=4, img_size=32, **config.model_kwargs)
    theirs = mask_file(other, config.student, own, rate="0.25").identity[:16]
    before = own.read_bytes()
    for mask, said in ((config.mask, f"is not of this run: .*not {theirs}"), (None, "files of other origin")):
        for begin in (planned, train):
            with pytest.raises(InputError, match=rf"{said}.* another --out"):
                begin(config.model_copy(update={"mask": mask}))
    assert own.read_bytes() == before
    own.unlink()
    train(config, reporter=Watching())
    again = config.model_copy(update={"out": str(tmp_path / "again"), "mask": str(tmp_path / "again/mask.safetensors")})
    Path(again.out).mkdir()
    own.rename(str(again.mask))
    stopped_after(again, 1)
    assert Path(str(again.mask)).read_bytes() == given.read_bytes()


def test_a_mask_of_another_model_is_refused_before_training(make_run: MakeRun, tmp_path: Path) -> None:
    """By its name before any data are opened; by its shapes when the model is built. The plan tells what remains."""
    config, mask = masked_run(make_run, tmp_path / "mask.safetensors", **SHORT)
    plan = planned(config)
    about = f"mask {mask.identity[:16]}, level 1"
    assert plan["weights"] == f"{mask.remaining:,} of {mask.prunable:,} prunable remain ({about})"
    with pytest.raises(MismatchError, match="is of vit_tiny_patch16_224, and the model to train is deit_tiny"):
        planned(config.model_copy(update={"model": "deit_tiny", "data": str(tmp_path / "none")}))
    with pytest.raises(MismatchError, match=r"--mask .* is of another model .*blocks\.2\.attn\.qkv\.weight"):
        planned(config.model_copy(update={"model_kwargs": config.model_kwargs | {"depth": 3}}))
