"""A whole study of levels: its masks, what each run begins with, what it costs, and how it goes on."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.masks import PRUNABLE
from makers.pruning import CNN_PRUNABLE, Study, planned_levels, the_run, tiny_runs
from makers.studies import leavings
from safetensors.torch import load_file

from dlth.pipeline.evidence.failure import FAILED, Failure, write_failure
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.evidence.parents import altered_parents
from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan, write_study
from dlth.pipeline.pruning.checking import check_masks
from dlth.pipeline.studies.founding import joined_study
from dlth.pipeline.studies.worker import StudyReporter, Worker, chains, run_study
from dlth.tickets.errors import MismatchError
from dlth.training.distributed.process_group import World
from dlth.training.models.weights import tensors_digest
from dlth.training.models.weights_metadata import MODEL_FILE
from dlth.training.pruning.mask_file import MaskFile, read_mask
from dlth.training.pruning.recipe import MASK, REWIND
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import Training
from dlth.training.runs.result import RunResult, read_result
from dlth.training.runs.runlog import logged_epochs

PRUNED_RUNS = [("lt", 1), ("lt", 2), ("rr", 1), ("rr", 2), ("random-mask", 1), ("random-mask", 2), ("one-shot", 2)]


def mask_of(study: Study, arm: str, level: int) -> MaskFile:
    return read_mask(study.run(the_run(study.plan, arm, level)) / MASK)


def result_of(study: Study, run: PlannedRun) -> RunResult:
    result = read_result(study.run(run) / "result.json")
    assert result is not None
    return result


def first_weights(study: Study, run: PlannedRun, elsewhere: Path) -> dict[str, torch.Tensor]:
    """Weights and buffers that a worker's run stands with before its first step."""
    config = Worker(study.folder, study.plan, 1, StudyReporter()).config(run)
    config = config.model_copy(update={"out": str(elsewhere), "resume": None})
    model = Training(config, World(0, 1, torch.device("cpu")), Reporter()).parts.student.model
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return {name: (each.dtype, each.numpy().tobytes()) for name, each in first.items()} == {
        name: (each.dtype, each.numpy().tobytes()) for name, each in second.items()
    }


def test_masks_are_nested_counted_and_related(whole: Study) -> None:
    """lt's levels lie in each other with exactly as many weights as rounds leave; rr's bits are lt's; random-mask has
    as many in each layer, others; one-shot as many in all, made of the unpruned run. Logs, results and weights
    say the same.
    """
    first = result_of(whole, the_run(whole.plan, ""))
    left = [CNN_PRUNABLE - round(CNN_PRUNABLE / 5)]
    left.append(left[0] - round(left[0] / 5))
    one, two = (mask_of(whole, "lt", level) for level in (1, 2))
    assert not any((two.masks[name] & ~one.masks[name]).any() for name in two.masks)
    assert (one.header.parent, one.header.final) == ("", first.weights_sha256)
    assert two.header.parent == one.identity
    for level, lt in ((1, one), (2, two)):
        rr, random = (mask_of(whole, arm, level) for arm in ("rr", "random-mask"))
        assert all(torch.equal(lt.masks[name], rr.masks[name]) for name in lt.masks)
        assert random.header.layers == lt.header.layers
        assert any(not torch.equal(lt.masks[name], random.masks[name]) for name in lt.masks)
        assert (lt.prunable, lt.remaining) == (CNN_PRUNABLE, left[level - 1])
    shot = mask_of(whole, "one-shot", 2)
    assert (shot.remaining, shot.header.final, shot.header.parent) == (left[1], first.weights_sha256, "")
    for arm, level in PRUNED_RUNS:
        run, mask = the_run(whole.plan, arm, level), mask_of(whole, arm, level)
        result = result_of(whole, run)
        assert (result.mask, result.remaining_weights) == (mask.identity, mask.remaining)
        weights = load_file(whole.run(run) / "model.safetensors")
        assert not any(weights[name][~remains].any() for name, remains in mask.masks.items())
        assert {row["remaining_weights"] for row in logged_epochs(whole.run(run))} == {mask.remaining}


