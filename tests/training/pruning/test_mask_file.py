"""A mask's file: the same bytes for the same mask, and no other bytes read."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.masks import TenWeights, header_of, ten_weights
from safetensors import safe_open
from safetensors.torch import load_file

from dlth.tickets.errors import DamageError, LimitError, MismatchError, MissingFileError, UnsafeError
from dlth.tickets.format.jsontext import canonical
from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.mask_file import MAX_BYTES, check_mask_fits, mask_of, read_mask, write_mask
from dlth.training.pruning.mask_header import MaskHeader, layers_of
from dlth.training.pruning.recipe import MaskRecipe

RECIPE = MaskRecipe(1, "0.2")
MASKS = pruned(ten_weights(0.5, -0.1, 0.9, 0.3, -0.2, 0.8, 0.05, -0.7, 0.6, 0.4), None, RECIPE)  # 1011 110111
HEADER = header_of(MASKS, RECIPE, rewind_step=7, initial="ab" * 32, final="cd" * 32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A mask of ten weights."""
    write_mask(tmp_path / "mask.safetensors", HEADER, MASKS)
    return tmp_path / "mask.safetensors"


def test_a_mask_is_read_as_it_was_written(file: Path) -> None:
    """Header, masks, counts and identity come back; the same mask gives the same bytes, and no other file is left."""
    found = read_mask(file)
    assert found.header == HEADER
    assert found.identity == mask_of(HEADER, MASKS).identity
    assert found.masks.keys() == MASKS.keys()
    assert all(
        torch.equal(found.masks[name], mask) and found.masks[name].dtype is torch.bool for name, mask in MASKS.items()
    )
    assert (found.prunable, found.remaining) == (10, 8)
    write_mask(file.with_name("again"), found.header, found.masks)
    assert file.with_name("again").read_bytes() == file.read_bytes()
    assert {path.name for path in file.parent.iterdir()} == {"mask.safetensors", "again"}


def test_the_bytes_of_version_1_stay(file: Path) -> None:
    """Masks that labs have are read for ever: what this mask is written as is fixed, and so is its identity."""
    assert read_mask(file).identity == "3aac8375e79b5343ba6671949c7fe17d243c5710071c6ad13b8975568823de07"
    assert (
        hashlib.sha256(file.read_bytes()).hexdigest()
        == "8b4ed1fa5bce08da9e468e85316d57da17ea04b5be7dcd971d1614fd2d2dd557"
    )


def test_any_program_opens_it(file: Path) -> None:
    """safetensors' own reader gives packed bits, the first weight in the highest bit, and the header as one entry."""
    assert {name: each.tolist() for name, each in load_file(file).items()} == {
        "first.weight": [0b10110000],
        "second.weight": [0b11011100],
    }
    with safe_open(file, framework="np") as opened:
        told = json.loads(opened.metadata()["dlth"])
    assert told["layers"][1] == {"name": "second.weight", "shape": [3, 2], "kept": 5}
    assert told["sha256"] == read_mask(file).identity


def test_every_flipped_bit_is_found(file: Path) -> None:
    """Each of the file's bits, in its length, JSON, padding and data, is damage once it is flipped."""
    whole, passed = file.read_bytes(), []
    with file.open("r+b", buffering=0) as opened:
        for bit in range(8 * len(whole)):
            at = bit // 8
            os.pwrite(opened.fileno(), bytes([whole[at] ^ 1 << bit % 8]), at)
            try:
                read_mask(file)
                passed.append(bit)
            except DamageError:
                os.pwrite(opened.fileno(), whole[at : at + 1], at)
    assert passed == []
    assert file.read_bytes() == whole
    assert len(whole) > 500


def test_cut_and_longer_files_are_found(file: Path) -> None:
    """A file that ends anywhere else is damage."""
    whole = file.read_bytes()
    for more in (b"\0", b" ", whole):
        file.write_bytes(whole + more)
        with pytest.raises(DamageError, match=r"mask\.safetensors is damaged"):
            read_mask(file)
    for end in reversed(range(len(whole))):
        os.truncate(file, end)
        with pytest.raises(DamageError, match=r"mask\.safetensors is damaged"):
            read_mask(file)


def forged(change: Callable[[dict[str, Any]], None] = lambda facts: None, data: bytes = b"\xb0\xdc") -> bytes:
    """A file as an attacker writes it: another header or data, and everything digested anew."""
    facts = HEADER.model_dump(mode="json")
    change(facts)
    return container(canonical(facts | {"sha256": hashlib.sha256(canonical(facts) + data).hexdigest()}).decode(), data)


def container(text: str, data: bytes, **more: object) -> bytes:
    places = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]}
        for at, name in enumerate(("first.weight", "second.weight"))
    }
    raw = canonical({"__metadata__": {"dlth": text}, **places, **more})
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data


