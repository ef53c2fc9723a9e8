"""Masks made of what runs leave in their folders."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from makers.masks import KWARGS, MODEL, PRUNABLE, leave_first, leave_run
from safetensors.torch import load_file, save_file

from dlth.tickets.errors import DamageError, InputError, MismatchError, MissingFileError, UnsafeError
from dlth.training.models.weights import tensors_digest
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.pruning import making
from dlth.training.pruning.making import made, make_mask, not_zero
from dlth.training.pruning.mask_file import read_mask
from dlth.training.pruning.recipe import MASK, REWIND, MaskRecipe
from dlth.training.pruning.verifying import damaged_weights
from dlth.training.runs.checkpoint import write_tensors

FIRST, SECOND = MaskRecipe(1, "0.2"), MaskRecipe(2, "0.2")


def test_a_chain_of_masks_is_known_by_what_made_it(tmp_path: Path) -> None:
    """Level 1 is of the unpruned run, level 2 of level 1: nested, counted, with the digests of all that they are of."""
    zero = leave_first(tmp_path / "0")
    one = make_mask(FIRST, zero, zero, tmp_path / "1")
    assert (one.prunable, one.remaining) == (PRUNABLE, PRUNABLE - round(PRUNABLE / 5))
    assert (one.header.model, one.header.model_kwargs, one.header.num_classes) == (MODEL, KWARGS, 3)
    assert one.header.final == tensors_digest(load_file(zero / "model.safetensors"))
    assert (one.header.rewind_step, one.header.initial) == (7, tensors_digest(load_file(zero / "rewind.safetensors")))
    assert one.header.parent == ""
    leave_run(tmp_path / "1", 2, one.masks)
    two = make_mask(SECOND, tmp_path / "1", zero, tmp_path / "2")
    assert (two.header.parent, two.header.initial) == (one.identity, one.header.initial)
    assert two.remaining == one.remaining - round(one.remaining / 5)
    assert not any((mask & ~one.masks[name]).any() for name, mask in two.masks.items())
    assert read_mask(tmp_path / "2" / MASK).identity == two.identity


def test_a_mask_that_is_there_is_kept_if_it_is_the_same(tmp_path: Path) -> None:
    """Made again it is the same to the byte and left alone; another one in its place is damage, and left alone too."""
    zero = leave_first(tmp_path / "0")
    make_mask(FIRST, zero, None, tmp_path / "1")
    path = tmp_path / "1" / MASK
    whole, written = path.read_bytes(), path.stat().st_mtime_ns
    assert make_mask(FIRST, zero, None, tmp_path / "1").header.rewind_step is None
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (whole, written)
    for recipe, rewind in ((MaskRecipe(1, "0.3"), None), (FIRST, zero)):
        with pytest.raises(DamageError, match=r"is not the mask that .*0 gives \(level 1: 0\.\d of what remains"):
            make_mask(recipe, zero, rewind, tmp_path / "1")
    path.write_bytes(whole[:-1])
    with pytest.raises(DamageError, match="is damaged"):
        make_mask(FIRST, zero, None, tmp_path / "1")
    assert path.read_bytes() == whole[:-1]


def test_arms_of_one_level(tmp_path: Path) -> None:
    """Fresh weights have the same bits as rewound ones, a random mask its layers' counts, one shot its level's."""
    zero = leave_first(tmp_path / "0")
    lt, rr = made(FIRST, zero, zero), made(FIRST, zero, None)
    assert all(torch.equal(mask, rr.masks[name]) for name, mask in lt.masks.items())
    assert (rr.header.rewind_step, rr.header.initial) == (None, "")
    drawn = made(MaskRecipe(1, "0.2", shuffled=True), zero, zero)
    assert [layer.kept for layer in drawn.header.layers] == [layer.kept for layer in lt.header.layers]
    assert any(not torch.equal(mask, lt.masks[name]) for name, mask in drawn.masks.items())
    once = made(MaskRecipe(3, "0.2", rounds=3), zero, zero)
    left = PRUNABLE
    for _ in range(3):
        left -= round(left / 5)
    assert (once.remaining, once.header.parent) == (left, "")


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    """A level without its parent's, another rate, scope or pattern in one chain, a mask of another model: by name."""
    zero = leave_first(tmp_path / "0")
    with pytest.raises(MismatchError, match=r"level 2 in 1 round begins with one of level 1; .*0 has level 0"):
        made(SECOND, zero, zero)
    one = make_mask(FIRST, zero, zero, tmp_path / "1")
    leave_run(tmp_path / "1", 2, one.masks)
    for name, recipe in {
        "rate": MaskRecipe(2, "0.3"),
        "scope": MaskRecipe(2, "0.2", scope="layer"),
        "exclude": MaskRecipe(2, "0.2", exclude=("*mlp*",)),
    }.items():
        with pytest.raises(MismatchError, match=f"was made with {name} "):
            made(recipe, tmp_path / "1", zero)
    with pytest.raises(InputError, match="matches no parameter"):
        made(MaskRecipe(1, "0.2", exclude=("none*",)), zero, zero)


