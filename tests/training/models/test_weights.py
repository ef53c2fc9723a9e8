"""Checkpoints of every form that labs have, hostile ones, and ones that do not fit."""

import argparse
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers.models import tiny_vit
from safetensors.torch import save_file
from torch import nn

from dlth.tickets.errors import DlthError, InputError, LimitError, MismatchError, MissingFileError, UnsafeError
from dlth.training.models import weights
from dlth.training.models.weights import head_classes, load_weights, read_weights, weights_digest

Make = Callable[..., nn.Module]


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


def evit(state: dict) -> dict:
    """What EViT's training writes: options beside the weights."""
    args = argparse.Namespace(model="deit_small_patch16_shrink_base", lr=2e-5, base_keep_rate=0.7, drop_loc="(3, 6, 9)")
    return {"model": state, "optimizer": {"state": {}}, "epoch": 29, "scaler": None, "args": args, "max_accuracy": 79.5}


def best_checkpoint(state: dict) -> dict:
    """What the paper's authors write of a selector in training: EViT's form, with all that goes on from it."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=8e-5)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model="deit_small_patch16_shrink_base", fuse_token=True, base_keep_rate=0.8, gpu=0)
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [8e-5], "lr_min": 2e-6, "noise_range_t": None, "metric": None},
        "epoch": 29,
        "model_ema": {name: torch.zeros_like(value) for name, value in state.items()},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000, "_growth_tracker": 7},
        "args": args,
    }


FORMS: dict[str, Callable[[dict], dict]] = {
    "timm": lambda state: state,
    "timm training": lambda state: {"state_dict": state, "epoch": 3, "arch": "deit", "args": argparse.Namespace(lr=1)},
    "deit": lambda state: {"model": state},
    "evit": evit,
    "best_checkpoint": best_checkpoint,
    "data parallel": lambda state: {"model": prefixed(state, "module.")},
    "compiled": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "wrapped": lambda state: prefixed(state, "model."),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_pth_form_loads(tmp_path: Path, form: str) -> None:
    """The model ends with exactly the file's weights, whatever stands around them."""
    source, target = tiny_vit(), tiny_vit(seed=1)
    torch.save(FORMS[form](source.state_dict()), tmp_path / "best.pth")
    loaded = load_weights(target, tmp_path / "best.pth")
    assert loaded == (weights_digest(source), "best.pth")
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())
    assert head_classes(read_weights(tmp_path / "best.pth")) == 5


def test_safetensors_and_pth_give_one_digest(tmp_path: Path) -> None:
    """The digest is of the weights, not of the file; safetensors are known by their content too."""
    source = tiny_vit()
    save_file(source.state_dict(), tmp_path / "model.bin")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    torch.save(source.state_dict(), tmp_path / "new.pth")
    torch.save(source.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    digests = {load_weights(tiny_vit(seed=1), path).sha256 for path in tmp_path.iterdir()}
    assert digests == {weights_digest(source)}


def test_digest_sees_every_bit() -> None:
    """One weight's last bit, a dtype or a name changes it; the device's copy does not."""
    vit = tiny_vit()
    before = weights_digest(vit)
    assert len(before) == 64
    with torch.no_grad():
        vit.norm.weight[0] = torch.nextafter(vit.norm.weight[0], torch.tensor(2.0))
    changed = weights_digest(vit)
    assert len({before, changed, weights_digest(vit.to(torch.bfloat16))}) == 3


def test_averaged_weights(tmp_path: Path) -> None:
    """`use_ema` takes the average that timm and DeiT store beside the weights, and says so where there is none."""
    plain, average = tiny_vit(), tiny_vit(seed=1)
    for name in ("state_dict_ema", "model_ema"):
        torch.save({"model": plain.state_dict(), name: average.state_dict()}, tmp_path / "w.pth")
        assert load_weights(tiny_vit(seed=2), tmp_path / "w.pth", use_ema=True).sha256 == weights_digest(average)
        assert load_weights(tiny_vit(seed=2), tmp_path / "w.pth").sha256 == weights_digest(plain)
    torch.save({"model": plain.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth holds no averaged weights .*it holds model"):
        load_weights(plain, tmp_path / "w.pth", use_ema=True)


def test_deit3_names(tmp_path: Path) -> None:
    """DeiT III's layer scale has other names in the authors' release than in timm."""
    source = tiny_vit("deit3")
    old = {
        name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): value
        for name, value in source.state_dict().items()
    }
    assert old.keys() != source.state_dict().keys()
    torch.save({"model": old}, tmp_path / "deit3.pth")
    assert load_weights(tiny_vit("deit3", seed=1), tmp_path / "deit3.pth").sha256 == weights_digest(source)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("force", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, force: bool) -> None:
    """A pickle that would run a command is refused, also where the environment asks torch for the unsafe reader."""
    canary = tmp_path / "canary"

    class Exploit:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {canary}",)

    content = {"model": tiny_vit().state_dict(), "args": Exploit()}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=kind == "zip")
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UnsafeError, match=r"evil\.pth holds more than tensors and plain values.*system"):
        load_weights(tiny_vit(), tmp_path / "evil.pth")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Exploit()))
    assert canary.exists()  # the exploit is a real one


