"""The plan of `dlth prune`: what its runs are called and made of, what it says, and what is refused before training."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.masks import KWARGS, MODEL, PRUNABLE, leave_run
from makers.pruning import ALL, CNN, flags, planned_levels, prune_config, the_run, tiny_runs

from dlth.pipeline.evidence.arm_key import PRUNED, fresh_seed
from dlth.pipeline.evidence.study_plan import StudyPlan, read_study
from dlth.pipeline.judging.verdicts import WEIGHTS
from dlth.pipeline.pruning.outlook import left_whole
from dlth.pipeline.pruning.prune import foreseen_prune, found_prune
from dlth.pipeline.studies.founding import joined_study
from dlth.tickets.errors import InputError, MismatchError
from dlth.training.models.registry import outline

Dlth = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def train(shared: dict[str, Any]) -> dict[str, Any]:
    """Settings of train of a transformer with 768 prunable weights."""
    return tiny_runs(shared)


@pytest.fixture(scope="module")
def plan(train: dict[str, Any]) -> StudyPlan:
    """Two rounds of every arm, two drawings, one seed."""
    return planned_levels(train, Path("study"), arm=ALL, draws=2)


def names(plan: StudyPlan) -> set[str]:
    return {run.name for run in plan.runs}


def test_each_run_says_what_it_is_and_what_it_is_made_of(plan: StudyPlan) -> None:
    """Arm, share, drawing and seed are in key and name; lt and its controls begin at the rewinding point with its
    weights, rr at the first step with fresh ones of its own seed; each trains under the mask of the run before.
    """
    assert len(plan.runs) == 1 + 5 + 6
    first, level_1 = the_run(plan, ""), the_run(plan, "lt", 1)
    assert (str(first.arm), first.mask, first.settings["rewind_step"]) == ("dense", None, 2)
    assert first.name.startswith("dense-seed0-")
    assert the_run(plan, "rr", 2, draw=1).name.startswith("dense-rr0.64-draw1-seed0-")
    assert str(the_run(plan, "one-shot", 2).arm) == "one-shot 0.64 of weights"
    for kind in PRUNED:
        run = the_run(plan, kind, 2)
        assert run.mask is not None
        assert run.mask.of == (first if kind == "one-shot" else level_1).name
        assert run.mask.rewinds_to == ("" if kind == "rr" else first.name)
        assert run.settings["start_step"] == (0 if kind == "rr" else 2)
        assert (run.settings["rewind_step"], run.settings["mask"]) == (None, None)
        assert (run.mask.recipe.rounds, run.mask.recipe.shuffled) == (1 + (kind == "one-shot"), kind == "random-mask")
    assert [the_run(plan, "rr", 2, draw=draw).settings["init_seed"] for draw in (0, 1)] == [
        fresh_seed(0, 2, draw) for draw in (0, 1)
    ]
    recipes = [run.mask.recipe for run in (the_run(plan, kind, 2) for kind in ("lt", "rr")) if run.mask]
    assert recipes[0] == recipes[1]


@pytest.mark.parametrize(
    ("model", "kwargs", "whole"),
    [
        ("resnet20", CNN["model_kwargs"], "the head, norms, biases"),
        (MODEL, KWARGS, "the head, the patch embedding, norms, biases, position embeddings"),
    ],
)
def test_what_is_left_whole_is_what_the_model_has(model: str, kwargs: dict[str, Any], whole: str) -> None:
    """A convolutional network has no patch embedding and no positions, and its plan names none."""
    assert left_whole(outline(model, **kwargs)) == whole


def test_a_plan_says_what_is_masked_and_what_is_odd(train: dict[str, Any], plan: StudyPlan, tmp_path: Path) -> None:
    """Prunable weights and what the rounds leave, counted; arms that were added, and settings that say nothing."""
    left = PRUNABLE - round(PRUNABLE / 5)
    left -= round(left / 5)
    told = "\n".join(plan.notes)
    assert f"prunable: {PRUNABLE} weights of 4 layers, of 2,612 parameters; left whole: the head" in told
    assert f"2 rounds leave {left} prunable weights (0.64)" in told
    assert "one-shot pruning begins with two rounds" in told
    assert "levels begin again at step 2 of 6 (--rewind 2); rr at the first step, with fresh random weights" in told
    assert "fewer than 3 seeds decide nothing" in told
    assert f"judged at each share: {', '.join(map(str, WEIGHTS))} (--margin 1 points)" in told
    odd = planned_levels(train | {"seed": 3}, tmp_path, arm="lt", rounds=1, draws=3, seeds="0,1,2", exclude="*.attn.*")
    told = "\n".join(odd.notes)
    assert f"prunable: {8 * 8 * 8} weights of 2 layers" in told
    assert "1 round leaves 410 prunable weights (0.8)" in told
    assert "--exclude *.attn.*" in told
    assert "the study gives its runs their own seed" in told
    assert "--draws 3 says nothing" in told
    assert "lt is held against the unpruned model alone" in told
    assert "judged at each share: lt as good as the unpruned model (--margin 1 points)" in told
    assert "the unpruned run is trained too" in told
    assert "fewer than" not in told
    told = "\n".join(planned_levels(train, tmp_path, arm="one-shot", rewind="0").notes)
    assert "levels begin again at the first weights (--rewind 0)" in told
    told = "\n".join(planned_levels(train, tmp_path, arm="dense").notes)
    assert "nothing is pruned" in told
    assert "judged" not in told


def test_a_study_grows_and_keeps_every_name(train: dict[str, Any], tmp_path: Path) -> None:
    """More rounds, arms, drawings or seeds have all runs of before under their names; less than that is refused, in a
    dry run too, and what is lost is named.
    """
    asked: dict[str, Any] = {"arm": "dense,lt", "rounds": 1}
    known = found_prune(prune_config(tmp_path / "study", **asked), train)
    for more in ({"rounds": 2}, {"arm": "dense,lt,rr"}, {"draws": 2}, {"seeds": "1,0"}):
        before, asked = asked, asked | more
        grown = found_prune(prune_config(tmp_path / "study", **asked), train)
        assert names(known) < names(grown)
        assert read_study(tmp_path / "study") == joined_study(tmp_path / "study") == grown
        known = grown
    for again in (found_prune, foreseen_prune):
        with pytest.raises(MismatchError, match=r"a grid may grow, but these of its runs .*\n.*there is no dense"):
            again(prune_config(tmp_path / "study", **before), train)
    assert read_study(tmp_path / "study") == known


@pytest.fixture(scope="module")
def founded(train: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyPlan]:
    """A study's folder, and its plan."""
    folder = tmp_path_factory.mktemp("founded") / "study"
    return folder, found_prune(prune_config(folder, rounds=1, arm="lt"), train)


