"""Stage 1 from shards to a ticket file: resumed, shared, refused."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.campaign import run_script
from makers.pictures import make_image, make_picture, make_tar
from makers.runs import KWARGS, select_config
from makers.tickets import tree_bytes
from makers.warm import rank_variables, run_warm
from torch._dynamo.utils import counters
from torchvision.io import ImageReadMode, decode_image

from dlth.data.images.decode import BadImageError, decode
from dlth.data.images.views import render
from dlth.data.loading.sent_images import SentImages
from dlth.data.shards.index import open_index
from dlth.pipeline.selection import stage
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.stage import SelectReport, plan, select
from dlth.tickets import Budget, Grid, SelectorInfo, TicketStore, TicketWriter
from dlth.tickets.errors import DlthError, InputError, MismatchError, MissingFileError
from dlth.tickets.format.provenance import describe
from dlth.tickets.ranking.averaging import average
from dlth.training import Selector
from dlth.training.device.feed import over_a_stream
from dlth.training.device.numerics import numerics
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.models.registry import build
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.runs.checkpoint import write_tensors
from dlth.training.selectors import batch_ranker
from dlth.training.selectors.batch_ranker import BatchRanker, one_thread_each, ranked_ahead
from dlth.training.selectors.patch_ranker import Selection
from dlth.training.selectors.rankers import RANKERS
from dlth.training.settings.layering import checked


def run(data: str, out: Path, **changes: Any) -> SelectReport:
    return select(plan(select_config(data, out, **changes)))


def test_a_ticket_is_what_the_selector_says_of_the_whole_image(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """Rows in the file equal the selector's ranking of the image resized to the square, in the shard's order."""
    shards = make_shards(2, [5, 3])
    report = run(shards.spec, tmp_path / "t.zarr")
    assert (report.complete, report.images, report.shards, report.skipped) == (True, 8, 2, [])
    store = TicketStore(tmp_path / "t.zarr")
    assert [store.keys(s) for s in range(2)] == [tuple(keys) for keys in shards.keys]

    prepared = plan(select_config(shards.spec, tmp_path / "other.zarr"))
    pixels = []
    import tarfile

    from torchvision.transforms.v2 import functional as F

    with tarfile.open(shards.paths[0]) as tar:
        for key in shards.keys[0]:
            data = tar.extractfile(f"{key}.jpg").read()
            image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            mode = F.InterpolationMode(prepared.header.view.interpolation)
            pixels.append(F.resize(image, [32, 32], mode, antialias=True))
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (store.header.preprocessing.mean, store.header.preprocessing.std)
    )
    expected = prepared.ranker.select((torch.stack(pixels).float() / 255 - mean) / std).patches.numpy()
    np.testing.assert_array_equal(store.read(0).patches, expected)
    assert store.header.k == 8
    assert store.header.selector.blocks == (1, 2, 3)


def test_no_ticket_depends_on_tf32(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """While images are ranked, float32 products are IEEE's, whatever the caller's or PyTorch's own."""
    seen: set[str] = set()

    def look(images: int) -> None:
        seen.update((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))

    with numerics(tf32=True):
        select(plan(select_config(make_shards(1, [3]).spec, tmp_path / "t.zarr")), progress=look)
    assert seen == {"ieee"}