def test_a_namespace_is_not_even_built(tmp_path: Path) -> None:
    """The options beside EViT's weights are read as a stand-in; no attribute of theirs reaches a real Namespace."""
    torch.save(evit(tiny_vit().state_dict()), tmp_path / "evit.pth")
    before = dict(vars(argparse.Namespace))
    read_weights(tmp_path / "evit.pth")
    assert dict(vars(argparse.Namespace)) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("blocks.2.attn.proj.bias"), r"missing in the file: blocks\.2\.attn\.proj\.bias\."),
        (lambda state: state.update(extra=torch.zeros(1)), r"not in the model: extra\."),
        (
            lambda state: state.update({"blocks.0.norm1.weight": torch.zeros(7)}),
            r"of another shape: blocks\.0\.norm1\.weight \(file 7, model 32\)\.",
        ),
        (
            lambda state: state.update({"pos_embed": torch.zeros(1, 65, 32)}),
            r"pos_embed \(file 1x65x32, model 1x17x32\).*build the model with the file's img_size",
        ),
        (
            lambda state: state.update({"head.weight": torch.zeros(9, 32), "head.bias": torch.zeros(9)}),
            "build the model with num_classes=9",
        ),
        (lambda state: state.update({"head.weight": torch.zeros(())}), r"head\.weight \(file scalar, model"),
    ],
    ids=["missing", "unexpected", "shape", "positions", "head", "no head"],
)
def test_what_does_not_fit_is_named(tmp_path: Path, spoil: Callable, message: str) -> None:
    """Nothing is loaded in part: the model keeps its weights, and the message says what to do."""
    state = dict(tiny_vit().state_dict())
    spoil(state)
    save_file(state, tmp_path / "w.safetensors")
    target = tiny_vit(seed=1)
    before = weights_digest(target)
    with pytest.raises(MismatchError, match=message):
        load_weights(target, tmp_path / "w.safetensors")
    assert weights_digest(target) == before


