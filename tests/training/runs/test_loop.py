"""Stage 2 end to end on real shards: what it writes and counts, how it stops, that resuming changes nothing."""

import csv
import hashlib
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from makers.pictures import make_tar
from makers.runs import Listener, stopped_after
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from dlth.data.images.decode import BadImageError
from dlth.data.shards.index import open_index
from dlth.tickets.errors import InputError, MismatchError, MissingTicketError
from dlth.training.distributed.process_group import World
from dlth.training.distributed.signals import StopRequest
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.reporter import Reporter
from dlth.training.runs import checkpoint
from dlth.training.runs.loop import Training, planned, train
from dlth.training.runs.result import DivergedError, RunResult
from dlth.training.runs.sealed_json import read_sealed, sealed
from dlth.training.runs.setup import precision_fact, recipe_fact
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.fields import fixed_settings
from dlth.training.settings.layering import layered
from dlth.training.settings.toml_text import to_toml
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
TIMES = {"images_per_second", "tokens_per_second", "data_seconds", "compute_seconds", "peak_memory_bytes"}
EVERYTHING = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "aa": "rand-m9-mstd0.5-inc1",
    "reprob": 0.25,
    "drop_path": 0.2,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "clip_grad": 1.0,
    "layer_decay": 0.8,
    "grad_accum_steps": 2,
    "batch_size": 4,
    "mix_group": 2,
    "aug_repeats": 2,
    "sched_on_updates": True,
}
"""All that could carry a state from step to step."""


def lines(out: str | Path, kind: str) -> list[dict[str, Any]]:
    """Records of a run's log, without times."""
    records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in TIMES} for row in records if row["kind"] == kind]


def newest(out: str | Path) -> checkpoint.Checkpoint:
    """A run's newest checkpoint."""
    path = checkpoint.newest(Path(out) / "checkpoints")
    assert path is not None
    return checkpoint.load(path)


def saved(out: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint."""
    parts = newest(out).parts
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_leaves_weights_that_timm_loads_and_every_record(make_run: MakeRun) -> None:
    """Weights under timm's names, result, table, log, curves, per-image results: each where it is said to be."""
    config = make_run(model_ema=True, model_ema_decay=0.5, log_tensorboard=True)
    result = train(config)
    out = Path(config.out)
    assert list((out / "tensorboard").glob("events.*"))
    model = timm.create_model(
        config.model, img_size=32, num_classes=4, checkpoint_path=str(out / "model.safetensors"), **config.model_kwargs
    )
    assert same(dict(model.state_dict()), load_file(out / "model.safetensors"))
    ema = timm.create_model(config.model, img_size=32, num_classes=4, **config.model_kwargs)
    ema.load_state_dict(load_file(out / "model_ema.safetensors"))
    assert (result.status, result.exit_code, result.steps, result.epochs) == ("finished", 0, 6, 2)
    written, is_sealed = read_sealed(out / "result.json", 1 << 20)
    assert is_sealed
    assert written == json.loads(json.dumps(result.to_json()))
    assert (written["arm"], written["mode"], written["k"], written["num_patches"]) == ("ticket", "projected", 8, 16)
    assert len(written["tickets"]) == len(written["val_tickets"]) == 64
    assert written["evaluation"].keys() == {"model", "ema"}
    assert {kind: row["tokens"] for kind, row in written["evaluation"]["model"].items()} == {
        "dense": 16,
        "ticket": 8,
        "random": 8,
    }
    assert all(row["images"] == 11 for row in written["evaluation"]["ema"].values())
    assert {"torch", "timm", "zarr", "python"} <= written["versions"].keys()
    assert not {"cuda", "driver"} & written["versions"].keys()
    assert layered({}, config_file=out / "config.toml") == config
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"train_loss", "eval_ticket_top1", "eval_dense_top5", "eval_random_loss", "lr"} <= rows[0].keys()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    with np.load(out / "eval.npz", allow_pickle=False) as images:
        accuracy = 100 * images["ticket_top1"].mean()
        assert len(set(images["keys"].tolist())) == 11
    assert accuracy == pytest.approx(written["evaluation"]["model"]["ticket"]["top1"])


