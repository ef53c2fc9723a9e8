"""Evidence from folders of studies and runs: what is put together, what is kept apart, and what is left out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.results import write_run, write_study_of

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.evidence.study_plan import write_study
from dlth.pipeline.reports.report import verdicts_of
from dlth.pipeline.reports.unfinished import warnings
from dlth.tickets.errors import InputError
from dlth.training.runs.sealed_json import sealed

TICKET, RANDOM, CENTRE = (ArmKey(arm, "0.5", "projected") for arm in ("ticket", "random", "control-centre"))
DENSE, SMALL = ArmKey("dense"), ArmKey("ticket", "0.25", "projected")
ARMS = (DENSE, TICKET, RANDOM, CENTRE)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four arms and two keeps with three seeds, of which one run is missing."""
    folder = tmp_path_factory.mktemp("studies") / "one"
    write_study_of(folder, (*ARMS, SMALL), unfinished=("random-keep0.5-seed2",))
    return folder


def change(run: Path, **of: object) -> None:
    """Put other values into a run's result, sealed as a run would."""
    result = json.loads((run / "result.json").read_text()) | of
    (run / "result.json").write_text(json.dumps(sealed({name: of for name, of in result.items() if name != "sha256"})))


def test_a_study_is_read_by_its_plan(study: Path) -> None:
    """Arms come dense first, then keep by keep; the run that is not there is named as waiting."""
    evidence = gather([study])
    assert list(evidence.runs) == [DENSE, TICKET, RANDOM, CENTRE, SMALL]
    assert [list(runs) for runs in evidence.runs.values()] == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert [(state.name, state.state) for state in evidence.unfinished] == [("random-keep0.5-seed2", "waiting")]
    assert not evidence.differences
    assert evidence.hits[RANDOM].keys() == {0, 1}


def test_runs_alone_say_which_arm_they_are(study: Path) -> None:
    """The runs' folders without their plan give the same arms and hits, a control's by what its tickets are."""
    whole, loose = gather([study]), gather([study / "runs"])
    assert list(loose.runs) == list(whole.runs)
    assert all(np.array_equal(loose.hits[arm][0], whole.hits[arm][0]) for arm in whole.hits)


def test_a_run_that_lies_is_left_out_and_told(study: Path, tmp_path: Path) -> None:
    """Images of another run, a result of another arm, a damaged one: each is told, and the other runs stay."""
    shutil.copytree(study, tmp_path / "one")
    runs = tmp_path / "one" / "runs"
    shutil.copy(runs / "dense-seed0" / "eval.npz", runs / "dense-seed1" / "eval.npz")
    change(runs / "ticket-keep0.5-seed1", arm="random")
    (runs / "ticket-keep0.5-seed2" / "eval.npz").unlink()
    said: list[str] = []
    evidence = gather([tmp_path / "one"], said.append)
    assert [len(runs) for runs in evidence.runs.values()] == [2, 1, 2, 3, 3]
    assert [state.state for state in evidence.unfinished].count("failed") == 3
    for told in ("they are of different runs", "its result is of arm random, seed 1", "eval.npz is missing"):
        assert sum(told in text for text in said) == 1


def test_what_differs_stops_the_verdicts_of_its_keep_alone(study: Path, tmp_path: Path) -> None:
    """A longer run at one keep is named and not judged there; the other keep is, and tables have all runs."""
    shutil.copytree(study, tmp_path / "one")
    change(tmp_path / "one" / "runs" / "ticket-keep0.25-seed1", steps=99)
    evidence = gather([tmp_path / "one"])
    assert evidence.differences.keys() == {SMALL}
    assert evidence.differences[SMALL][0].startswith("how many steps were taken: ")
    assert set(evidence.hits) == {*ARMS}
    assert len(evidence.runs[SMALL]) == 3