def test_another_model_is_named_shortly(tmp_path: Path) -> None:
    """Of many differences the first few are named and the rest counted."""
    save_file(tiny_vit().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(MismatchError, match=r"missing in the file: .* and \d+ more\."):
        load_weights(tiny_vit(depth=8), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no checkpoint that can be read"),
        (b"not a checkpoint at all", "w.pth"),
        (b"PK\x03\x04 broken zip", "w.pth"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{broken header..", "no whole safetensors file"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "no whole safetensors file"),
    ],
    ids=["empty", "text", "zip", "header", "huge header"],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    """Any other file is an error with the file's name in it."""
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DlthError, match=message):
        load_weights(tiny_vit(), tmp_path / "w.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    """A download that broke off never loads, wherever it broke."""
    path = tmp_path / "w"
    if kind == "safetensors":
        save_file(tiny_vit().state_dict(), path)
    else:
        torch.save(tiny_vit().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DlthError, match="w "):
        load_weights(tiny_vit(), path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    """A zip that unpacks to any size is refused before anything is read from it."""
    torch.save(tiny_vit().state_dict(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeError, match="compressed members"):
        load_weights(tiny_vit(), tmp_path / "bomb.pth")


def test_a_zip_is_one_to_every_reader_or_refused(tmp_path: Path) -> None:
    """What torch would unpack is checked, though zipfile sees no zip in it or another list of members; tars never."""
    torch.save(tiny_vit().state_dict(), tmp_path / "w.pth")
    packed, stored = io.BytesIO(), (tmp_path / "w.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "w.pth") as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    hidden = packed.getvalue() + b"PK\5\6"
    assert not zipfile.is_zipfile(io.BytesIO(hidden))
    assert torch.load(io.BytesIO(hidden)).keys() == torch.load(tmp_path / "w.pth").keys()
    begin = len(stored) - 98  # zip64 record, its locator and the end record: torch.save writes all three
    at = int.from_bytes(stored[begin + 48 : begin + 56], "little")
    two = stored[:begin] + stored[at:begin] + stored[begin:]  # zipfile takes the second list, torch the first
    moved = two[:-34] + (len(two) - 98).to_bytes(8, "little") + two[-26:]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as members:
        for name in ("\x80", "storages", "tensors", "pickle"):
            members.addfile(tarfile.TarInfo(name))
    for content in (hidden, two, moved, stored + b"\0", tar.getvalue()):
        (tmp_path / "odd.pth").write_bytes(content)
        with pytest.raises((UnsafeError, InputError), match=r"odd.pth (is no checkpoint|does not end|is a tar)"):
            read_weights(tmp_path / "odd.pth")


@pytest.mark.parametrize("form", ["raw", "python 2", "stack", "legacy", "zip"])
def test_no_pickle_makes_memory_of_nothing(tmp_path: Path, form: str) -> None:
    """A call of bytearray with a size, which torch's reader lets pass, is refused before it is made."""
    code = b"\x80\x02cbuiltins\nbytearray\nJ\x00\xf1\x53\x65\x85R."
    if form == "python 2":
        code = code.replace(b"builtins", b"__builtin__")
    elif form == "stack":
        code = b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93J\x00\xf1\x53\x65\x85R."
    elif form == "legacy":
        start = io.BytesIO()
        torch.save({}, start, _use_new_zipfile_serialization=False)
        whole = start.getvalue()
        code = whole[: whole.rindex(b"\x80\x02}")] + code + b"\x80\x02]q\x00."
    path = tmp_path / "w.pth"
    path.write_bytes(code)
    if form == "zip":
        with torch.serialization._open_zipfile_writer(str(path)) as archive:
            archive.write_record("data.pkl", code, len(code))
    with pytest.raises(
        UnsafeError, match=r"w.pth holds more than .* (builtins|__builtin__) bytearray|Unsupported operand"
    ):
        read_weights(path)


def test_expanded_tensors_are_refused(tmp_path: Path) -> None:
    """A tensor of one stored number and stride 0 sizes no model; a view of numbers that are all there is read."""
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"head.weight": whole.T[1:]}, tmp_path / "view.pth")
    assert head_classes(read_weights(tmp_path / "view.pth")) == 3
    torch.save({"head.weight": torch.zeros(1).expand(8_000_000, 96)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"expanded or without content\): head.weight"):
        head_classes(read_weights(tmp_path / "w.pth"))


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, and the pickle in it, are measured before they are read."""
    torch.save(tiny_vit().state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(weights, "MAX_HEADER_BYTES", 100)
    with pytest.raises(LimitError, match="a pickle above 100 bytes"):
        load_weights(tiny_vit(), tmp_path / "w.pth")
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 100)
    with pytest.raises(LimitError, match="weights files end at 100"):
        load_weights(tiny_vit(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not named weights"),
        ({"epoch": 3}, "holds no weights under .*it holds epoch"),
        ({}, "holds no"),
    ],
    ids=["list", "no weights", "empty"],
)
def test_checkpoints_without_weights(tmp_path: Path, content: object, message: str) -> None:
    """The message says what the file holds instead."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        load_weights(tiny_vit(), tmp_path / "w.pth")


def test_no_such_file(tmp_path: Path) -> None:
    """A missing file is a FileNotFoundError with the path."""
    with pytest.raises(MissingFileError, match=r"no weights file .*gone\.pth"):
        load_weights(tiny_vit(), tmp_path / "gone.pth")
