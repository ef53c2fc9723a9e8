"""Checkpoints: whole or not there, nothing lost in taking an optimizer apart, damage found."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from makers.tampering import flip, flipped
from timm.optim import create_optimizer_v2

from dlth.tickets.errors import DamageError, DlthError, InputError, MissingFileError
from dlth.training.runs import checkpoint
from dlth.training.runs.sealed_json import sealed

PARTS = {"model": {"weight": torch.arange(6.0).reshape(2, 3).T}, "optimizer": {"count": torch.tensor(3)}}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "adafactor", "adafactorbv", "lion"])
def test_an_optimizer_taken_apart_and_put_together_steps_alike(name: str, tmp_path: Path) -> None:
    """The state goes through a tensor file and JSON text, and the next step is the same to the bit."""

    def model_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 2))
        return model, create_optimizer_v2(model, opt=name, lr=0.1, weight_decay=0.05)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()

    model, optimizer = model_and_optimizer()
    step(model, optimizer, 1)
    tensors: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(checkpoint.take_apart(optimizer.state_dict(), "optimizer", tensors)))
    checkpoint.write_tensors(tmp_path / "tensors", tensors)
    other, other_optimizer = model_and_optimizer()
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(checkpoint.put_together(tree, checkpoint.read_tensors(tmp_path / "tensors")))
    step(model, optimizer, 2)
    step(other, other_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_reads_back_and_older_ones_go(tmp_path: Path) -> None:
    """The newest `keep` stay, `latest` names the newest, and what was saved is what is loaded."""
    assert checkpoint.newest(tmp_path) is None
    for step in (2, 10, 100):
        checkpoint.save(tmp_path, step, PARTS, {"step": step, "loss": 0.1 + 0.2}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000010", "step-00000100"]
    read = checkpoint.load(checkpoint.newest(tmp_path))
    assert read.state == {"step": 100, "loss": 0.1 + 0.2}
    assert torch.equal(read.parts["model"]["weight"], PARTS["model"]["weight"])
    assert read.parts["optimizer"]["count"].item() == 3


def _lives_through(point: int, folder: Path) -> bool:
    """Save step 2 in a child that is killed at its `point`-th file-system call; True if it ended by itself."""
    child = os.fork()
    if child == 0:
        calls = 0
        for name in ("rename", "mkdir", "fsync", "open", "rmdir", "unlink", "replace"):

            def counted(*args: object, real=getattr(os, name), **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(os, name, counted)
        checkpoint.save(folder, 2, PARTS, {"step": 2}, keep=1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Killed at each of its file-system calls, a save leaves the old or the new checkpoint, and the next save works."""
    seen, point = set(), 0
    while True:
        point += 1
        folder = tmp_path / str(point)
        checkpoint.save(folder, 1, PARTS, {"step": 1}, keep=1)
        ended = _lives_through(point, folder)
        seen.add(checkpoint.load(checkpoint.newest(folder)).state["step"])
        checkpoint.save(folder, 3, PARTS, {"step": 3}, keep=1)
        assert checkpoint.load(checkpoint.newest(folder)).state["step"] == 3
        assert [path.name for path in folder.glob("step-*")] == ["step-00000003"]
        if ended:
            break
    assert seen == {1, 2}
    assert point > 10


def test_damage_and_strangers_are_refused(tmp_path: Path) -> None:
    """One flipped bit, another format, a missing file: each is named."""
    path = checkpoint.save(tmp_path, 1, PARTS, {}, keep=1)
    with pytest.raises(MissingFileError, match=r"is no checkpoint of dlth: it has no state\.json"):
        checkpoint.load(tmp_path)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"version": 9}))
    with pytest.raises(DamageError, match="its content is not what its sha256 was made of"):
        checkpoint.load(path)
    newer = {name: value for name, value in state.items() if name != "sha256"} | {"version": 9}
    (path / "state.json").write_text(json.dumps(sealed(newer)))
    with pytest.raises(InputError, match=r"\('dlth-checkpoint', 9\); this dlth reads dlth-checkpoint versions 1 to 2"):
        checkpoint.load(path)
    (path / "state.json").write_text(json.dumps(state))
    flip(path / "model.safetensors", -8)
    with pytest.raises(DamageError, match=r"model\.safetensors is damaged"):
        checkpoint.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"model\.safetensors, a part of the checkpoint, is missing"):
        checkpoint.load(path)
    (tmp_path / "latest").write_text("../elsewhere\n")
    with pytest.raises(DamageError, match="which is no checkpoint"):
        checkpoint.newest(tmp_path)


def test_a_flipped_bit_of_the_state_is_damage_or_nothing(tmp_path: Path) -> None:
    """Every eleventh bit of state.json and of latest: refused, or read as the same content; never as another."""
    path = checkpoint.save(tmp_path, 1, PARTS, {"progress": {"epoch": 0, "step": 1, "share": 0.25}}, keep=1)
    written = checkpoint.load(path).state
    for file in (path / "state.json", tmp_path / "latest"):
        sound, refused = file.read_bytes(), 0
        for bit in range(0, 8 * len(sound), 11):
            file.write_bytes(flipped(sound, bit))
            try:
                newest = checkpoint.newest(tmp_path)
                assert newest is not None
                assert checkpoint.load(newest).state == written
            except DlthError:
                refused += 1
        assert refused > len(sound) // 2
        file.write_bytes(sound)


def test_a_checkpoint_of_version_1_is_read(tmp_path: Path) -> None:
    """Without a digest of its own, with digests in place of sizes and digests, and a bare name in latest."""
    path = checkpoint.save(tmp_path, 1, PARTS, {"step": 1}, keep=1)
    head = json.loads((path / "state.json").read_text())
    files = {part: entry["sha256"] for part, entry in head["files"].items()}
    old = {"format": head["format"], "version": 1, "files": files, "state": head["state"]}
    (path / "state.json").write_text(json.dumps(old))
    (tmp_path / "latest").write_text(f"{path.name}\n")
    newest = checkpoint.newest(tmp_path)
    assert newest == path
    assert checkpoint.load(newest).state == {"step": 1}
