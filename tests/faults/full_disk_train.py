"""A full disk in the middle of `train`, at several sizes: one error that says so, old files whole, a retry ends well.

    python full_disk_train.py FOLDER [SIZES]

The disk is a tmpfs in a mount namespace, as in full_disk.py; where the machine allows none, RLIMIT_FSIZE bounds each
file instead. A run of four steps saves at each; once it has stopped for want of room, what stands under its names must
be whole (the checkpoint that `latest` names, weights, the result), the disk grows, `--resume auto` goes on, and the
weights are those of a run that never lacked room. Prints one JSON object.
"""

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from dlth.tickets.errors import SpaceError
from dlth.training import checkpoint
from dlth.training.layers import layered
from dlth.training.loop import train
from dlth.training.outcome import RunResult
from dlth.training.resume import CHECKPOINTS
from dlth.training.seal import read_sealed

DISK = runpy.run_path(str(Path(__file__).parent / "full_disk.py"))
MAKE = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
PLENTY = 64 * 2**20


def shards(folder: Path) -> Path:
    """Four images in one shard."""
    folder.mkdir()
    members = []
    for number in range(4):
        members += [(f"n{number}.jpg", MAKE["encode"](MAKE["picture"](number))), (f"n{number}.cls", b"1")]
    MAKE["write_tar"](folder / "train-000000.tar", members)
    return folder


def run(data: Path, out: Path) -> RunResult:
    """Two epochs of two steps, saved at each, resumed if begun."""
    model = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2}
    settings = {"data": str(data), "val": str(data), "out": str(out), "arm": "dense", "model_kwargs": model}
    settings |= {"model": "vit_tiny_patch16_224", "img_size": 16, "epochs": 2, "warmup_epochs": 0, "batch_size": 2}
    settings |= {"checkpoint_steps": 1, "log_interval": 1, "workers": 0, "device": "cpu", "resume": "auto"}
    return train(layered(settings))


def whole(out: Path) -> None:
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


def one_size(folder: Path, data: Path, room: int, limited: bool, expected: str) -> str:
    """'enough', or 'full' after all that was promised held; `limited` stands in for a tmpfs."""
    folder.mkdir()
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    else:
        DISK["tmpfs"](folder, room, first=True)
    outcome = "enough"
    try:
        run(data, folder / "run")
    except SpaceError as error:
        outcome = "full"
        if "run again" not in str(error) and "run the same command again" not in str(error):
            raise AssertionError(str(error)) from error
        whole(folder / "run")
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        DISK["tmpfs"](folder, PLENTY, first=False)
    assert run(data, folder / "run").weights_sha256 == expected, "other weights after the retry"
    whole(folder / "run")
    if not limited:
        subprocess.run(["umount", str(folder)], check=True)
    return outcome


def main(folder: Path, sizes: int) -> int:
    torch.set_num_threads(1)
    limited = not DISK["own_mounts"]()
    data = shards(folder / "data")
    expected = run(data, folder / "whole").weights_sha256
    files = [path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file()]
    largest = max(files) + 4096 if limited else sum(files) + 4096 * len(files)
    rooms = [max(4096, largest * step // sizes) for step in range(sizes)]
    outcomes = [one_size(folder / str(number), data, room, limited, expected) for number, room in enumerate(rooms)]
    method = "RLIMIT_FSIZE" if limited else "tmpfs in a mount namespace"
    print(json.dumps({"method": method, "sizes": rooms, "full": outcomes.count("full"), "runs": len(outcomes)}))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
