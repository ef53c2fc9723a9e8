"""Beginning a run at a later step, and keeping the weights that others begin with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.masks import mask_file
from makers.runs import Listener, stopped_after

from dlth.tickets.errors import DamageError, InputError
from dlth.training.distributed.process_group import World
from dlth.training.models.registry import build
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import Training, planned, train
from dlth.training.runs.run_progress import RunProgress, RunSize
from dlth.training.runs.runlog import logged_epochs
from dlth.training.runs.survey import survey
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
STATELESS = {
    **{"opt": "momentum", "momentum": 0.0, "lr": 0.05, "epochs": 2, "sched_on_updates": True},
    **{"drop_path": 0.2, "mixup": 0.8, "cutmix": 1.0, "mix_group": 2, "reprob": 0.25, "aa": "rand-m9-mstd0.5-inc1"},
}
"""Chance in every place, a rate that changes each step, and nothing that an optimizer carries from step to step."""
SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "val": None, "val_tickets": None}
TIMES = ("images_per_second", "tokens_per_second", "data_seconds", "compute_seconds", "peak_memory_bytes")


def rows(config: TrainConfig, kind: str, after: int) -> list[dict[str, Any]]:
    """The log's records behind a step, without what is measured in seconds or summed over the epoch."""
    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    left = (*TIMES, "train_loss", "images", "tokens", "flops", "hidden_share", "remaining_weights")
    records = [record for record in map(json.loads, lines) if record["kind"] == kind and record["step"] > after]
    return [{name: value for name, value in record.items() if name not in left} for record in records]


def test_a_run_from_a_rewinding_point_is_the_tail_of_the_run_that_kept_it(make_run: MakeRun, tmp_path: Path) -> None:
    """Order, augmentation, chance, learning rate and keep schedule go on as from that step: bit for bit, to the end,
    also under a mask that masks nothing, and stopped and resumed on the way. The point is that step's whole state.
    """
    whole = make_run("whole", **STATELESS, rewind_step=2, checkpoint_steps=1, checkpoint_hist=9)
    end, out = train(whole), Path(whole.out)
    kept = out / "rewind.safetensors"
    saved = [out / f"checkpoints/step-{at:08d}/model.safetensors" for at in range(6)]
    note = WeightsNote.read(kept)
    assert note is not None
    assert (note.model, note.step) == (whole.model, 2)
    assert kept.read_bytes() == saved[2].read_bytes()
    torch.manual_seed(0)
    model = build(whole.student, num_classes=4, img_size=32, **whole.model_kwargs)
    mask_file(model, whole.student, tmp_path / "mask.safetensors", level=0)
    for step, start in ((2, kept), (3, saved[3])):  # inside an epoch, and between two
        options = {"start_step": step, "init_from": str(start), "mask": str(tmp_path / "mask.safetensors")}
        tail = make_run(f"tail{step}", **STATELESS, init_seed=5, **options)
        stopped_after(tail, 4)
        result = train(tail.model_copy(update={"resume": "auto"}))
        assert result.weights_sha256 == end.weights_sha256
        assert (result.steps, result.epochs, result.evaluation) == (end.steps, end.epochs, end.evaluation)
        for kind in ("train", "epoch"):
            assert rows(tail, kind, step) == rows(whole, kind, step)
        told = survey(tail)
        work = told.work(2)
        assert (work.images, work.tokens, work.flops) == (
            result.train_images,
            result.train_tokens,
            result.train_flops,
        )
        assert told.evaluations(2, 1) == len(logged_epochs(Path(tail.out)))


def test_what_a_run_from_a_later_step_will_take_is_counted_from_there(make_run: MakeRun) -> None:
    """21 images in steps of 8, 8 and 5: from step 4 of nine, what is left is 8 + 5 images and one whole epoch."""
    whole, tail = (survey(make_run("run", epochs=3, start_step=step)) for step in (0, 4))
    assert (whole.work(3).images, tail.work(3).images) == (63, 34)
    assert [work.images for work in tail.first_epochs] == [0, 13, 21]
    assert tail.read_bytes == whole.read_bytes
    assert whole.bytes_read(3, 2) == 3 * whole.read_bytes + 2 * whole.val_bytes
    assert tail.bytes_read(3, 0) == tail.read_bytes * 34 // 21
    assert [whole.evaluations(3, interval) for interval in (1, 2, 3)] == [3, 2, 1]
    assert [tail.evaluations(3, interval) for interval in (1, 2, 3)] == [2, 2, 1]