def test_rewound_runs_begin_with_the_rewinding_points_weights_and_buffers(whole: Study, tmp_path: Path) -> None:
    """What stands before the first step of lt, random-mask and one-shot is rewind.safetensors under the run's mask, bit
    for bit, with the statistics that its buffers had after two steps.
    """
    for arm, level in (("lt", 1), ("lt", 2), ("random-mask", 2), ("one-shot", 2)):
        run = the_run(whole.plan, arm, level)
        kept = load_file(whole.run(the_run(whole.plan, "")) / REWIND)
        mask = read_mask(whole.run(run) / MASK)
        assert (mask.header.rewind_step, mask.header.initial) == (2, tensors_digest(kept))
        masked = {name: each.clone() for name, each in kept.items()}
        for name, remains in mask.masks.items():
            masked[name][~remains] = 0.0
        assert same_bits(first_weights(whole, run, tmp_path / run.name), masked)
        assert {int(each) for name, each in kept.items() if name.endswith("num_batches_tracked")} == {2}


def test_fresh_weights_differ_by_level_and_seed_and_are_no_rewound_ones(whole: Study, tmp_path: Path) -> None:
    """rr begins each level with other random weights under lt's mask, and at its first step."""
    name, found = "layer3.0.conv2.weight", []
    for level, seed in ((1, 0), (2, 0), (1, 1)):
        run = the_run(whole.plan, "rr", level, seed)
        first = first_weights(whole, run, tmp_path / run.name)
        mask = read_mask(whole.run(run) / MASK)
        assert not first[name][~mask.masks[name]].any()
        assert (mask.header.rewind_step, mask.header.initial) == (None, "")
        found.append(first[name])
    found.append(load_file(whole.run(the_run(whole.plan, "")) / REWIND)[name])
    everywhere = torch.stack([each != 0 for each in found]).all(0)
    assert everywhere.any()
    chosen = [each[everywhere] for each in found]
    assert not any((one == two).any() for at, one in enumerate(chosen) for two in chosen[:at])


def test_costs_are_what_the_runs_then_take(whole: Study) -> None:
    """Steps, images, tokens, operations of the plan are those that each result tells: from the rewinding point on."""
    assert [state.state for state in whole.state.runs] == ["finished"] * 11
    for run in whole.plan.runs:
        result, start = result_of(whole, run), run.settings["start_step"]
        took = (result.steps - start, result.train_images, result.train_tokens, result.train_flops)
        assert took == (run.cost.steps, run.cost.images, run.cost.tokens, run.cost.flops)
    steps = {arm: the_run(whole.plan, arm, 2).cost.steps for arm in ("lt", "rr", "random-mask", "one-shot")}
    assert steps == {"lt": 4, "rr": 6, "random-mask": 4, "one-shot": 4}