def test_the_bytes_do_not_depend_on_workers_threads_or_processes(
    make_shards: Callable[..., Any], tmp_path: Path
) -> None:
    """One process, loader workers, several threads, and two ranks write the same file, byte for byte.

    Of two ranks the first reports for both: the file's identity and images, and each corrupt one by shard and key.
    """
    shards, good = make_shards(2, [9, 4]), make_image(make_picture(1))
    for number in (2, 3):
        members = [
            (f"{key}_{number}.jpg", good[: len(good) // part]) for key, part in (("broken", 3), ("a", 1), ("b", 1))
        ]
        make_tar(shards.folder / f"train-00000{number}.tar", [*members, (f"c_{number}.jpg", good)])
    run(shards.spec, tmp_path / "a.zarr", threads=1, bad_images="skip")
    run(shards.spec, tmp_path / "b.zarr", workers=2, threads=3, bad_images="skip")
    kwargs = ",".join(f"{name}={value}" for name, value in KWARGS.items())
    command = [
        *(Path(sys.executable).with_name("dlth"), "select", "--model", "vit_tiny_patch16_224"),
        *("--model-kwargs", kwargs, "--data", shards.spec, "--out", str(tmp_path / "c.zarr"), "--img-size", "32"),
        *("--keep", "0.5", "--random-weights", "--workers", "1", "--batch-size", "4", "--num-classes", "4"),
        *("--bad-images", "skip", "--json"),
    ]
    first, second = run_warm(command, command, environments=rank_variables(2))
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, ""), first.stderr + second.stderr
    report = json.loads(first.stdout)
    assert (report["complete"], report["left_to_others"], report["images_in_file"]) == (True, 0, 21)
    assert report["identity"] == TicketStore(tmp_path / "c.zarr").identity
    skipped = "".join(report["skipped"] + report["skipped_elsewhere"])
    for shard, key in (("train-000002.tar", "broken_2"), ("train-000003.tar", "broken_3")):
        assert f"shard {shard}, key {key}" in skipped
        assert f"skipped: shard {shard}, key {key}: " in first.stderr + second.stderr, "whoever met it says why"
    assert tree_bytes(tmp_path / "a.zarr") == tree_bytes(tmp_path / "b.zarr") == tree_bytes(tmp_path / "c.zarr")


def test_killed_at_its_file_system_steps_it_resumes_to_the_same_bytes(
    make_shards: Callable[..., Any], tmp_path: Path
) -> None:
    """kill -9 at every 7th file-system step: nothing incomplete opens, and a second run ends in the same bytes."""
    shards = make_shards(2, [3, 2])
    code, counts = run_script("faults/kill_select.py", shards.spec, tmp_path, 7, warm=True)
    assert code == 0
    assert counts["steps"] > 20
    assert counts["kills"] == -(-counts["steps"] // 7)


def test_stopped_with_a_batch_queued_ahead_it_resumes_to_the_same_bytes(
    make_shards: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 as a GPU computes it, shards claimed by the thread that sends their images: progress counts what was
    read, in order; a stop lets go of all claims and costs no shard that was written."""
    shards, counted = make_shards(3, [5, 3, 4]), list[int]()
    run(shards.spec, tmp_path / "a.zarr", threads=1)
    monkeypatch.setattr(stage, "rank_batches", lambda batches, ranker, threads: ranked_ahead(batches, ranker))
    monkeypatch.setattr(batch_ranker, "sent_ahead", over_a_stream)
    monkeypatch.setattr(SentImages, "pin_memory", lambda batch: batch)  # which a CPU alone cannot

    def stop(images: int) -> None:
        counted.append(images)
        if len(counted) == 3:  # batches of 4: two of the first shard, one of the second
            raise KeyboardInterrupt

    with one_thread_each():
        with pytest.raises(KeyboardInterrupt):
            select(plan(select_config(shards.spec, tmp_path / "b.zarr")), progress=stop)
        report = select(plan(select_config(shards.spec, tmp_path / "b.zarr")), progress=counted.append)
    assert counted == [4, 1, 3, 3, 4]
    assert (report.complete, report.shards_before, report.images) == (True, 1, 7)
    assert tree_bytes(tmp_path / "a.zarr") == tree_bytes(tmp_path / "b.zarr")


def test_another_configuration_on_the_same_file_is_refused(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """The error names what differs, and the file stays as it was."""
    shards = make_shards(1, 3)
    run(shards.spec, tmp_path / "t.zarr")
    before = tree_bytes(tmp_path / "t.zarr")
    with pytest.raises(MismatchError, match=r"keep.*0\.5.*0\.25"):
        run(shards.spec, tmp_path / "t.zarr", keep="0.25")
    assert run(shards.spec, tmp_path / "t.zarr").images == 0
    assert tree_bytes(tmp_path / "t.zarr") == before


def test_a_corrupt_image_stops_the_run_or_is_skipped_and_remembered(tmp_path: Path) -> None:
    """With `skip` the row stays, without a ticket, counted in the report and in the file."""
    good = make_image(make_picture(1))
    (tmp_path / "data").mkdir()
    images = {"a": good, "b": good[: len(good) // 3], "c": good}
    make_tar(tmp_path / "data" / "train-000000.tar", [(f"{key}.jpg", image) for key, image in images.items()])
    spec = str(tmp_path / "data")
    with pytest.raises(BadImageError, match=r"key b.*--bad-images skip"):
        run(spec, tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr").exists()
    report = run(spec, tmp_path / "t.zarr", bad_images="skip")
    assert len(report.skipped) == 1
    assert "key b" in report.skipped[0]
    store = TicketStore(tmp_path / "t.zarr")
    assert list(store.read(0).skipped) == [False, True, False]
    assert store.shards[0].skipped == 1
    assert store.verify() == []


def weights_of_a_run(folder: Path) -> torch.nn.Module:
    """A run's folder with nothing but its weights, which know mean, deviation, crop and size; gives back the model."""
    torch.manual_seed(3)
    vit = build("vit_tiny_patch16_224", num_classes=4, img_size=32, **KWARGS)
    for weight in vit.parameters():
        if weight.ndim > 1:  # so large that attention differs from patch to patch
            torch.nn.init.normal_(weight, std=0.15)
    note = WeightsNote(
        model="vit_tiny_patch16_224",
        model_kwargs=KWARGS,
        num_classes=4,
        img_size=32,
        mean=(0.1, 0.1, 0.1),
        std=(0.2, 0.2, 0.2),
        crop_pct=1.0,
        interpolation="bilinear",
    )
    folder.mkdir()
    write_tensors(folder / "model.safetensors", vit.state_dict(), note.to_json())
    return vit


def test_a_runs_folder_says_model_and_images_and_flags_win(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """`--checkpoint RUN` alone: model, arguments, size and normalisation are the file's, and so are the tickets; a flag
    that says otherwise is named, wins, and stands in the header."""
    shards = make_shards(1, 6)
    vit = weights_of_a_run(tmp_path / "run")
    values = {"data": shards.spec, "view": "center", "keep": "0.5", "workers": 0, "checkpoint": str(tmp_path / "run")}
    said: list[str] = []
    prepared = plan(checked(SelectConfig, values | {"out": str(tmp_path / "a.zarr")}), said.append)
    select(prepared)
    header = TicketStore(tmp_path / "a.zarr").header
    assert said == []
    assert (header.preprocessing.mean, header.preprocessing.std) == ((0.1,) * 3, (0.2,) * 3)
    assert (header.view.crop_pct, header.view.interpolation, header.view.height) == ("1.0", "bilinear", 32)
    assert (header.selector.model, header.selector.weights_source) == ("vit_tiny_patch16_224", "model.safetensors")
    index = open_index(shards.spec)
    pixels = torch.stack([render(decode(index.read(i), where="test"), header.view) for i in range(6)])
    expected = Selector(vit, blocks=(1, 2, 3), keep="0.5").rank((pixels.float() / 255 - 0.1) / 0.2).numpy()
    np.testing.assert_array_equal(TicketStore(tmp_path / "a.zarr").read(0).patches, expected)

    flags = {
        "mean": "0.5,0.5,0.5",
        "std": "0.5,0.5,0.5",
        "model": "vit_tiny_patch16_224",
        "out": str(tmp_path / "b.zarr"),
    }
    select(plan(checked(SelectConfig, values | flags), said.append))
    (told,) = said
    assert "--mean 0.5,0.5,0.5 (recorded: 0.1,0.1,0.1), --std 0.5,0.5,0.5 (recorded: 0.2,0.2,0.2)" in told
    store = TicketStore(tmp_path / "b.zarr")
    assert store.header.preprocessing.mean == (0.5,) * 3
    assert not np.array_equal(store.read(0).patches, expected)
    with pytest.raises(MissingFileError, match=r"holds no model_ema\.safetensors"):
        plan(checked(SelectConfig, values | {"out": "c.zarr", "use_ema": True}))


def test_whoever_finishes_the_file_reports_for_all(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """A process that leaves a shard to another says so; that other then names what the first skipped, and counts all.

    One that waits for a process that dies does its shard.
    """
    shards = make_shards(2, [3, 2])
    make_tar(shards.folder / "train-000002.tar", [("empty.jpg", b""), *((f"{key}.jpg", b"no image") for key in "ab")])
    first = plan(select_config(shards.spec, tmp_path / "t.zarr", bad_images="skip"))
    other = TicketWriter(tmp_path / "t.zarr", first.header, first.shards, first.index.key_width)
    with other.claim(1) as mine:
        assert mine
        report = select(first)
        assert (report.complete, report.left_to_others, report.images, len(report.skipped)) == (False, 1, 6, 3)
        waiting: list[SelectReport] = []
        thread = threading.Thread(target=lambda: waiting.append(select(first, wait=True)))
        thread.start()
        thread.join(1.0)
        assert thread.is_alive(), "it waits while the shard is in another's hands"
    thread.join(60)
    (last,) = waiting
    assert (last.complete, last.left_to_others, last.images, last.images_in_file) == (True, 0, 2, 8)
    assert last.skipped_elsewhere == [f"shard train-000002.tar, key {key}" for key in ("empty", "a", "b")]
    assert last.identity == TicketStore(tmp_path / "t.zarr").identity


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """The plan names tokens, file size and cost."""
    shards = make_shards(1, 3)
    facts = plan(select_config(shards.spec, tmp_path / "t.zarr")).facts()
    assert facts["tokens after each stage"] == "16 -> 13 -> 11 -> 8"
    assert facts["images"] == 3
    assert "GFLOP per image" in str(facts["cost"])
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"random_weights": False}, "exactly one of --pretrained, --checkpoint FILE and", id="no weights"),
        pytest.param({"stage_keep": "0.7"}, "--keep and --stage-keep exclude each other", id="two budgets"),
        pytest.param({"model": "resnet18", "model_kwargs": {}, "img_size": None}, "What can", id="a CNN"),
        pytest.param({"model": "deit_smal"}, "did you mean.*deit_small", id="misspelt model"),
        pytest.param({"model": "vit_tiny_patch16_224.x"}, "no weights 'x' of vit_tiny_patch16_224", id="no such tag"),
        pytest.param({"keep": "1.5"}, "keep", id="keep above one"),
        pytest.param({"blocks": "1,9"}, "9", id="no such block"),
        pytest.param({"blocks": ""}, "--blocks: .*at least 1 item", id="blocks that are none"),
        pytest.param({"model_kwargs": "device=meta"}, "a flag of its own: --device", id="a device among kwargs"),
        pytest.param({"model_kwargs": "num_classes=5"}, "a flag of its own: --num-classes", id="a flag among kwargs"),
        pytest.param(
            {"model_kwargs": KWARGS | {"in_chans": 1}}, "cannot see an RGB image of 32x32 pixels", id="grey images"
        ),
        pytest.param({"torchcompile": "inducter"}, "did you mean inductor", id="no such backend"),
        pytest.param({"workers": 2**63 - 1}, "workers are too many", id="too many workers"),
        pytest.param({"device": "cuda"}, "sees no CUDA GPU", id="no GPU"),
        pytest.param({"average_views": 2, "crop_scale": "0,1"}, "above 0 up to 1", id="crops of nothing"),
        pytest.param({"data": "nowhere/x-{000..002}.tar"}, "nowhere", id="no shards"),
        pytest.param({"checkpoint": "nothing.pth", "random_weights": False}, "nothing.pth", id="no checkpoint"),
    ],
)
def test_what_cannot_be_selected_is_refused_before_anything_is_written(
    make_shards: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Every mistake is an error of dlth's family that says what to do."""

    shards = make_shards(1, 2)
    with pytest.raises(DlthError, match=message):
        plan(select_config(**({"data": shards.spec, "out": tmp_path / "t.zarr"} | changes)))
    assert not (tmp_path / "t.zarr").exists()
    assert not (tmp_path / "t.zarr.partial").exists()


def test_shards_without_images_are_refused(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """A ticket file of no image is not begun: what the shards hold instead is said."""
    with pytest.raises(DlthError, match="train: 1 shards hold no image"):
        plan(select_config(data=make_shards(1, 0).spec, out=tmp_path / "t.zarr"))


def test_the_batch_is_halved_until_it_fits_the_device() -> None:
    """A selector whose device holds 3 images ranks 16 of them all the same, and says so; rows stay in order."""
    import timm

    class SmallDevice(Selector):
        def select(self, images: torch.Tensor) -> Any:
            if len(images) > 3:
                raise torch.OutOfMemoryError
            return super().select(images)

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, **KWARGS)
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8)
    said: list[str] = []
    small = BatchRanker(SmallDevice(vit, 0.7, (1, 2)), batch_size=16, note=said.append)
    whole = BatchRanker(Selector(vit, 0.7, (1, 2)), batch_size=16)
    np.testing.assert_array_equal(small(images)[0], whole(images)[0])
    assert [text.split(":")[1] for text in said] == [f" going on with {size}" for size in (8, 4, 2)]


class Stripes:
    """A ranker without a model: the columns of 4 x 4 patches, from the brighter side on."""

    frame = Frame(Grid(4, 4), (32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    budget = Budget.from_keep("0.5", 16, 1)
    info = SelectorInfo("stripes", "", "drawn by hand", (0,))
    device = torch.device("cpu")
    flops = (0, 0)
    seen = 0

    def select(self, images: torch.Tensor, budget: Budget | None = None) -> Selection:
        self.seen += len(images)
        left = images[..., :16].mean((1, 2, 3)) >= images[..., 16:].mean((1, 2, 3))
        columns = torch.where(left[:, None], torch.arange(4), torch.arange(4).flip(0))
        patches = (columns[:, :, None] + 4 * torch.arange(4)).flatten(1)
        return Selection(patches, torch.ones(len(images)))


def test_stage_1_asks_a_ranker_for_nothing_but_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One made of a few lines, and named in the registry, writes the ticket file; it never sees a bad image."""
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:, :16] = 255
    left, right = (make_image(pixels, "PNG") for pixels in (halves, halves[:, ::-1]))
    members = {"bad": b"no image", "left": left, "right": right}
    make_tar(tmp_path / "train-000000.tar", [(f"{key}.png", data) for key, data in members.items()])
    ranker = Stripes()
    monkeypatch.setitem(RANKERS, "stripes", lambda wanted, device: ranker)
    config = select_config(str(tmp_path), tmp_path / "t.zarr", bad_images="skip")
    as_object = plan(config, ranker=ranker)
    assert as_object.header.extensions == {"ranker": f"{Stripes.__module__}:Stripes"}
    assert (as_object.ranker.ranker, ranker.seen) == (ranker, 4)  # a black image, and three at once
    ranker.seen = 0
    made = plan(config, ranker="stripes")
    assert made.header.extensions == {"ranker": "stripes"}
    assert (select(made).images, made.header.k, made.header.selector.model) == (3, 8, "stripes")
    assert ranker.seen == 2
    store = TicketStore(tmp_path / "t.zarr")
    columns = store.patches(0)[:, ::4] % 4
    assert columns[1:].tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert store.skipped(0).tolist() == [True, False, False]
    assert store.verify() == []


def test_averaged_views_give_the_same_bytes_however_they_are_computed(
    make_shards: Callable[..., Any], tmp_path: Path
) -> None:
    """Worker processes, threads, and a run that begins where another ended write one file, whose header, line of
    provenance and plan say over what; its rankings are the mean of what the ranker says of each view.

    An image that cannot be decoded keeps its row, and a run with other crops does not go on with the file.
    """
    shards = make_shards(2, [5, 3])
    make_tar(shards.folder / "train-000002.tar", [("bad.jpg", b"no image"), ("good.jpg", make_image(make_picture(1)))])
    asked = {"average_views": 3, "crop_scale": "0.3,1", "bad_images": "skip", "seed": 5}
    prepared = plan(select_config(shards.spec, tmp_path / "a.zarr", **asked))
    assert "5 views an image" in str(prepared.facts()["cost"])
    assert (
        prepared.facts()["averaged over"] == "the view, its mirror, 3 crops of 0.3 to 1 of its area (seed 5): 5 views"
    )
    other = TicketWriter(tmp_path / "a.zarr", prepared.header, prepared.shards, prepared.index.key_width)
    with other.claim(1) as mine:
        assert mine
        assert not select(prepared).complete
    assert select(prepared).complete
    run(shards.spec, tmp_path / "b.zarr", **asked, workers=2, threads=2)
    assert tree_bytes(tmp_path / "a.zarr") == tree_bytes(tmp_path / "b.zarr")

    store = TicketStore(tmp_path / "a.zarr")
    assert store.verify() == []
    assert store.header.extensions["average_views"] == {"crops": 3, "scale": [0.3, 1.0], "mirrored": 0.5, "seed": 5}
    assert describe(store.header).endswith("blocks 1,2,3, mean of 5 views")
    assert store.skipped(2).tolist() == [True, False]
    several, pixels = prepared.several, Pixels(prepared.ranker.frame.mean, prepared.ranker.frame.std)
    for row, key in enumerate(shards.keys[0]):
        shown, maps = several.of(decode(prepared.index.read(row), where="test"), key)
        rankings = prepared.ranker.select(pixels(shown)).patches.numpy()
        expected, mean = average(rankings[None], maps[None], Grid(4, 4))
        np.testing.assert_array_equal(store.patches(0)[row], expected[0])
        gap = np.diff(mean[0][expected[0][7:9]])[0] / 4
        assert store.read(0).gap[row] == pytest.approx(gap)
    with pytest.raises(MismatchError, match=r"extensions\.average_views\.crops: file has 3, asked 2"):
        run(shards.spec, tmp_path / "a.zarr", **asked | {"average_views": 2})


def test_one_view_without_a_score_leaves_the_image_without_a_ticket(
    make_shards: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that are no numbers in a single crop are an error that names the image, not a mean of the others."""
    shards = make_shards(1, 2)

    class Lost(Stripes):
        def select(self, images: torch.Tensor, budget: Budget | None = None) -> Selection:
            patches, gap = super().select(images)
            gap[-1] = torch.nan
            return Selection(patches, gap)

    monkeypatch.setitem(RANKERS, "stripes", lambda wanted, device: Lost())
    config = select_config(shards.spec, tmp_path / "t.zarr", average_views=2, batch_size=1)
    with pytest.raises(InputError, match=f"key {shards.keys[0][0]}: the scores of its patches are no"):
        select(plan(config, ranker="stripes"))


BACKBONES = [
    ("vit_small_patch14_reg4_dinov2", {"patch_size": 14, "img_size": 56}, "evit"),
    ("vit_small_patch16_dinov3", {}, "evit"),
    ("vit_base_patch16_clip_224", {}, "evit"),
    ("vit_base_patch16_siglip_224", {}, "pool-attention"),
    ("vit_base_patch16_siglip_gap_224", {}, "feature-norm"),
]
"""Today's backbones of timm, small here, and what ranks with each where nobody says."""


@pytest.mark.parametrize(("model", "size", "ranker"), BACKBONES, ids=[model for model, _, _ in BACKBONES])
def test_todays_backbones_select_as_they_are(
    make_shards: Callable[..., Any], tmp_path: Path, model: str, size: dict[str, int], ranker: str
) -> None:
    """By model and weights alone: by the class token where there is one, otherwise by a rule that the plan gives the
    reason for; the file says which, and another on the same file is refused."""
    shards = make_shards(1, 3)
    kwargs = KWARGS | {name: value for name, value in size.items() if name == "patch_size"}
    changes = {"model": model, "model_kwargs": kwargs, "img_size": size.get("img_size", 32)}
    prepared = plan(select_config(shards.spec, tmp_path / "t.zarr", **changes))
    said = str(prepared.facts()["ranker"])
    assert said.startswith(ranker)
    assert ("evit cannot rank with this VisionTransformer: it has no class token" in said) == (ranker != "evit")
    assert select(prepared).complete
    store = TicketStore(tmp_path / "t.zarr")
    assert store.verify() == []
    assert store.header.extensions == ({} if ranker == "evit" else {"ranker": ranker})
    assert (f"ranked by {ranker}" in describe(store.header)) == (ranker != "evit")
    assert store.header.k == 8
    before = tree_bytes(tmp_path / "t.zarr")
    run(shards.spec, tmp_path / "again.zarr", ranker=ranker, **changes)
    assert tree_bytes(tmp_path / "again.zarr") == before
    other = "feature-norm" if ranker == "evit" else "evit"
    with pytest.raises(
        DlthError, match=r"no class token.*What can|extensions\.ranker: file has nothing, asked feature"
    ):
        run(shards.spec, tmp_path / "t.zarr", ranker=other, **changes)


def test_an_empty_shard_is_written_as_what_it_is(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """A tar without samples does not keep the file from being finished, and has no rows in it."""
    shards = make_shards(1, 3)
    make_tar(shards.folder / "train-000001.tar", [])
    assert run(shards.spec, tmp_path / "t.zarr").complete
    store = TicketStore(tmp_path / "t.zarr")
    assert [shard.rows for shard in store.shards] == [3, 0]
    assert store.verify() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_empty_image_file_is_a_bad_image(tmp_path: Path, workers: int) -> None:
    """Zero bytes are skipped like any corrupt image; the error is dlth's own even when another process read it."""
    (tmp_path / "data").mkdir()
    good = make_image(make_picture(1))
    members = [("a.jpg", b""), ("a.cls", b"0"), ("b.jpg", good), ("b.cls", b"1")]
    make_tar(tmp_path / "data" / "train-000000.tar", members)
    with pytest.raises(DlthError, match=r"^shard train-000000.tar, key a.*--bad-images skip$"):
        run(str(tmp_path / "data"), tmp_path / "t.zarr", workers=workers)
    report = run(str(tmp_path / "data"), tmp_path / "t.zarr", workers=workers, bad_images="skip")
    assert report.complete
    assert len(report.skipped) == 1


def test_a_shard_that_vanishes_is_an_error_that_names_it(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """A reading process's error arrives as itself, without that process's traceback."""
    shards = make_shards(2, 3)
    prepared = plan(select_config(shards.spec, tmp_path / "t.zarr", workers=1))
    shards.paths[1].unlink()
    with pytest.raises(MissingFileError, match=r"train-000001\.tar") as caught:
        select(prepared)
    assert "Traceback" not in str(caught.value)


def test_a_compiled_selector_gives_the_same_tickets(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """`torchcompile` is a backend's name, as in training; short batches are filled up and cut again."""
    shards = make_shards(1, 6)
    run(shards.spec, tmp_path / "plain.zarr")
    torch.compiler.reset()
    counters.clear()
    run(shards.spec, tmp_path / "compiled.zarr", torchcompile="eager")
    assert counters["stats"]["unique_graphs"] == 1
    plain, compiled = (TicketStore(tmp_path / f"{name}.zarr") for name in ("plain", "compiled"))
    np.testing.assert_array_equal(plain.patches(0), compiled.patches(0))
    with pytest.raises(InputError, match=r"--torchcompile inducto: .*did you mean inductor"):
        run(shards.spec, tmp_path / "other.zarr", torchcompile="inducto")