@pytest.mark.parametrize("step", [0, 2])
def test_a_rewinding_point_is_the_same_to_the_byte_however_the_run_was_stopped(make_run: MakeRun, step: int) -> None:
    """Stopped before it, at it, or never; before the first step it holds the first weights."""
    config = make_run("run", rewind_step=step, **SHORT)
    stopped_after(config, 1)
    point = Path(config.out) / "rewind.safetensors"
    assert point.exists() == (step == 0)
    kept = point.read_bytes() if step == 0 else b""
    stopped_after(config.model_copy(update={"resume": "auto"}), 2)
    kept = kept or point.read_bytes()
    if step == 2:
        point.unlink()
    train(config.model_copy(update={"resume": "auto"}))
    assert point.read_bytes() == kept
    again = make_run("again", rewind_step=step, **SHORT)
    stopped_after(again, 2)
    assert (Path(again.out) / "rewind.safetensors").read_bytes() == kept


def test_a_seed_of_the_first_weights_alone_leaves_everything_else_as_it_is(make_run: MakeRun) -> None:
    """`init_seed` draws other first weights; equal to `seed` it changes nothing, and the order is `seed`'s."""
    world = World(0, 1, torch.device("cpu"))
    first = [
        Training(make_run(f"run{number}", seed=3, init_seed=seed), world, Reporter()).parts
        for number, seed in enumerate((None, 3, 4))
    ]
    heads = [parts.student.model.state_dict()["blocks.0.attn.qkv.weight"] for parts in first]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    ids = [[batch.ids.tolist() for (batch,) in parts.train_steps(0, 0)] for parts in first]
    assert ids[0] == ids[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start_step": 6}, r"--start-step 6 is at or beyond the end .*2 epochs of 3 steps, 6 in all.*at most 5"),
        ({"rewind_step": 6}, r"--rewind-step 6 .*begins at step 0 and has 2 epochs of 3 steps, 6 in all.*Give 0 to 5"),
        ({"start_step": 4, "rewind_step": 3}, r"--rewind-step 3 .*begins at step 4.*Give 4 to 5"),
    ],
    ids=["start", "rewind", "rewind before start"],
)
def test_a_step_at_which_no_step_is_left_is_refused(make_run: MakeRun, options: dict[str, int], said: str) -> None:
    """A start at the end, and a rewinding point that the run never stands at, are refused with both numbers."""
    with pytest.raises(InputError, match=said):
        planned(make_run("run", **options))


def test_a_checkpoint_from_before_the_first_step_is_none_of_the_run(make_run: MakeRun) -> None:
    """A run that began at step 4 has no progress at step 3, nor sums of more steps than it took."""
    size, begun = RunSize(2, 3, 21, 8, 17, start_step=4), RunProgress.beginning(4, 3)
    assert (begun.epoch, begun.batch, begun.step) == (1, 1, 4)
    values = json.loads(json.dumps(begun, default=vars))
    assert RunProgress.from_json(values, size) == begun
    with pytest.raises(DamageError, match="that begins at step 4 never does"):
        RunProgress.from_json(values | {"batch": 0, "step": 3}, size)
    with pytest.raises(DamageError, match="are not of 0 steps"):
        RunProgress.from_json(values | {"in_run": values["in_run"] | {"images": 8.0}}, size)


def test_a_new_start_takes_no_lines_of_another_run(make_run: MakeRun) -> None:
    """The log of a run that begins at step 4 begins there, whatever a run that never saved left in its folder."""
    config = make_run("run", start_step=4, val=None, val_tickets=None)
    begun = Training(config.model_copy(update={"start_step": 0}), World(0, 1, torch.device("cpu")), Listener())
    begun._open_log()
    assert begun.log is not None
    begun.log.add("train", 2, epoch=0)
    begun.log.close()
    train(config)
    assert [record["step"] for record in rows(config, "train", 0)] == [5, 6]
