"""A full disk in the middle of `train`, at several sizes: one error that says so, old files whole, a retry ends well.

    python full_disk_train.py FOLDER [SIZES]

The disk is a tmpfs in a mount namespace, as in full_disk.py; where the machine allows none, RLIMIT_FSIZE bounds each
file instead. A run of four steps saves at each; once it has stopped for want of room, what stands under its names must
be whole (the checkpoint that `latest` names, weights, the result), the disk grows, `--resume auto` goes on, and the
weights are those of a run that never lacked room. Prints one JSON object.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.full_disk import PAGE, Disk, method, own_mounts
from makers.pictures import write_shards
from makers.runs import train_config

from dlth.tickets.errors import SpaceError
from dlth.training.runs import checkpoint
from dlth.training.runs.loop import train
from dlth.training.runs.result import RunResult
from dlth.training.runs.resume import CHECKPOINTS
from dlth.training.runs.sealed_json import read_sealed


def run(data: str, out: Path) -> RunResult:
    """Two epochs of two steps, saved at each, resumed if begun."""
    small = {"model_kwargs": {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2}, "img_size": 16}
    saving = {"checkpoint_steps": 1, "resume": "auto"}
    return train(train_config(data, out, arm="dense", batch_size=2, **small, **saving))


def assert_whole(out: Path) -> None:
    """What stands under a run's names can be read, and nothing half-written lies about."""
    newest = checkpoint.newest(out / CHECKPOINTS)
    if newest is not None:
        checkpoint.load(newest)
    for path in out.rglob("*.safetensors"):
        load_file(path)
    if (out / "result.json").exists():
        assert read_sealed(out / "result.json", 1 << 20)[1]
    assert not list(out.rglob("*.partial")), "something half-written stayed, and fills the disk"
    assert not (out / ".lock").exists()


def one_size(folder: Path, data: str, room: int, expected: str) -> str:
    """'enough', or 'full' after all that was promised held."""
    disk = Disk(folder)
    disk.shrink(room)
    outcome = "enough"
    try:
        run(data, folder / "run")
    except SpaceError as error:
        outcome = "full"
        if "run again" not in str(error) and "run the same command again" not in str(error):
            raise AssertionError(str(error)) from error
        assert_whole(folder / "run")
    disk.grow()
    assert run(data, folder / "run").weights_sha256 == expected, "other weights after the retry"
    assert_whole(folder / "run")
    disk.remove()
    return outcome


def main(folder: Path, sizes: int) -> int:
    torch.set_num_threads(1)
    data = write_shards(folder, 1, 4, num_classes=2).spec
    expected = run(data, folder / "whole").weights_sha256
    files = [path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file()]
    largest = sum(files) + PAGE * len(files) if own_mounts() else max(files) + PAGE
    rooms = [max(PAGE, largest * step // sizes) for step in range(sizes)]
    outcomes = [one_size(folder / str(number), data, room, expected) for number, room in enumerate(rooms)]
    print(json.dumps({"method": method(), "sizes": rooms, "full": outcomes.count("full"), "runs": len(outcomes)}))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
