"""Evidence of pruned runs: by plan or by the mask beside a run, in order, draws together, never as unpruned ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.pruning import DENSE, FRESH, INITIAL, LATE, TICKET, write_prune_study, write_pruned
from makers.results import write_run

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.evidence.gather import gather
from dlth.training.pruning.recipe import MASK
from dlth.training.runs.sealed_json import sealed

REDRAWN = {"init_from": None, "start_step": 0, "init_seed": 7}


def key(way: str, weights: str, draw: int = 0, arm: ArmKey = DENSE) -> ArmKey:
    return replace(arm, pruned=way, weights=weights, draw=draw)


def change(run: Path, **of: object) -> None:
    """Put other values into a run's result, sealed as a run would."""
    result = json.loads((run / "result.json").read_text()) | of
    (run / "result.json").write_text(json.dumps(sealed({name: of for name, of in result.items() if name != "sha256"})))


@pytest.fixture(scope="module")
def evidence(pruned: Path) -> Evidence:
    """What the study holds."""
    return gather([pruned])


def test_arms_come_unpruned_first_then_with_fewer_weights(evidence: Evidence) -> None:
    """Of a share lt, rr, random-mask, one-shot, draw by draw; all are comparable, and the missing run is named."""
    of_share = [("lt", 0), ("rr", 0), ("rr", 1), ("random-mask", 0), ("random-mask", 1)]
    first = [key(way, "0.8", draw) for way, draw in of_share]
    second = [key(way, "0.64", draw) for way, draw in (*of_share, ("one-shot", 0))]
    assert list(evidence.runs) == [DENSE, *first, *second]
    assert not evidence.differences
    assert [state.name for state in evidence.unfinished] == [LATE]


def test_draws_of_a_seed_stand_together(evidence: Evidence) -> None:
    """Stacked under the first draw's key, as many as every seed has; an arm of one draw has one row of images."""
    shapes = {arm: {seed: hits.shape for seed, hits in runs.items()} for arm, runs in evidence.hits.items()}
    assert all(not arm.draw for arm in shapes)
    assert shapes[key("rr", "0.8")] == dict.fromkeys(range(3), (2, 200))
    assert shapes[key("rr", "0.64")] == shapes[key("lt", "0.8")] == dict.fromkeys(range(3), (200,))
    draws = [evidence.runs[key("random-mask", "0.64", draw)][1].images["dense_top1"] for draw in range(2)]
    assert np.array_equal(evidence.hits[key("random-mask", "0.64")][1], np.stack(draws))


def test_masks_alone_say_how_runs_were_pruned(pruned: Path, evidence: Evidence) -> None:
    """The runs' folders without their plan give the same arms and hits; without its mask a run is of an arm apart."""
    loose = gather([pruned / "runs"])
    assert list(loose.runs) == list(evidence.runs)
    for arm, runs in evidence.hits.items():
        assert all(np.array_equal(loose.hits[arm][seed], hits) for seed, hits in runs.items())


@pytest.mark.parametrize(
    ("first", "config", "way"),
    [
        (INITIAL, {"start_step": 1}, "mask"),
        (INITIAL, {"init_from": None, "pretrained": True}, "lt"),
        (FRESH, {}, "mask"),
        ("", {}, "mask"),
        (FRESH, REDRAWN, "rr"),
        (FRESH, REDRAWN | {"init_seed": None}, "mask"),
        (FRESH, REDRAWN | {"init_seed": 0}, "mask"),
        (FRESH, REDRAWN | {"pretrained": True}, "mask"),
        (FRESH, REDRAWN | {"start_step": 2}, "mask"),
        (INITIAL, REDRAWN, "mask"),
    ],
    ids=[
        *("another step", "the same weights from elsewhere", "trained ones", "not known", "drawn anew"),
        *("the seed's own", "the seed's own by name", "weights of others", "drawn, at a later step", "drawn the same"),
    ],
)
def test_an_arm_is_a_mask_and_the_weights_before_it(
    tmp_path: Path, first: str, config: dict[str, object], way: str
) -> None:
    """A mask of lt on the weights that it sets back to, whoever made them, is lt; on weights that another seed drew it
    is rr; on others, or at another step, it is none of the arms.
    """
    arm = key(way, "0.64")
    run = write_pruned(tmp_path / "run", key("lt", "0.64"), 2, 0, 0.8)
    assert list(gather([tmp_path]).runs) == [key("lt", "0.64")]
    change(run, initial_weights=first, config=json.loads((run / "result.json").read_text())["config"] | config)
    assert list(gather([tmp_path]).runs) == [arm]