def test_every_image_counts_once_an_epoch_the_short_batches_too(make_run: MakeRun) -> None:
    """21 images in batches of 8: three steps, 21 images and 21 · 9 tokens (8 patches and the class token)."""
    config = make_run(epochs=1, warmup_epochs=0, val=None, val_tickets=None)
    result = train(config)
    seconds = result.throughput["data_seconds"] + result.throughput["compute_seconds"]
    assert result.throughput["images_per_second"] * seconds == pytest.approx(21)
    assert result.throughput["tokens_per_second"] * seconds == pytest.approx(21 * 9)
    assert result.evaluation == {}
    assert len(lines(config.out, "train")) == 3


@pytest.mark.parametrize(
    ("options", "images", "steps", "seen"),
    [
        ({"aug_repeats": 3}, 7, 3, 21),
        ({"drop_last": True}, 16, 2, 16),
        ({"aug_repeats": 2, "drop_last": True}, 8, 2, 16),
    ],
    ids=str,
)
def test_an_epoch_with_repeats_or_without_its_last_batch_is_counted_as_it_is(
    make_run: MakeRun, options: dict[str, Any], images: int, steps: int, seen: int
) -> None:
    """Plan, steps, images of the result and throughput agree on what an epoch of 21 images in batches of 8 shows."""
    config = make_run(epochs=1, warmup_epochs=0, val=None, val_tickets=None, **options)
    facts, result = planned(config), train(config)
    views = options.get("aug_repeats", 1)
    assert facts["an epoch shows"] == f"{images} images in {views} view{'s' * (views > 1)}"
    assert facts["steps"] == f"1 epochs of {steps} steps of 8 images"
    assert (result.steps, result.data["images"], result.data["epoch_images"]) == (steps, 21, images)
    seconds = result.throughput["data_seconds"] + result.throughput["compute_seconds"]
    assert result.throughput["images_per_second"] * seconds == pytest.approx(seen)