@pytest.mark.parametrize(
    ("study", "runs", "said"),
    [
        ({"rate": "0.3"}, {}, r"rate is 0\.3, was 0\.2"),
        ({"rewind": 3}, {}, r"rewind is 3, was 2(.|\n)*rewind_step is 3, was 2"),
        ({"rewind": "1ep"}, {}, r"rewind is 1ep, was 2"),
        ({"scope": "layer"}, {}, "scope is layer, was global"),
        ({"exclude": "*.attn.*"}, {}, r"exclude is .*attn.*, was"),
        ({}, {"lr": 0.2}, r"lr is 0\.2, was 0\.01"),
        ({}, {"recipe": "smoke", "weight_decay": 0.5}, r"weight_decay is 0\.5, was"),
        ({}, CNN, "model is resnet20, was vit_tiny_patch16_224"),
    ],
    ids=str,
)
def test_another_study_in_its_folder_is_refused_by_name(
    train: dict[str, Any],
    founded: tuple[Path, StudyPlan],
    study: dict[str, Any],
    runs: dict[str, Any],
    said: str,
) -> None:
    """A changed rate, rewinding point, scope or setting of the runs is told with what it was; the plan stays."""
    folder, plan = founded
    with pytest.raises(MismatchError, match=said):
        found_prune(prune_config(folder, **{"rounds": 1, "arm": "lt", **study}), train | runs)
    assert read_study(folder) == plan


def test_what_a_mask_is_of_is_in_every_name_behind_it(train: dict[str, Any], plan: StudyPlan, tmp_path: Path) -> None:
    """Another rate changes the names of all pruned runs and not the unpruned one's; another rewinding point
    changes all; what the rest of the study has changes none.
    """
    whole = {the_run(plan, "").name}
    assert names(plan) & names(planned_levels(train, tmp_path, arm=ALL, draws=2, rate="0.25")) == whole
    assert names(plan) & names(planned_levels(train, tmp_path, arm=ALL, draws=2, rewind=1)) == set()
    assert names(planned_levels(train, tmp_path, arm="one-shot")) < names(plan)