def test_runs_that_lack_weights_are_refused(tmp_path: Path) -> None:
    """One not finished, one without weights to set back to, a link, a file that is no run's: nothing is written."""
    zero = leave_first(tmp_path / "0")
    with pytest.raises(MissingFileError, match=r"none holds no model\.safetensors: only a finished run has it"):
        make_mask(FIRST, tmp_path / "none", zero, tmp_path / "1")
    leave_run(tmp_path / "bare", 3)
    with pytest.raises(MissingFileError, match=r"bare holds no rewind\.safetensors: only a run with --rewind-step"):
        make_mask(FIRST, zero, tmp_path / "bare", tmp_path / "1")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(zero / "model.safetensors")
    with pytest.raises(UnsafeError, match="is a link"):
        make_mask(FIRST, tmp_path / "linked", zero, tmp_path / "1")
    save_file({"x": torch.ones(2)}, tmp_path / "bare" / "model.safetensors")
    with pytest.raises(InputError, match="does not say which model"):
        make_mask(FIRST, tmp_path / "bare", zero, tmp_path / "1")
    assert not (tmp_path / "1").exists()


def test_revived_weights_are_found(tmp_path: Path) -> None:
    """Masked weights that are not zero are told by layer and number, in every file; no mask is made of them."""
    zero = leave_first(tmp_path / "0")
    one = make_mask(FIRST, zero, zero, tmp_path / "1")
    leave_run(tmp_path / "1", 2, one.masks, ("model", "model_ema"))
    assert damaged_weights(tmp_path / "1", one) == []
    leave_run(tmp_path / "1", 2, names=("model_ema",))
    found = damaged_weights(tmp_path / "1", one)
    masked = {layer.name: layer.size - layer.kept for layer in one.header.layers if layer.size > layer.kept}
    assert [str(each) for each in found] == [
        f"{tmp_path}/1/model_ema.safetensors: {count} masked weights of {name} are not zero"
        for name, count in masked.items()
    ]
    leave_run(tmp_path / "1", 2)
    with pytest.raises(DamageError, match=r"masked weights of blocks\.0\.\S+ in .*model\.safetensors are not zero"):
        made(SECOND, tmp_path / "1", zero)
    assert not_zero(load_file(tmp_path / "1" / "model.safetensors"), one.masks) == masked


def test_weights_of_another_model_beside_a_mask_are_damage(tmp_path: Path) -> None:
    """A layer that is missing or misshapen, and bytes that are no weights, are told by the file's name."""
    one = make_mask(FIRST, leave_first(tmp_path / "0"), None, tmp_path / "1")
    for name, content in (("model", {"x": torch.ones(2)}), ("model_best", {"blocks.0.attn.qkv.weight": torch.ones(3)})):
        save_file(content, tmp_path / "1" / f"{name}.safetensors")
    (tmp_path / "1" / "model_ema.safetensors").write_bytes(b"no weights")
    told = {each.file: str(each) for each in damaged_weights(tmp_path / "1", one)}
    beside = "where the mask beside it has blocks.0.attn.qkv.weight as (24, 8)"
    assert told["model.safetensors"].endswith(f"model.safetensors holds nothing {beside}")
    assert told["model_best.safetensors"].endswith(f"model_best.safetensors holds (3,) {beside}")
    assert "model_ema.safetensors is no whole safetensors file" in told["model_ema.safetensors"]


def test_no_model_is_built_and_no_file_read_beyond_what_a_run_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note of more blocks than the file has tensors is given up, a file of other shapes is never read."""
    zero, read = leave_first(tmp_path / "0"), Mock(wraps=making.read_weights)
    weights = load_file(zero / "model.safetensors")
    monkeypatch.setattr(making, "read_weights", read)
    (tmp_path / "1").mkdir()
    for model, kwargs, error, message in (
        ("resnet50", {"layers": [300, 1, 1, 1]}, MismatchError, "holds 20 tensors, too few for the model"),
        ("resnet50", {"layers": [2000, 1, 1, 1]}, InputError, "argument layers .* ends at 1000"),
        (MODEL, KWARGS | {"embed_dim": 1 << 20}, InputError, "GB of weights; this machine has"),
        (MODEL, KWARGS | {"embed_dim": 16}, MismatchError, "does not fit"),
    ):
        note = WeightsNote(model=model, model_kwargs=kwargs, num_classes=3, img_size=32)
        write_tensors(tmp_path / "1" / "model.safetensors", weights, note.to_json())
        with pytest.raises(error, match=message):
            made(FIRST, tmp_path / "1", None)
    assert read.call_count == 0
    save_file({"head.weight": torch.ones(4, 8)}, zero / REWIND, {"dlth": WeightsNote(model=MODEL).model_dump_json()})
    with pytest.raises(MismatchError, match="does not fit"):
        made(FIRST, zero, zero)
    assert read.call_count == 1