def test_a_pruned_run_never_passes_for_an_unpruned_one(pruned: Path, tmp_path: Path) -> None:
    """Without its mask it keeps to itself, by the share that its result says; under another mask, or where the plan has
    an unpruned run, it is left out.
    """
    shutil.copytree(pruned / "runs", tmp_path / "loose")
    (tmp_path / "loose" / "dense-lt-level1-draw0-seed0" / MASK).unlink()
    alone = gather([tmp_path / "loose"])
    assert list(alone.runs[key("mask", "0.8")]) == [0]
    assert list(alone.runs[key("lt", "0.8")]) == [1, 2]
    assert not alone.differences
    shutil.copytree(pruned, tmp_path / "study")
    runs = tmp_path / "study" / "runs"
    shutil.copy(runs / "dense-lt-level1-draw0-seed1" / MASK, runs / "dense-lt-level2-draw0-seed1" / MASK)
    change(runs / "dense-rr-level1-draw0-seed0", mask="", prunable_weights=None, remaining_weights=None)
    shutil.rmtree(runs / "dense-seed2")
    shutil.copytree(runs / "dense-lt-level1-draw0-seed2", runs / "dense-seed2")
    change(runs / "dense-lt-level2-draw0-seed0", initial_weights=FRESH)
    said: list[str] = []
    evidence = gather([tmp_path / "study"], said.append)
    assert [list(evidence.runs[arm]) for arm in (DENSE, key("rr", "0.8"), key("lt", "0.64"))] == [
        [0, 1],
        [1, 2],
        [2],
    ]
    assert any(f"begins with the weights {INITIAL[:12]}, to which its mask" in text for text in said)
    assert any("leaves 64 of 100 weights, mask.safetensors is" in text for text in said)
    assert any("should hold the run of pruned weights; its result is of unpruned ones" in text for text in said)


def test_what_differs_stops_the_verdicts_of_its_share_alone(pruned: Path, tmp_path: Path) -> None:
    """Another rewinding point at one share is told with both sides, and at the other there are verdicts."""
    shutil.copytree(pruned, tmp_path / "one")
    runs = tmp_path / "one" / "runs"
    other = json.loads((runs / "dense-lt-level2-draw0-seed1" / "result.json").read_text())["config"] | {"start_step": 1}
    change(runs / "dense-lt-level2-draw0-seed1", config=other)
    evidence = gather([tmp_path / "one"])
    assert {arm.weights for arm in evidence.differences} == {"0.64"}
    assert set(evidence.hits) == {DENSE, *(key(way, "0.8") for way in ("lt", "rr", "random-mask"))}
    told = evidence.differences[key("rr", "0.64")]
    assert told == ["the step that weights are set back to: 2 (arm dense, seed 0), 1 (arm dense, seed 1)"]


def test_patches_and_weights_are_families_of_their_own(tmp_path: Path) -> None:
    """Tickets on pruned weights are compared with tickets of the same weights' other arms and with dense ones pruned
    alike; what is amiss with a pruned run says nothing of unpruned tickets.
    """
    write_prune_study(tmp_path / "study", {"lt": 0.8, "rr": 0.7}, levels=1, arm=TICKET)
    write_pruned(tmp_path / "more" / "dense-lt", key("lt", "0.8"), 1, 0, 0.8)
    write_run(tmp_path / "more" / "dense", "dense", 0)
    folders = [tmp_path / "study", tmp_path / "more"]
    pruned = {key(way, "0.8", arm=TICKET) for way in ("lt", "rr")}
    assert set(gather(folders).hits) == {DENSE, TICKET, key("lt", "0.8"), *pruned}
    change(tmp_path / "more" / "dense-lt", steps=99)
    evidence = gather(folders)
    assert evidence.differences.keys() == {key("lt", "0.8"), key("lt", "0.8", arm=TICKET)}
    assert set(evidence.hits) == {DENSE, TICKET, key("rr", "0.8", arm=TICKET)}