def test_weights_to_start_from_are_the_unpruned_runs_alone(train: dict[str, Any], tmp_path: Path) -> None:
    """lt goes on from the rewinding point and rr from random weights: their runs are told the model in those weights'
    place, and that rr does not start from them is said. How those weights' images were made refuses none, with or
    without rr, whether a user tells the model or not.
    """
    leave_run(tmp_path, 5, num_classes=4)
    untold = {name: value for name, value in train.items() if name not in ("model", "model_kwargs", "img_size")}
    plan = planned_levels(untold | {"init_from": str(tmp_path / "model.safetensors")}, tmp_path / "s", arm="lt,rr")
    assert "rr begins with random weights all the same" in "\n".join(plan.notes)
    first, lt, rr = the_run(plan, ""), the_run(plan, "lt", 1), the_run(plan, "rr", 1)
    assert first.settings["init_from"] == str(tmp_path / "model.safetensors")
    assert (lt.settings["init_from"], rr.settings["init_from"]) == (None, None)
    for run in (lt, rr):
        assert (run.settings["model"], run.settings["model_kwargs"], run.settings["img_size"]) == (MODEL, KWARGS, 32)
    leave_run(tmp_path, 5, num_classes=4, mean=(0.5, 0.5, 0.5), crop_pct=0.8)
    from_it = {"init_from": str(tmp_path / "model.safetensors")}
    without, both = (planned_levels(untold | from_it, tmp_path / "s", arm=arm) for arm in ("lt", "lt,rr"))
    assert names(without) == {run.name for run in both.runs if run.arm.pruned != "rr"}
    assert len(planned_levels(train | from_it, tmp_path / "s", arm="lt,rr").runs) == len(both.runs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": 9, "scope": "layer", "rate": "0.6"}, r"level 7 at rate 0\.6 .* every weight of blocks\.0\.attn"),
        ({"rounds": 12, "rate": "0.6"}, r"level \d+ at rate 0\.6 would mask every weight of all layers together"),
        ({"rounds": 40}, r"level 40 at rate 0\.2 would mask none of the 2 weights that remain, and be level 39"),
        ({"exclude": ",".join(f"*.{i}.*" for i in range(65))}, "--exclude: .*at most 64"),
        ({"rewind": "6"}, r"--rewind 6 is step 6 of the 6 of a run \(2 epochs of 3\)"),
        ({"rewind": "0.5ep"}, r"--rewind 0\.5ep is step 1\.5"),
        ({"rate": "0.00001"}, r"--rate 0\.00001: two levels leave 1 of the weights to four digits"),
        ({"rate": "1"}, "masks every weight in the first round"),
        ({"val": None}, "could never be judged without validation images: give --val"),
        ({"exclude": "*"}, "has nothing to prune"),
        ({"exclude": "*.atn.*"}, r"--exclude \*\.atn\.\* matches no parameter"),
        ({"arm": "lt,rnd"}, "there is no arm 'rnd'"),
        ({"patches": "ticket"}, "the ticket arm needs"),
        ({"rate": "20%"}, r"--rate: .*got '20%'(?!, found)"),
        ({"seeds": ",".join(map(str, range(4000)))}, "at most 10,000 runs are planned"),
    ],
    ids=["emptied layer", "emptied", "nothing", "patterns", "no step left", "half a step", "equal", "all", "no val",
         "all excluded", "pattern", "arm", "no tickets", "no decimal", "too many"],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    train: dict[str, Any], tmp_path: Path, dlth: Dlth, changes: dict[str, Any], said: str
) -> None:
    """Exit code 2 and one error that names the flag and the layer or the numbers; the study's folder is not made."""
    asked: dict[str, Any] = {"rounds": 2, "arm": "lt", "seeds": "0", "measure": 0, "out": tmp_path / "study"}
    words = flags(train | asked | changes)
    code, out, err = dlth("prune", *words)
    assert (code, out) == (2, "")
    assert re.search(said, " ".join(err.split())), err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["mask", "start_step", "rewind_step", "init_seed"])
def test_what_levels_are_given_is_refused_by_hand(train: dict[str, Any], tmp_path: Path, dlth: Dlth, name: str) -> None:
    """Settings of train that the study gives each of its runs are no flags of it, and are refused in a file by name."""
    flag, value = f"--{name.replace('_', '-')}", "m.safetensors" if name == "mask" else 3
    with pytest.raises(InputError, match=f"^{flag}: dlth prune gives each level its own"):
        planned_levels(train | {name: value}, tmp_path / "study")
    code, _, err = dlth("prune", *flags(train), flag, value, "--out", tmp_path / "study")
    assert (code, flag in err) == (2, True)
    runs = {key: each for key, each in train.items() if key != "model_kwargs"} | {name: value}
    tables = {"train": runs, "prune": {"out": str(tmp_path / "study"), "arm": ["lt"], "measure": 0}}
    lines = [
        line
        for table, values in tables.items()
        for line in (f"[{table}]", *(f"{key} = {json.dumps(each)}" for key, each in values.items()))
    ]
    (tmp_path / "asked.toml").write_text("\n".join(lines))
    code, _, err = dlth("prune", "--config", tmp_path / "asked.toml")
    assert (code, flag in err or name in err) == (2, True), err
    assert not (tmp_path / "study").exists()


def test_a_dry_run_tells_the_plan_and_writes_nothing(train: dict[str, Any], tmp_path: Path, dlth: Dlth) -> None:
    """Arms, costs and names as the study will have them; as JSON, which a file of settings gives alike."""
    asked = {"rounds": 2, "arm": "lt,dense", "seeds": "0", "rewind": 2, "measure": 0, "out": tmp_path / "study"}
    code, out, err = dlth("prune", *flags(train | asked), "--dry-run", "--json")
    assert code == 0, err
    told = json.loads(out)
    plan = planned_levels(train, tmp_path / "study")
    assert [run["name"] for run in told["runs"]] == [run.name for run in plan.runs]
    assert told["runs"][2]["mask"]["of"] == plan.runs[1].name
    code, out, err = dlth("prune", *flags(train | asked), "--dry-run")
    assert code == 0, err
    assert "dense" in out
    assert "2 rounds leave 491 prunable weights" in err
    assert not (tmp_path / "study").exists()