def test_finished_levels_are_not_redone(whole: Study) -> None:
    """The same call again, asked for anew, follows the same plan, and changes no byte and no time of any file."""

    def files() -> dict[Path, tuple[int, bytes]]:
        found = [path for path in whole.folder.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = files()
    assert run_study(whole.folder, joined_study(whole.folder)) == whole.state
    assert files() == before


def test_a_run_whose_need_failed_is_told_and_comes_back_in_a_moved_folder(whole: Study, tmp_path: Path) -> None:
    """A study moved after its unpruned run, whose first level failed: the second is told failed by its name, nothing of
    it is written; tried again, both are the undisturbed study's to the bit.
    """
    first, one, two = (the_run(whole.plan, arm, level) for arm, level in (("", 0), ("lt", 1), ("lt", 2)))
    plan = StudyPlan((first, one, two), whole.plan.settings)
    study = tmp_path / "moved"
    shutil.copytree(whole.run(first), plan.folder(study, first))
    write_failure(plan.folder(study, one), Failure("E_DIVERGED", "the loss was nan"))
    state = run_study(study, plan)
    assert [run.state for run in state.runs] == ["finished", "failed", "failed"]
    assert state.failed[1].problem == f"it is made of {one.name}, which failed"
    assert not plan.folder(study, two).exists()
    again = run_study(study, plan, retry=True)
    assert [run.state for run in again.runs] == ["finished"] * 3
    assert not (plan.folder(study, one) / FAILED).exists()
    assert leavings(study, plan) == leavings(whole.folder, plan)


def test_a_plan_that_was_altered_is_not_joined(whole: Study, tmp_path: Path) -> None:
    """Another recipe under a run's name is found out; a plan in which a run stands before what it needs is none."""
    run = the_run(whole.plan, "lt", 2)
    assert run.mask is not None
    altered = replace(run, mask=replace(run.mask, recipe=replace(run.mask.recipe, rate="0.3")))
    runs = tuple(altered if each is run else each for each in whole.plan.runs)
    write_study(tmp_path, replace(whole.plan, runs=runs))
    with pytest.raises(MismatchError, match=rf"{run.name} has other settings.*was changed since"):
        joined_study(tmp_path)
    with pytest.raises(ValueError, match="does not stand before it"):
        StudyPlan(whole.plan.runs[::-1])


@pytest.mark.parametrize(("arm", "level", "name"), [("", 0, REWIND), ("lt", 1, MODEL_FILE)])
def test_no_level_is_made_of_weights_that_were_altered(
    whole: Study, tmp_path: Path, arm: str, level: int, name: str
) -> None:
    """One bit of the rewinding point, or of a parent that masks nothing there: named before anything is written, and
    put back it serves; masks that were made are told to be of other weights.
    """
    study, run = tmp_path / "study", the_run(whole.plan, "lt", 2)
    assert run.mask is not None
    shutil.copytree(whole.folder, study)
    shutil.rmtree(whole.plan.folder(study, run))
    path = whole.plan.folder(study, the_run(whole.plan, arm, level)) / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MismatchError, match=rf"{run.name} would not be .*{name} holds other weights than result.json"):
        run_study(study, whole.plan)
    assert not whole.plan.folder(study, run).exists()
    found = check_masks((study,), lambda done, of: None)
    assert any(f"is made of altered weights: {path} holds other" in str(damage) for damage in found.damage)
    path.write_bytes(content)
    assert altered_parents(study, run.mask) == ""


def test_what_most_levels_wait_for_goes_first(whole: Study) -> None:
    """The unpruned run has two levels behind it, lt's first level one, all others none."""
    waiting = chains(whole.plan)
    seed_0 = {(run.arm.pruned, waiting[run.name]) for run in whole.plan.runs if run.seed == 0}
    assert seed_0 == {("", 2), ("lt", 1), ("lt", 0), ("rr", 0), ("random-mask", 0), ("one-shot", 0)}


def test_patches_and_weights_are_pruned_together(shared: dict[str, Any], tmp_path: Path) -> None:
    """With tickets every run, unpruned and pruned, is of the ticket arm: half of the patches and the weights that the
    level leaves, and both are what it is known by.
    """
    tickets = {name: shared[name] for name in ("tickets", "val_tickets")}
    plan = planned_levels(tiny_runs(shared, **tickets, epochs=1), tmp_path, rounds=1, rewind=1)
    assert [str(run.arm) for run in plan.runs] == [
        "ticket, keep 0.5, projected",
        "ticket, keep 0.5, projected, lt 0.8 of weights",
    ]
    write_study(tmp_path, plan)
    assert run_study(tmp_path, plan).failed == ()
    found = gather([tmp_path]).runs
    assert set(found) == {run.arm for run in plan.runs}
    results = [found[run.arm][0].result for run in plan.runs]
    assert [(result.k, result.remaining_weights) for result in results] == [(8, None), (8, PRUNABLE - 154)]


def test_what_a_colleague_gets_makes_a_level_again(
    whole: Study, tmp_path: Path, dlth: Callable[..., tuple[int, str, str]]
) -> None:
    """Mask, weights at the rewinding point, and the run's settings: the same weights, in a folder that has the mask."""
    run, lab, out = whole.run(the_run(whole.plan, "lt", 1)), tmp_path / "lab", tmp_path / "again"
    lab.mkdir()
    for path in (run / MASK, run / "config.toml", whole.run(the_run(whole.plan, "")) / REWIND):
        shutil.copy(path, lab)
    assert dlth("masks", "verify", lab)[0] == 0
    words = ("--config", lab / "config.toml", "--mask", lab / MASK, "--init-from", lab / REWIND, "--out", out)
    assert dlth("train", *words)[0] == 0
    assert all((out / name).read_bytes() == (run / name).read_bytes() for name in (MASK, "model.safetensors"))
    assert dlth("masks", "verify", out)[0] == 0
