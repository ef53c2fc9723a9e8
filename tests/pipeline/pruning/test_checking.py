"""`dlth masks`: what a mask is, and whether all that it says is true."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from makers.masks import PRUNABLE, leave_first, leave_run
from makers.pruning import DENSE, write_pruned
from makers.studies import planned_run
from safetensors.torch import save_file

from dlth.pipeline.evidence.study_plan import MaskPlan, StudyPlan, write_study
from dlth.tickets.errors import UnsafeError
from dlth.training.models.weights import tensors_digest
from dlth.training.pruning.making import make_mask
from dlth.training.pruning.mask_file import read_mask
from dlth.training.pruning.recipe import MASK, MaskRecipe
from dlth.training.runs.result import read_result, write_result

Dlth = Callable[..., tuple[int, str, str]]
FIRST, SECOND = MaskRecipe(1, "0.2"), MaskRecipe(2, "0.2")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of an unpruned run, two levels, fresh weights under level 1's mask, and a level that is not there yet."""
    chain = {
        "level-1": MaskPlan(FIRST, "level-0", "level-0"),
        "level-2": MaskPlan(SECOND, "level-1", "level-0"),
        "fresh-1": MaskPlan(FIRST, "level-0"),
        "level-3": MaskPlan(MaskRecipe(3, "0.2"), "level-2", "level-0"),
    }
    like = planned_run("shards", "dense", 0, {})
    runs = [replace(like, name="level-0"), *(replace(like, name=name, mask=mask) for name, mask in chain.items())]
    folder, plan = tmp_path / "study", StudyPlan(tuple(runs), {"margin": 5.0})
    leave_first(folder / "runs" / "level-0")
    for seed, (name, mask) in enumerate(list(chain.items())[:3], 2):
        before, rewind = (folder / "runs" / of if of else None for of in (mask.of, mask.rewinds_to))
        assert before is not None
        made = make_mask(mask.recipe, before, rewind, folder / "runs" / name)
        leave_run(folder / "runs" / name, seed, made.masks, ("model", "model_ema"))
    write_study(folder, plan)
    return folder


def test_info_shows_what_a_mask_is(study: Path, dlth: Dlth) -> None:
    """Model, recipe in words, counts, digests, a line for each layer; for a file and its run alike; and as JSON."""
    run = study / "runs" / "level-2"
    code, out, _ = dlth("masks", "info", run)
    mask = read_mask(run / MASK)
    left = PRUNABLE - round(PRUNABLE / 5)
    left -= round(left / 5)
    assert code == 0
    assert f"{left} of {PRUNABLE} prunable weights ({100 * left / PRUNABLE:.2f} %)" in out
    assert "level 2: 0.2 of what remains, smallest of all layers together" in out
    header = mask.header
    assert all(text in out for text in (mask.identity, header.parent, header.final, f"step 7, sha256 {header.initial}"))
    assert all(layer.name in out and str(layer.kept) in out for layer in header.layers)
    assert dlth("masks", "info", run / MASK)[1].split("\n", 1)[1] == out.split("\n", 1)[1]
    told = json.loads(dlth("masks", "info", run, "--json")[1])
    assert (told["identity"], told["prunable"], told["remaining"]) == (mask.identity, PRUNABLE, left)
    assert told["header"]["layers"][0] == {
        "name": "blocks.0.attn.qkv.weight",
        "shape": [24, 8],
        "kept": header.layers[0].kept,
    }


def test_a_whole_study_is_whole(study: Path, dlth: Dlth) -> None:
    """Every mask is made again and the same; those that are not made yet are counted and told."""
    code, out, err = dlth("masks", "verify", study)
    assert (code, out) == (0, "")
    assert "note: 1 mask is not made yet: " in err
    assert "3 masks are whole" in err
    told = json.loads(dlth("masks", "verify", study, "--json")[1])
    made = [study / "runs" / name / MASK for name in ("level-1", "level-2", "fresh-1")]
    assert told["masks"] == {str(path): read_mask(path).identity for path in made}
    assert told["waiting"] == [f"{study}/runs/level-3/{MASK}"]
    assert (told["ok"], told["unproven"], told["damage"]) == (True, [], [])