def test_cutting_a_step_into_micro_batches_changes_rounding_only(make_run: MakeRun) -> None:
    """Accumulation weighs by images: 8 at once, twice 4, four times 2: one loss curve to 1e-5, short batches too."""
    losses = []
    for accumulate in (1, 2, 4):
        config = make_run(f"run{accumulate}", batch_size=8 // accumulate, grad_accum_steps=accumulate, mixup=0.8)
        train(config)
        losses.append([row["loss"] for row in lines(config.out, "train")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_killed_twice_and_resumed_is_the_unbroken_run_bit_for_bit(
    make_run: MakeRun, train_process: Callable[..., Any]
) -> None:
    """SIGKILL mid-epoch, twice, between checkpoints: weights, optimizer, average, losses and order are the same."""
    whole = make_run("whole", workers=1, **EVERYTHING)
    unbroken = train(whole)
    broken = make_run("broken", checkpoint_steps=2, **EVERYTHING)
    for step in (3, 5):  # of 6, three an epoch; saved are 2, 3 and 4
        assert train_process(broken, signals={step: signal.SIGKILL}).returncode == -signal.SIGKILL
    assert not (Path(broken.out) / "result.json").exists()
    listener = Listener()
    result = train(broken.model_copy(update={"resume": "auto"}), reporter=listener)
    assert "resumed at step 4, epoch 1" in " ".join(listener.notes)
    assert (result.steps, result.hidden_share) == (6, unbroken.hidden_share)
    assert same(saved(whole.out), saved(broken.out))
    for kind in ("train", "epoch"):
        assert lines(broken.out, kind) == lines(whole.out, kind)
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert same(load_file(Path(whole.out) / name), load_file(Path(broken.out) / name))


def test_a_signal_finishes_the_step_saves_and_leaves_with_75(
    make_run: MakeRun, train_process: Callable[..., Any]
) -> None:
    """Asked to stop, a run finishes its step, saves it and exits with 75; going on gives the unbroken run."""
    config = make_run()
    for step, number in ((2, signal.SIGTERM), (4, signal.SIGINT)):
        process = train_process(config, signals={step: number})
        assert process.returncode == 75, process.stderr
        assert newest(config.out).path.name == f"step-{step:08d}"
        assert not (Path(config.out) / "result.json").exists()
    assert train(config.model_copy(update={"resume": "auto"})).exit_code == 0
    whole = make_run("whole")
    train(whole)
    assert same(saved(whole.out), saved(config.out))


def test_resume_refuses_another_run_and_says_what_differs(make_run: MakeRun) -> None:
    """Other settings or other tickets would silently change the experiment; paths and logging may change."""
    config = make_run(epochs=1, warmup_epochs=0)
    train(config)
    with pytest.raises(InputError, match=r"holds a run already .*--resume auto goes on with it"):
        train(config)
    resume = {"resume": "auto", "log_interval": 7}
    with pytest.raises(MismatchError, match=r"lr: the checkpoint has 0\.001, this run 0\.5"):
        train(config.model_copy(update=resume | {"lr": 0.5}))
    with pytest.raises(MismatchError, match=r"global batch: the checkpoint has 8, this run 4"):
        train(config.model_copy(update=resume | {"batch_size": 4}))
    with pytest.raises(MismatchError, match=r"val_tickets: the checkpoint has [0-9a-f]+, this run \n"):
        train(config.model_copy(update=resume | {"val_tickets": None}))
    listener = Listener()
    halves = resume | {"batch_size": 4, "grad_accum_steps": 2}
    assert train(config.model_copy(update=halves), reporter=listener).status == "finished"


def test_a_setting_that_an_older_version_had_not_is_at_its_default_there(make_run: MakeRun) -> None:
    """A finished run of that version is found finished, and a begun one gone on with, which is told; a run that sets it
    otherwise is refused.
    """
    config = make_run(epochs=1, warmup_epochs=0, val=None, val_tickets=None)
    stopped_after(config, 2)
    without = {"tf32": True, "keep_schedule": "cosine"}

    def made_older() -> None:
        state = newest(config.out).path / "state.json"
        _rewritten(state, lambda content: [content["state"]["must_agree"].pop(name) for name in without])

    def older_result(result: dict[str, Any]) -> None:
        for name in without:
            del result["config"][name]
        known = {name: value for name, value in fixed_settings(config).items() if name not in without}
        result["config_sha256"] = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    for status in ("begun", "finished"):
        made_older()
        for name, value in without.items():
            other = config.model_copy(update={"resume": "auto", name: value})
            with pytest.raises(MismatchError, match=f"{name}: the checkpoint has (False|none), this run {value}"):
                train(other)
        if status == "finished":
            _rewritten(Path(config.out) / "result.json", older_result)
            before = (Path(config.out) / "result.json").read_bytes()
        listener = Listener()
        train(config.model_copy(update={"resume": "auto"}), reporter=listener)
        assert sum("a version without keep_schedule, tf32: " in note for note in listener.notes) == 1
    assert (Path(config.out) / "result.json").read_bytes() == before


def _rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A sealed file with another content, sealed again."""
    content, _ = read_sealed(path, 1 << 24)
    change(content)
    path.write_text(json.dumps(sealed(content)))


def test_resume_refuses_other_data_and_says_in_what_it_differs(make_run: MakeRun, make_shards: Any) -> None:
    """The same keys in other shards, under other labels or with other bytes: an epoch would mix two data sets."""
    config = make_run(epochs=1, warmup_epochs=0, missing="dense")
    result = train(config)
    index, folder = open_index(config.data), Path(config.out).parent
    samples = [(index.key(i), index.read(i), int(index.label[i])) for i in range(index.num_samples)]

    def packed(name: str, rows: list[tuple[str, bytes, int]]) -> str:
        (folder / name).mkdir()
        members = [(f"{key}{end}", text) for key, image, label in rows
                   for end, text in ((".jpg", image), (".cls", str(label).encode()))]  # fmt: skip
        make_tar(folder / name / "all.tar", members)
        return str(folder / name)

    assert result.data["data_labels"] == index.identity.labels
    other = {
        "data_order": packed("repacked", samples[::-1]),
        "data_labels": packed("relabelled", [(key, image, (label + 1) % 4) for key, image, label in samples]),
        "data_content": make_shards(3, [7, 5, 9], quality=50, folder=folder / "again").spec,
    }
    for name, spec in other.items():
        with pytest.raises(MismatchError, match=f"{name}: the checkpoint has [0-9a-f]{{64}}, this run [0-9a-f]{{64}}"):
            train(config.model_copy(update={"resume": "auto", "data": spec}))
    again = make_shards(2, [6, 5], split="val", seed=1, quality=50, folder=folder / "again").spec
    with pytest.raises(MismatchError, match="val_content: "):
        train(config.model_copy(update={"resume": "auto", "val": again}))
    assert train(config.model_copy(update={"resume": "auto"})).to_json() == json.loads(json.dumps(result.to_json()))


def test_a_loss_without_a_number_ends_the_run_and_names_the_images(make_run: MakeRun) -> None:
    """A step whose loss is NaN moves nothing; the second in a row ends the run; the last good checkpoint stays."""
    config = make_run(epochs=9, opt="sgd", lr=1e25, warmup_epochs=0, nan_patience=2, checkpoint_steps=1)
    listener = Listener()
    with pytest.raises(DivergedError, match=r"for 2 steps in a row, up to step \d+; .*: n0000000\d_\d+, n"):
        train(config, reporter=listener)
    bad = [row["step"] for row in listener.steps if not math.isfinite(row["loss"])]
    assert bad == [bad[0], bad[0] + 1]
    assert all(torch.isfinite(tensor).all() for tensor in saved(config.out).values())
    written = json.loads((Path(config.out) / "diverged-rank0.json").read_text())
    assert written["step"] == bad[1]
    index = open_index(config.data)
    assert set(written["keys"]) <= {index.key(number) for number in range(index.num_samples)}


def test_weights_that_are_no_numbers_are_never_saved(make_run: MakeRun) -> None:
    """A step can end in infinite weights while its loss was finite: the checkpoint before it stays the newest."""
    config = make_run(opt="sgd", lr=1e38, weight_decay=1e6, warmup_epochs=0, checkpoint_steps=1)
    with pytest.raises(DivergedError, match=r"no longer numbers after step 1: not saved"):
        train(config)
    assert checkpoint.newest(Path(config.out) / "checkpoints") is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"arm": "dense", "tickets": None, "val_tickets": None}, ("dense", "", 16, {"dense"})),
        ({"arm": "dense"}, ("dense", "", 16, {"dense", "ticket", "random"})),
        ({"arm": "random"}, ("random", "", 8, {"dense", "ticket", "random"})),
        (
            {"arm": "random", "tickets": None, "val_tickets": None, "keep": "0.25"},
            ("random", "", 4, {"dense", "random"}),
        ),
        ({"keep": "0.25"}, ("ticket", "projected", 4, {"dense", "ticket", "random"})),
        ({"mode": "frozen", "frozen_views": 2}, ("ticket", "frozen", 8, {"dense", "ticket", "random"})),
        ({"arm": "random", "mode": "frozen"}, ("random", "frozen", 8, {"dense", "ticket", "random"})),
        ({"arm": "random", "mode": "online"}, ("random", "online", 8, {"dense", "ticket", "random"})),
    ],
    ids=["dense alone", "dense", "random", "random alone", "smaller keep", "frozen", "random frozen", "random online"],
)
def test_arms_and_modes_name_themselves(make_run: MakeRun, options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Each arm trains on its tokens and is measured on every kind of tokens that can be had."""
    result = train(make_run(epochs=1, warmup_epochs=0, **options))
    assert (result.arm, result.mode, result.k, result.evaluation["model"].keys()) == expected


@pytest.mark.parametrize(("missing", "trained_on"), [("dense", 32), ("random", 32), ("skip", 21)])
def test_images_without_a_ticket_are_treated_as_told(make_run: MakeRun, missing: str, trained_on: int) -> None:
    """11 of 32 images have no ticket: refused by default, else all patches, random ones, or left out."""
    config = make_run(val=None, val_tickets=None, mixup=0.8)
    both = config.model_copy(update={"data": str(Path(config.data).parent / "*" / "*.tar")})
    with pytest.raises(MissingTicketError, match=r"11 images without a ticket \(an error\)"):
        train(both)
    result = train(both.model_copy(update={"missing": missing}))
    assert result.data["images"] == trained_on
    assert result.steps == 2 * -(-trained_on // 8)
    assert "tickets for 21 of 32 images" in result.data["coverage"]["data"]
    shown_whole = [row.get("whole_images", 0) for row in lines(config.out, "epoch")]
    assert sum(shown_whole) == result.whole_images
    assert all(11 <= images <= 22 for images in shown_whole) if missing == "dense" else shown_whole == [0, 0]


def test_a_corrupt_image_stops_the_run_or_is_named_and_left_out(make_run: MakeRun) -> None:
    """An image of another shard that cannot be decoded: an error by default, else counted in the epoch's row."""
    config = make_run(arm="dense", tickets=None, val=None, val_tickets=None)
    make_tar(Path(config.data) / "train-000009.tar", [("broken.jpg", b"\xff\xd8 no image"), ("broken.cls", b"0")])
    with pytest.raises(BadImageError, match="broken"):
        train(config)
    listener = Listener()
    skipping = config.model_copy(update={"bad_images": "skip", "resume": "auto"})
    train(skipping, reporter=listener)
    assert [row["bad_images"] for row in lines(config.out, "epoch")] == [1, 1]
    assert sum("left out: broken: " in note for note in listener.notes) == 1, "said once"


def test_the_arms_see_the_same_images_in_the_same_order(make_run: MakeRun) -> None:
    """With every patch kept, ticket, random and dense arms are one experiment: equal losses."""
    losses = []
    for arm in ("ticket", "random", "dense"):
        train(make_run(arm, arm=arm, keep="1", mixup=0.8, val=None, val_tickets=None))
        losses.append([row["loss"] for row in lines(make_run(arm).out, "train")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_online_needs_no_tickets_and_its_own_selector_to_go_on(make_run: MakeRun) -> None:
    """A run without ticket files is measured on every kind of tokens, and another selector's weights are refused."""
    dense = train(make_run("teacher", arm="dense", tickets=None, val_tickets=None))
    teacher = str(Path(make_run("teacher").out) / "model.safetensors")
    online = {
        "mode": "online",
        "tickets": None,
        "val_tickets": None,
        "keep": "0.5",
        "selector": "vit_tiny_patch16_224",
        "selector_kwargs": make_run().model_kwargs,
        "selector_checkpoint": teacher,
        "selector_blocks": (0, 1),
        "mixup": 0.8,
    }
    config = make_run("online", **online)
    result = train(config)
    assert (dense.arm, result.mode, result.k, result.tickets) == ("dense", "online", 8, "")
    assert result.evaluation["model"].keys() == {"dense", "ticket", "random"}
    other = str(Path(make_run("teacher").out) / "model_best.safetensors")
    checkpoint.write_tensors(Path(other), {name: tensor + 1 for name, tensor in load_file(other).items()})
    with pytest.raises(MismatchError, match="selector weights"):
        train(config.model_copy(update={"resume": "auto", "selector_checkpoint": other}))


def test_a_keep_schedule_trains_on_fewer_patches_each_step(make_run: MakeRun) -> None:
    """The rate falls from 1 to a half in six steps of three epochs: k is its ceil of 16, and the log says so.

    The random arm has the same k at every step, and tokens are counted as they were trained on.
    """
    schedule = {"keep_schedule": "cosine", "keep_schedule_start": 0, "keep_schedule_epochs": 2}
    falling = [16, 16, 14, 12, 10, 9, 8, 8, 8]
    for arm in ("ticket", "random"):
        config = make_run(arm, arm=arm, epochs=3, val=None, val_tickets=None, **schedule)
        assert planned(config)["tokens"] == "8 of 16 patches, falling from all between epochs 0 and 2"
        result = train(config)
        assert [row["k"] for row in lines(config.out, "train")] == falling
        seconds = result.throughput["data_seconds"] + result.throughput["compute_seconds"]
        per_epoch = sum((k + 1) * images for k, images in zip(falling, [8, 6, 7] * 3, strict=True))
        assert result.throughput["tokens_per_second"] * seconds == pytest.approx(per_epoch)


def test_a_dense_finish_trains_on_whole_images_and_resumes_exactly(make_run: MakeRun) -> None:
    """From its milestone on a run makes the dense arm's steps: stopped between and resumed it ends on the same bits.

    Result and log have k of the run and of its last step, no image counts as one without a ticket, and the two numbers
    of patches are two graphs.
    """
    finish = {"keep_schedule": "0:0.25,1:1.0", "val_interval": 2}
    whole, broken = (make_run(name, **finish) for name in ("whole", "broken"))
    assert planned(whole)["tokens"] == "4 of 16 patches, 16 from epoch 1 on"
    result = train(whole)
    assert [row["k"] for row in lines(whole.out, "train")] == [4, 4, 4, 16, 16, 16]
    assert (result.k, result.k_last, result.keep, result.whole_images) == (4, 16, "0.25", 0)
    tokens = {arm: row["tokens"] for arm, row in result.evaluation["model"].items()}
    assert tokens == {"dense": 16, "ticket": 4, "random": 4}
    alone = World(0, 1, torch.device("cpu"))
    assert Training(broken, alone, Reporter()).run(StopRequest(requested=True)).steps == 1
    train(broken.model_copy(update={"resume": "auto"}))
    assert same(saved(whole.out), saved(broken.out))
    with pytest.raises(MismatchError, match=r"keep_schedule: the checkpoint has 0:0\.25,1:1\.0, this run none"):
        train(whole.model_copy(update={"resume": "auto", "keep": "0.25", "keep_schedule": "none"}))
    torch.compiler.reset()
    counters.clear()
    compiled = {"arm": "random", "torchcompile": "aot_eager", "val": None, "val_tickets": None}
    train(make_run("random", **finish, **compiled))
    assert counters["stats"]["unique_graphs"] == 2


def test_compiled_training_gives_the_same_losses_short_batch_included(make_run: MakeRun) -> None:
    """The last short batch goes through the same student uncompiled: one graph, no image dropped."""
    torch.compiler.reset()
    counters.clear()
    losses = []
    for backend in (None, "aot_eager"):
        config = make_run(str(backend), torchcompile=backend, epochs=1, warmup_epochs=0, val=None, val_tickets=None)
        train(config)
        losses.append([row["loss"] for row in lines(config.out, "train")])
    assert counters["stats"]["unique_graphs"] == 1
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_close_to_float32(make_run: MakeRun, dtype: str) -> None:
    """Under autocast losses stay within 0.02 of float32; float16 scales its loss and a resume keeps the scale."""
    options = {"epochs": 2, "val": None, "val_tickets": None}
    plain, half, broken = (make_run(name, **options) for name in ("plain", "half", "broken"))
    half, broken = (config.model_copy(update={"amp": True, "amp_dtype": dtype}) for config in (half, broken))
    train(plain)
    train(half)
    expected, found = ([row["loss"] for row in lines(config.out, "train")] for config in (plain, half))
    assert found != expected
    assert found == pytest.approx(expected, abs=0.02)
    alone = World(0, 1, torch.device("cpu"))
    assert Training(broken, alone, Reporter()).run(StopRequest(requested=True)).steps == 1
    train(broken.model_copy(update={"resume": "auto"}))
    assert same(saved(half.out), saved(broken.out))
    scale = newest(half.out).state["scaler"]
    assert newest(broken.out).state["scaler"] == scale
    assert scale.get("_growth_tracker") == (6 if dtype == "float16" else None), "steps since the scale changed"


def test_best_weights_are_those_of_the_best_epoch(make_run: MakeRun) -> None:
    """model_best.safetensors holds the epoch with the highest top-1 on the arm's own tokens, the first of equals."""
    config = make_run(epochs=3, lr=0.03)
    result = train(config)
    rows = lines(config.out, "epoch")
    top1, losses = ([row[f"eval_ticket_{name}"] for row in rows] for name in ("top1", "loss"))
    best = int(np.argmax(top1))
    assert best < 2, "else the last weights would pass"
    assert result.best == {"epoch": best, "tokens": "ticket", "top1": max(top1)}
    data = {"val": config.val, "val_tickets": config.val_tickets, "workers": 0, "device": "cpu"}
    found = evaluate(EvalConfig(checkpoint=str(Path(config.out) / "model_best.safetensors"), **data)).table()
    assert np.argmin(np.abs(np.array(losses) - found["ticket"]["loss"])) == best
    assert found["ticket"]["loss"] == pytest.approx(losses[best], abs=1e-5)


def test_starting_from_weights_is_not_resuming(make_run: MakeRun) -> None:
    """--init-from takes over weights alone: a run of another seed begins at step 1 with the loss that they give.

    At a vanishing rate it also ends with them.
    """
    first = train(make_run("first", epochs=1, warmup_epochs=0, lr=1e-2))
    weights, listener = Path(make_run("first").out) / "model.safetensors", Listener()
    second = make_run("second", init_from=str(weights), seed=7, epochs=1, warmup_epochs=0, lr=1e-12, min_lr=0)
    result = train(second, reporter=listener)
    assert [step["step"] for step in listener.steps] == [1, 2, 3]
    for kind in ("dense", "ticket"):
        expected = first.evaluation["model"][kind]["loss"]
        assert result.evaluation["model"][kind]["loss"] == pytest.approx(expected, abs=1e-5)
    for name, tensor in load_file(Path(second.out) / "model.safetensors").items():
        torch.testing.assert_close(tensor, load_file(weights)[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"patch_size": 16}, InputError, r"runs on its own patches of 8 pixels, not of 16"),
        ({"num_classes": 3}, InputError, r"labels up to 3; a head of 3 classes has .*key n00000003_3: label 3\)"),
        ({"opt": "adamww"}, InputError, r"timm has no optimizer 'adamww' \(did you mean 'adamw'\?\)"),
        ({"model": "resnet18", "model_kwargs": {}, "how": "sparse"}, InputError, r"Any model takes --how zero"),
        ({"device": "cuda:99"}, InputError, r"GPU"),
    ],
    ids=["patches", "classes", "optimizer", "model", "device"],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    make_run: MakeRun, overrides: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Both sides are shown, and the folder of the run is not even made."""
    config = make_run(**overrides)
    with pytest.raises(error, match=message):
        train(config)
    assert not Path(config.out).exists()


def test_a_plan_shows_what_would_run_and_writes_nothing(make_run: MakeRun) -> None:
    """--dry-run: the same checks, the same words, no folder."""
    config = make_run()
    facts = planned(config)
    assert facts["tokens"] == "8 of 16 patches"
    assert facts["steps"] == "2 epochs of 3 steps of 8 images"
    assert facts["an epoch shows"] == "21 images in 1 view"
    assert facts["recipe"] == "none"
    assert recipe_fact("deit", 1024) == "deit"
    assert recipe_fact("deit", 256).startswith("deit, meant for 1,024 images a step")
    assert recipe_fact("deit", 256).endswith("the learning rate is scaled linearly")
    assert recipe_fact("deit", 256, scaled=False).endswith("the learning rate is as given")
    assert facts["precision"] == "float32"
    half = {"amp": True, "tf32": True, "deterministic": True, "torchcompile": "eager"}
    on_cpu = planned(make_run(**half))["precision"]
    assert on_cpu == "bfloat16 autocast, deterministic, compiled by eager"  # TF32 is a GPU's way
    assert precision_fact(make_run(tf32=True), torch.device("cuda")) == "float32, TF32 products"
    assert not Path(config.out).exists()
    assert "lr = 0.001" in to_toml(config)


def test_results_name_the_experiment_and_not_the_machine(make_run: MakeRun) -> None:
    """The same experiment in another folder has the same digest; another seed has another."""
    results: list[RunResult] = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        results.append(train(make_run(out, seed=seed, epochs=1, warmup_epochs=0, val=None, val_tickets=None)))
    assert results[0].config_sha256 == results[1].config_sha256 != results[2].config_sha256
    assert results[0].weights_sha256 == results[1].weights_sha256 != results[2].weights_sha256