def test_a_study_lets_its_own_arms_differ_and_no_others(tmp_path: Path) -> None:
    """Arms of a study matched in computation differ in epochs; the same two without a plan do not beside such a study,
    nor does one more seed that was trained for longer than the study's.
    """
    study, loose = tmp_path / "one", tmp_path / "loose"
    plan = write_study_of(study, (DENSE, TICKET))
    write_study(study, replace(plan, may_differ=("epochs",)))
    for run in (study / "runs").glob("ticket-*"):
        change(run, steps=16)
    for arm, steps in (("dense", 12), ("ticket", 16)):
        write_run(loose / arm, arm, 0, model="swin", steps=steps)
    swin, vit = (replace(TICKET, variant=model) for model in ("swin", "vit_tiny_patch16_224"))
    evidence = gather([study, loose])
    assert (vit in evidence.judged, evidence.differences.keys()) == (True, {swin})
    for steps, judged in ((16, True), (20, False)):
        write_run(tmp_path / f"more{steps}", "ticket", 3, steps=steps)
        assert (TICKET in gather([study, tmp_path / f"more{steps}"]).judged) == judged


@pytest.mark.parametrize(
    "of", [{"tickets": "e" * 64}, {"selector": {"weights_sha256": "e" * 64}}], ids=["cached", "online"]
)
def test_seeds_of_an_arm_have_the_same_tickets(study: Path, tmp_path: Path, of: dict[str, object]) -> None:
    """A seed on other tickets, or with another selector in the loop, is no repetition: told, and no verdict."""
    shutil.copytree(study, tmp_path / "one")
    runs = tmp_path / "one" / "runs"
    for seed in (0, 1, 2):
        change(runs / f"ticket-keep0.5-seed{seed}", selector={"weights_sha256": "a" * 64})
    change(runs / "ticket-keep0.5-seed1", **of)
    evidence = gather([tmp_path / "one"])
    assert TICKET not in evidence.hits
    (told,) = evidence.differences[TICKET]
    assert "aaaaaaaaaaaa (arm ticket, seed 0), eeeeeeeeeeee (arm ticket, seed 1)" in told


def test_a_dense_run_needs_no_tickets_of_validation_images(tmp_path: Path) -> None:
    """It is judged on all patches, so it is compared with arms that have them; those need the same among each other."""
    of = {name: {"val_order": "d" * 64, "val_tickets": name * 64} for name in ("", "a", "b")}
    for arm, data in (("dense", of[""]), ("ticket", of["a"]), ("random", of["a"])):
        write_run(tmp_path / arm, arm, 0, data=data)
    assert not gather([tmp_path]).differences
    write_run(tmp_path / "other", "random", 1, data=of["b"])
    assert all("validation images' tickets" in told[0] for told in gather([tmp_path]).differences.values())
    assert gather([tmp_path]).differences.keys() == {TICKET, RANDOM}


def test_random_patches_of_another_mode_stand_in_where_they_are_alike(tmp_path: Path) -> None:
    """Projected random patches are held against online tickets of the same labels, whoever ranks those; of others the
    page says why not, and each arm is still judged beside the dense one.
    """
    alike, other = ({"data_order": "c" * 64, "val_order": "d" * 64, "data_labels": of * 64} for of in "ab")
    for arm in ("ticket", "random"):
        write_run(tmp_path / arm, arm, 0, data=alike)
    config = json.loads((tmp_path / "ticket" / "result.json").read_text())["config"]
    change(tmp_path / "ticket", mode="online", config=config | {"mode": "online", "selector_ranker": "gradient"})
    online = replace(TICKET, mode="online")
    (verdict,) = verdicts_of(gather([tmp_path]))
    assert (verdict.first, verdict.second) == (online, RANDOM)
    change(tmp_path / "random", data=other)
    evidence = gather([tmp_path])
    assert not evidence.differences
    assert evidence.apart.keys() == {(online, RANDOM)}
    assert verdicts_of(evidence) == ()
    (told,) = warnings(evidence)
    assert f"Not judged: {online} against {RANDOM}" in told
    assert "the training images' labels: " in told
    change(tmp_path / "random", data=alike, config=config | {"hidden": "keep"})
    write_run(tmp_path / "dense", "dense", 0, data=alike)
    assert [str(each.clause) for each in verdicts_of(gather([tmp_path]))] == [
        "ticket as good as dense",
        "dense better than random",
    ]