def test_any_changed_bit_is_exit_code_1(study: Path, dlth: Dlth) -> None:
    """In a mask, and in a masked weight beside it: of the file, the run and the study; bad input stays exit code 2."""
    run = study / "runs" / "level-1"
    whole = (run / MASK).read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        (run / MASK).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for place in (run / MASK, run, study):
            code, _, err = dlth("masks", "verify", place)
            assert code == 1
            assert f"damaged[E_DAMAGE]: {run / MASK} is damaged" in err
    (run / MASK).write_bytes(whole)
    leave_run(run, 9, names=("model_ema",))
    for place in (run, study):
        code, out, _ = dlth("masks", "verify", run / MASK, place, "--json")
        assert code == 1
        assert all("model_ema.safetensors" in text and "are not zero" in text for text in json.loads(out)["damage"])
    plan = study / "study.json"
    plan.write_bytes(plan.read_bytes().replace(b"0.2", b"0.3", 1))
    assert dlth("masks", "verify", study)[0] == 1
    for place in (study / "none", study / "runs" / "level-0", study / "runs"):
        assert dlth("masks", "verify", place)[0] == 2
        assert dlth("masks", "info", place)[0] == 2


def test_a_folder_of_masks_is_checked_whole(study: Path, tmp_path: Path, dlth: Dlth) -> None:
    """Every mask in it, by its name or by what it says, also beside a run's; what else lies there is named."""
    lab, run = tmp_path / "lab", study / "runs" / "level-1"
    (lab / "more").mkdir(parents=True)
    for name in (MASK, "cut.safetensors", "mask-2.safetensors"):
        shutil.copy(run / MASK, lab / name)
    shutil.copy(run / "model.safetensors", lab / "weights.safetensors")
    code, _, err = dlth("masks", "verify", lab)
    assert code == 0
    assert "3 masks are whole" in err
    assert all(f"note: {lab / name} is left out" in err for name in ("more", "weights.safetensors"))
    shutil.copy(run / MASK, run / "theirs.safetensors")
    assert len(json.loads(dlth("masks", "verify", run, "--json")[1])["masks"]) == 2
    whole = (run / MASK).read_bytes()
    for folder, name, kept in ((lab, "cut", whole[:-1]), (lab, "mask-2", b""), (run, "theirs", whole[:-1])):
        (folder / f"{name}.safetensors").write_bytes(kept)
        code, _, err = dlth("masks", "verify", folder)
        assert code == 1
        assert f"{folder / name}.safetensors is damaged" in err
    (lab / MASK).unlink()
    assert dlth("masks", "verify", lab)[0] == 1


def test_a_study_proves_what_masks_say(study: Path, dlth: Dlth) -> None:
    """A mask whole by itself and not what the plan's runs give is damage: of other weights, or set back to others."""
    first = study / "runs" / "level-0"
    leave_run(first, 5)
    code, _, err = dlth("masks", "verify", study)
    assert code == 1
    assert f"{study}/runs/level-1/{MASK} is not the mask that the runs of its plan give" in err
    assert f"{study}/runs/fresh-1/{MASK} is not the mask" in err
    assert f"level-2/{MASK} is not" not in err  # its own parent's weights are as they were
    leave_run(first, 1)
    assert dlth("masks", "verify", study)[0] == 0
    leave_run(first, 6, names=("rewind",))
    code, _, err = dlth("masks", "verify", study)
    assert code == 1
    assert f"fresh-1/{MASK} is not" not in err
    assert all(f"level-{level}/{MASK} is not" in err for level in (1, 2))