def _set(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts.update(fields)


def _first(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts["layers"][0].update(fields)


def _recipe(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts["recipe"].update(fields)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "bits behind the last": (forged(data=b"\xb1\xdc"), "its bytes are not"),
    "a bit more than is counted": (forged(data=b"\xf0\xdc"), "shapes or counts are not"),
    "another bit": (forged(data=b"\x70\xdc"), ""),
    "a huge shape": (forged(_first(shape=[1 << 30, 1 << 30], kept=3)), "at most 2147483648 weights"),
    "a huge side": (forged(_first(shape=[1 << 40], kept=3)), "2147483648"),
    "no side": (forged(_first(shape=[0, 2])), "greater than or equal to 1"),
    "more than there are": (forged(_first(kept=5)), "more weights remain"),
    "an empty layer": (forged(_first(kept=0)), "greater than or equal to 1"),
    "counts that no rate gives": (forged(_recipe(rate="0.3")), "its recipe leaves 7"),
    "layers of the other scope": (forged(_recipe(scope="layer", rate="0.5")), "its recipe leaves 2"),
    "a rate that empties": (forged(_recipe(rate="1")), "would mask every weight"),
    "more rounds than levels": (forged(_recipe(rounds=3)), "3 rounds at once cannot lie behind level"),
    "a rate without an end": (forged(_recipe(rate="1e-400")), "decimal number"),
    "two of a name": (forged(_first(name="second.weight")), "appears twice"),
    "safetensors' own name": (forged(_first(name="__metadata__")), "keeps for itself"),
    "an unknown field": (forged(_set(code="x")), "not permitted"),
    "an unknown field of a recipe": (forged(_recipe(code="x")), "nexpected"),
    "another version": (forged(_set(version=2)), "Input should be 1"),
    "a step without weights": (forged(_set(initial="")), "set back to"),
    "no digest": (forged(_set(final="x" * 64)), "pattern"),
    "a model that reads files": (
        forged(_set(model_kwargs={"checkpoint_path": "/etc/passwd"})),
        "no argument of a model",
    ),
    "deep JSON": (container("[" * 100_000 + "]" * 100_000, b"\xb0\xdc"), "nested too deeply"),
    "a header that is none": (container("7", b"\xb0\xdc"), "no JSON object"),
    "no header": (container("{}", b"\xb0\xdc").replace(b"dlth", b"dlti"), "says nothing under"),
    "another tensor": (container(canonical(HEADER.model_dump(mode="json")).decode(), b"\xb0\xdc", x={}), "its bytes"),
    "a length beyond the file": ((1 << 62).to_bytes(8, "little") + b"{}", "bytes"),
    "nothing": (b"", "bytes"),
    "no mask": (b"\x10" + bytes(7) + b"[" * 16, "not the JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_damage(file: Path, name: str) -> None:
    """Whatever a stranger writes, digested anew or not, is refused in the family's words before it is used."""
    raw, why = HOSTILE[name]
    file.write_bytes(raw)
    if name == "another bit":  # a mask as good as any, and another one: its identity says so
        assert read_mask(file).identity != mask_of(HEADER, MASKS).identity
        return
    with pytest.raises(DamageError, match=why) as refused:
        read_mask(file)
    assert "mask.safetensors" in str(refused.value)
    assert len(str(refused.value)) < 700


def test_links_and_devices_are_not_read(file: Path) -> None:
    """A link, a folder and a missing file are refused by name, and one beyond any mask's size before it is read."""
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(UnsafeError, match="is a link"):
        read_mask(link)
    with pytest.raises(UnsafeError, match="not a regular file"):
        read_mask(file.parent)
    with pytest.raises(MissingFileError):
        read_mask(file.with_name("none"))
    with file.open("r+b") as opened:
        opened.truncate(MAX_BYTES + 1)  # a hole: it takes no room
    with pytest.raises(LimitError, match="the bound is"):
        read_mask(file)


def test_a_header_guards_itself() -> None:
    """A header of other masks is not written, nor one whose counts are not those of its recipe."""
    other = {name: ~mask for name, mask in MASKS.items()}
    with pytest.raises(ValueError, match="not those of its masks"):
        mask_of(HEADER, other)
    with pytest.raises(ValueError, match="2 weights remain of all layers together; its recipe leaves 8"):
        MaskHeader(model="ten", recipe=RECIPE, layers=layers_of(other))


def test_large_layers_are_packed_small(tmp_path: Path) -> None:
    """A bit a weight, and a few hundred bytes a layer."""
    random = np.random.default_rng(0).random((3, 333, 777), dtype=np.float32)
    masks = pruned({str(at): torch.from_numpy(each) for at, each in enumerate(random)}, None, MaskRecipe(1, "0.5"))
    write_mask(tmp_path / "m", header_of(masks, MaskRecipe(1, "0.5")), masks)
    assert (tmp_path / "m").stat().st_size < random.size / 8 + 1_500
    assert all(torch.equal(mask, masks[name]) for name, mask in read_mask(tmp_path / "m").masks.items())


def test_a_mask_of_another_model_is_refused_by_name() -> None:
    """The first parameters that differ are named with both shapes; the mask's own model takes it."""

    class Other(TenWeights):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.third = torch.nn.Linear(2, 4), torch.nn.Linear(2, 2)

    mask = mask_of(HEADER, MASKS)
    check_mask_fits(mask, TenWeights())
    with pytest.raises(
        MismatchError,
        match=r"m is of another model \(ten\) than this Other: second\.weight \(mask 3x2,"
        r" model 4x2\), third\.weight \(mask none, model 2x2\)",
    ):
        check_mask_fits(mask, Other(), "m")
