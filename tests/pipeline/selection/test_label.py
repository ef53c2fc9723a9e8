"""`dlth label`: token labels from an annotator, or from published maps, in a file that resumes and is checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.pictures import make_image, make_picture, make_tar
from makers.tickets import tree_bytes

from dlth.data.images.decode import decode
from dlth.data.images.views import render
from dlth.pipeline.selection.label_config import LabelConfig
from dlth.pipeline.selection.label_stage import LabelPlan, label, plan
from dlth.tickets.errors import DlthError, InputError, MismatchError
from dlth.tickets.store.label_store import LabelStore

ANNOTATOR = {"annotator": "resnet10t", "num_classes": 7, "img_size": 64, "random_weights": True, "num_best": 3}


def planned(data: str, out: Path, **changes: Any) -> LabelPlan:
    settings = {"batch_size": 4, "workers": 0, "threads": 1, **ANNOTATOR}
    return plan(LabelConfig(data=data, out=str(out), **settings | changes))


def test_labels_are_what_the_annotator_says_of_the_whole_image(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """Rows are the annotator's best classes of each cell of the image resized to the square; a corrupt image has none.

    Stopped between shards and gone on with, in batches by several threads and workers, the bytes are the same.
    """
    shards = make_shards(2, [5, 3])
    broken = [("broken_0.jpg", make_image(make_picture(1))[:200]), ("fine_0.jpg", make_image(make_picture(2)))]
    make_tar(shards.folder / "train-000002.tar", broken)
    once = planned(shards.spec, tmp_path / "a.zarr", bad_images="skip")
    report = label(once)
    assert (report.complete, report.images, report.shards, len(report.skipped)) == (True, 10, 3, 1)
    store = LabelStore(tmp_path / "a.zarr")
    assert store.verify() == []
    assert store.skipped(2).tolist() == [True, False]
    images = [decode(encoded, where="") for encoded in once.index.read_many([0, 1, 2])]
    pixels = torch.stack([render(image, once.header.view) for image in images]).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (once.annotator.frame.mean, once.annotator.frame.std))
    classes, scores = once.annotator.select((pixels - mean) / std)
    np.testing.assert_array_equal(store.labels(0).classes[:3], classes)
    np.testing.assert_allclose(store.labels(0).scores[:3], scores, atol=2e-3)

    def stop(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(planned(shards.spec, tmp_path / "b.zarr", bad_images="skip"), skip=lambda images: None, progress=stop)
    with pytest.raises(MismatchError, match=r"annotator.weights_sha256"):
        label(planned(shards.spec, tmp_path / "b.zarr", bad_images="skip", seed=1))
    label(planned(shards.spec, tmp_path / "b.zarr", bad_images="skip", threads=3, workers=1))
    assert tree_bytes(tmp_path / "a.zarr") == tree_bytes(tmp_path / "b.zarr")


def test_the_commands(dlth: Callable[..., Any], make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """`dlth label` writes, `dlth tickets` shows, checks, packs and unpacks; a dry run writes nothing."""
    shards, out = make_shards(1, 3), tmp_path / "labels.zarr"
    words = ["label", "--annotator", "resnet10t", "--num-classes", 7, "--img-size", 64, "--data", shards.spec]
    words += ["--out", out, "--workers", 0, "--threads", 1, "--batch-size", 2]
    code, said, err = dlth(*words, "--random-weights", "--dry-run")
    assert (code, out.exists()) == (0, False), err
    assert "2x2 cells" in said
    code, said, err = dlth(*words, "--random-weights", "--json")
    assert code == 0, err
    identity = json.loads(said)["identity"]
    code, said, _ = dlth("tickets", "info", out)
    assert code == 0
    assert "the 5 best of 7 classes of each cell" in said
    assert dlth("tickets", "verify", out)[0] == 0
    assert dlth("tickets", "pack", out, "--out", tmp_path / "l.zip")[0] == 0
    code, said, _ = dlth("tickets", "unpack", tmp_path / "l.zip", "--out", tmp_path / "again.zarr", "--json")
    assert json.loads(said)["identity"] == identity
    code, _, err = dlth(*words)
    assert code == 2
    assert "exactly one of --pretrained, --checkpoint FILE and" in err
    code, _, err = dlth("tickets", "stats", out)
    assert code == 2
    assert "no ticket file" in err


def write_maps(folder: Path, keys: list[str], **changes: Any) -> np.ndarray:
    """Maps of random classes as they are published; gives back float16 [images, 2, 5, 6, 6]."""
    rng = np.random.default_rng(0)
    classes = rng.permuted(np.indices((len(keys), 20, 6, 6))[1], axis=1)[:, :5]
    maps = np.stack([rng.normal(5, 3, classes.shape), classes], axis=1).astype(np.float16)
    for key, values in zip(keys, maps, strict=True):
        path = folder / key.partition("_")[0] / f"{key}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(changes.get(key, torch.from_numpy(values)), path)
    return maps


def test_published_maps_are_taken(dlth: Callable[..., Any], make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """Maps by class folder and name become rows, best first; an image without one is an error, or skipped."""
    shards, out = make_shards(2, [3, 2]), tmp_path / "labels.zarr"
    keys = [key for rows in shards.keys for key in rows]
    maps = write_maps(tmp_path / "maps", keys[:-1])
    words = ["label", "import", tmp_path / "maps", "--data", shards.spec, "--out", out, "--num-classes", 20]
    code, _, err = dlth(*words)
    assert code == 2
    assert f"1 of 5 images have no map in {tmp_path / 'maps'}: {keys[-1]}" in err
    code, said, err = dlth(*words, "--allow-missing", "--json")
    assert code == 0, err
    store = LabelStore(out)
    assert (json.loads(said)["identity"], store.num_skipped) == (store.identity, 1)
    assert store.verify() == []
    labels = store.labels_at(store.find_rows(keys[:-1]))
    order = np.argsort(-maps[:, 0], axis=1, kind="stable")
    np.testing.assert_array_equal(labels.scores, np.take_along_axis(maps[:, 0], order, axis=1))
    np.testing.assert_array_equal(labels.classes, np.take_along_axis(maps[:, 1], order, axis=1))


def test_other_maps_are_not_mixed_in(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """What was begun or finished from some maps is not gone on with from others, and is from the same elsewhere. Maps
    that require gradients or are stored negated are numbers as any.
    """
    from dlth.pipeline.selection import label_import

    shards = make_shards(2, [2, 1])
    keys = [key for rows in shards.keys for key in rows]
    maps = torch.from_numpy(write_maps(tmp_path / "a", keys))
    learned = maps[1].clone().requires_grad_()
    negated = torch._neg_view(-maps[0])
    write_maps(tmp_path / "b", keys, **{keys[0]: negated, keys[1]: learned})
    write_maps(tmp_path / "broken", keys, **{keys[2]: torch.ones(2, 5, 6, 6)})
    out = tmp_path / "labels.zarr"

    def take(name: str) -> LabelStore:
        source = label_import.Source(tmp_path / name, shards.spec, None, 20, "dm_nfnet_f6", 576, False)
        return label_import.plan(source).write(out)

    with pytest.raises(InputError, match="names a class twice"):
        take("broken")
    with pytest.raises(MismatchError, match="maps_sha256"):
        take("b")
    out = tmp_path / "other.zarr"
    labels = take("b").labels(0)
    np.testing.assert_array_equal(labels.scores[0], np.sort(maps[0, 0].numpy(), axis=0)[::-1])
    (tmp_path / "b").rename(tmp_path / "moved")
    assert take("moved").identity
    with pytest.raises(MismatchError, match="maps_sha256"):
        take("a")


def test_the_training_images_of_what_pack_makes(
    dlth: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both commands take the training images of a folder of several splits, and the shards that dlth.toml names."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for number in range(3):
            path = tmp_path / split / f"n{number % 2}" / f"{split}{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_image(make_picture(number)))
        code, _, err = dlth("pack", split, "--out", "shards", "--split", split)
        assert code == 0, err
    write_maps(tmp_path / "maps", [f"train{number}" for number in range(3)])
    assert Path("dlth.toml").is_file()
    annotator = ("--annotator", "resnet10t", "--num-classes", 7, "--img-size", 64, "--random-weights")
    for at, data in enumerate(((), ("--data", "shards"))):
        code, said, err = dlth("label", *annotator, *data, "--out", "made.zarr", "--dry-run", "--json")
        assert (code, json.loads(said)["images"]) == (0, 3), err
        code, _, err = dlth("label", "import", "maps", *data, "--out", f"{at}.zarr", "--num-classes", 20, "--json")
        assert code == 0, err
        store = LabelStore(tmp_path / f"{at}.zarr")
        assert (store.header.dataset.split, store.num_rows, store.num_skipped) == ("train", 3, 0)
    Path("dlth.toml").unlink()
    Path("shards").rename("elsewhere")
    code, _, err = dlth("label", "import", "maps", "--out", "none.zarr")
    assert (code, "name the shards of the images: --data" in err) == (2, True), err


class Evil:
    """Runs when it is unpickled, unless the reader is a restricted one."""

    def __reduce__(self) -> Any:
        return print, ("it ran",)


HOSTILE: dict[str, tuple[Any, str]] = {
    "code": (Evil(), "holds more than tensors and plain values"),
    "list": ([1, 2], "holds a list, not one tensor"),
    "shape": (torch.zeros(5, 6, 6), r"float32 \[5, 6, 6\]: a map is floats \[2, best, rows, columns\]"),
    "other grid": (torch.zeros(2, 5, 7, 6), r"has the shape \[2, 5, 7, 6\], the first map \[2, 5, 6, 6\]"),
    "class beyond": (torch.full((2, 5, 6, 6), 20.0), "names classes from 20 to 20"),
    "half a class": (torch.full((2, 5, 6, 6), 0.5), "they are whole numbers"),
    "no number": (torch.full((2, 5, 6, 6), torch.nan), r"n000\S*\.pt has scores that are NaN, infinite or beyond"),
    "too large": (torch.full((2, 5, 6, 6), 7e4), r"\.pt has scores that are NaN, infinite or beyond float16"),
    "class no number": (torch.stack([torch.ones(5, 6, 6), torch.full((5, 6, 6), torch.nan)]), "they are whole numbers"),
    "class twice": (torch.ones(2, 5, 6, 6), r"\.pt names a class twice in one cell"),
    "expanded": (torch.zeros(1).expand(2, 5, 6, 6), "not one tensor of plain numbers"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_other_maps_are_refused(
    make_shards: Callable[..., Any], tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A .pt that is no such map is refused by name of what is wrong, and nothing in it runs."""
    from dlth.pipeline.selection import label_import

    shards = make_shards(1, 3)
    keys = list(shards.keys[0])
    write_maps(tmp_path / "maps", keys, **{keys[1]: content})
    source = label_import.Source(tmp_path / "maps", shards.spec, None, 20, "dm_nfnet_f6", 576, False)
    with pytest.raises(DlthError, match=message):
        label_import.plan(source).write(tmp_path / "labels.zarr")
    assert "it ran" not in capsys.readouterr().out
    with pytest.raises(InputError, match="is no folder"):
        label_import.plan(source._replace(maps=tmp_path / "none"))