def test_what_cannot_be_proven_is_told(study: Path, dlth: Dlth) -> None:
    """Without the weights it was made of a mask is whole and unproven; a trained run without its mask is damage."""
    (study / "runs" / "level-0" / "model.safetensors").unlink()
    code, _, err = dlth("masks", "verify", study)
    assert code == 0
    assert f"level-1/{MASK} could not be made again" in err
    (study / "runs" / "level-2" / MASK).unlink()
    code, _, err = dlth("masks", "verify", study)
    assert code == 1
    assert f"level-2 is trained, and its {MASK} is gone" in err


def test_links_of_a_study_are_not_followed(study: Path, dlth: Dlth) -> None:
    """A run's folder that is a link, of a pruned run or of what it was made of, is refused."""
    for name in ("level-2", "level-0"):
        run = study / "runs" / name
        run.rename(study / "elsewhere")
        run.symlink_to(study / "elsewhere")
        code, _, err = dlth("masks", "verify", study)
        assert code == 2
        assert UnsafeError.code in err
        run.unlink()
        (study / "elsewhere").rename(run)


def test_a_study_without_pruning_has_no_masks(tmp_path: Path, dlth: Dlth) -> None:
    """It is refused by name, and not called whole."""
    tmp_path.joinpath("s").mkdir()
    write_study(tmp_path / "s", StudyPlan((planned_run("shards", "dense", 0, {}),)))
    code, _, err = dlth("masks", "verify", tmp_path / "s")
    assert code == 2
    assert "prunes no weights" in err


def test_a_result_is_of_its_mask_and_weights(tmp_path: Path, dlth: Dlth) -> None:
    """Beside a mask lies a result of that mask, and the weights that the result is of; what differs is told by name."""
    run = write_pruned(tmp_path / "run", replace(DENSE, pruned="lt", weights="0.8"), 1, 0, 0.8)
    mask = read_mask(run / MASK)
    assert dlth("masks", "verify", run)[0] == 0
    weights = {name: each.float() for name, each in mask.masks.items()}
    save_file(weights, run / "model.safetensors")
    code, _, err = dlth("masks", "verify", run)
    assert (code, f"{run}/model.safetensors holds other weights than result.json is of" in err) == (1, True)
    result = read_result(run / "result.json")
    assert result is not None
    write_result(run, replace(result, weights_sha256=tensors_digest(weights)))
    assert dlth("masks", "verify", run)[0] == 0
    for change, told in (
        ({"mask": ""}, "result.json is of no mask"),
        ({"mask": "0" * 64}, f"of mask {'0' * 16} with {mask.remaining} of {mask.prunable} weights"),
        ({"remaining_weights": 7}, f"of mask {mask.identity[:16]} with 7 of {mask.prunable} weights"),
    ):
        write_result(run, replace(result, **change))
        code, _, err = dlth("masks", "verify", run)
        assert (code, told in err) == (1, True)
    (run / "result.json").write_text("{}")
    assert dlth("masks", "verify", run)[0] == 1


def test_what_cannot_be_read_hides_no_damage(study: Path, dlth: Dlth) -> None:
    """Every path is checked, whatever lies in one: damage is told with exit code 1, besides what is not to be read."""
    run = study / "runs" / "level-1"
    (run / "model_best.safetensors").mkdir()
    code, _, err = dlth("masks", "verify", study)
    assert (code, err.count("model_best.safetensors is no file")) == (2, 1)
    cut = study / "runs" / "level-2" / MASK
    cut.write_bytes(cut.read_bytes()[:-1])
    code, out, err = dlth("masks", "verify", study / "none", study, cut, "--json")
    told = json.loads(out)
    assert (code, told["ok"], len(told["damage"]), len(told["unread"])) == (1, False, 2, 2)
    code, _, err = dlth("masks", "verify", cut, study / "none")
    assert code == 1
    assert f"damaged[E_DAMAGE]: {cut} is damaged" in err
    assert "[E_MISSING_FILE]" in err