def test_a_variant_is_held_against_the_arms_that_it_lacks_where_its_study_lets_it(tmp_path: Path) -> None:
    """Random patches trained for longer, a variant of the tickets' own, are judged where the study lets epochs differ;
    else the page says that they are not.
    """
    dense, ticket = (replace(arm, variant="m") for arm in (DENSE, TICKET))
    matched = replace(RANDOM, variant="m/matched")
    plan = write_study_of(tmp_path, (dense, ticket, matched))
    for run in (tmp_path / "runs").glob("random-*"):
        change(run, steps=16)
    evidence = gather([tmp_path])
    assert (evidence.differences, evidence.apart.keys()) == ({}, {(ticket, matched), (dense, matched)})
    assert f"Not judged: {ticket} against {matched}, as they differ in more than the arm: how many steps" in str(
        warnings(evidence)
    )
    write_study(tmp_path, replace(plan, may_differ=("epochs",)))
    judged = {(each.first, each.second) for each in verdicts_of(gather([tmp_path]))}
    assert judged == {(ticket, dense), (ticket, matched), (dense, matched)}


def test_images_that_one_run_lacks_are_left_out_of_all(tmp_path: Path) -> None:
    """Hits are of the images that every run saw, in one order, and the others are counted."""
    for arm in ("ticket", "dense"):
        write_run(tmp_path / arm, arm, 0)
    before = gather([tmp_path])
    path = tmp_path / "ticket" / "eval.npz"
    columns = dict(np.load(path))
    turned = {name: values[::-1] for name, values in columns.items()}
    turned |= {
        name: turned[name] & (np.arange(len(turned["keys"])) >= 7) for name in turned if turned[name].dtype == bool
    }
    np.savez_compressed(path, **turned)
    result = json.loads((tmp_path / "ticket" / "result.json").read_text())
    for tokens, row in result["evaluation"]["model"].items():
        row["top1"] = 100 * float(turned[f"{tokens}_top1"][7:].mean())
    change(tmp_path / "ticket", evaluation=result["evaluation"])
    evidence = gather([tmp_path])
    assert evidence.left_out == 7
    assert all(np.array_equal(evidence.hits[arm][0], before.hits[arm][0][:-7]) for arm in (TICKET, DENSE))


def test_folders_with_the_same_runs_are_kept_apart(study: Path, tmp_path: Path) -> None:
    """More seeds in another folder are the same arms; the same seeds again are arms of their own, by folder.

    Those of another model go by model, so that its arms meet whichever folders they lie in.
    """
    write_run(tmp_path / "more", "dense", 3)
    assert list(gather([study, tmp_path / "more"]).runs[DENSE]) == [0, 1, 2, 3]
    write_run(tmp_path / "again", "dense", 2)
    apart = gather([study, tmp_path / "again"])
    assert [arm.variant for arm in apart.runs if arm.arm == "dense"] == ["again", "one"]
    other = [write_run(tmp_path / arm, arm, 0, model="swin") for arm in ("dense", "ticket")]
    models = gather([study, *other])
    assert {arm.variant for arm in models.runs} == {"vit_tiny_patch16_224", "swin"}
    assert [arm.arm for arm in models.runs if arm.variant == "swin"] == ["dense", "ticket"]
    assert not models.differences


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    """A run and its copy, the same by its weights, are one run; the second is told."""
    one = write_run(tmp_path / "one", "dense", 0, weights_sha256="f" * 64)
    shutil.copytree(one, tmp_path / "two")
    said: list[str] = []
    evidence = gather([one, tmp_path / "two"], said.append)
    assert [arm.variant for arm in evidence.runs] == [""]
    assert said == [f"left out: {tmp_path / 'two'}, the same run as {one}"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    """Nothing to report is an error that says what to name."""
    with pytest.raises(InputError, match="holds no run and no study"):
        gather([tmp_path])
