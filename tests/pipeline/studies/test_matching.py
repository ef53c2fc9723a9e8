"""Epochs that make arms spend alike, and what a selector costs."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import pytest
from makers.tickets import DEIT, make_header, select_tickets

from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import PlannedRun, RunCost, StudyPlan
from dlth.pipeline.studies.arms import Arm, opened
from dlth.pipeline.studies.grid import grid
from dlth.pipeline.studies.matching import matched, nearest_epochs, nominal_share, share_of_stages
from dlth.pipeline.studies.planning import plan_study
from dlth.pipeline.studies.selector_cost import selector_cost, stage1_flops
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets import Budget, Grid, SelectorInfo, TicketHeader, ViewSpec
from dlth.tickets.errors import InputError
from dlth.training.models.registry import build
from dlth.training.runs.loop import train
from dlth.training.selectors.evit import Selector
from dlth.training.settings.layering import checked, layered

PAPERS = {"0.95": 350, "0.9": 412, "0.85": 489, "0.8": 586, "0.75": 711}
"""Stage rate -> epochs of the authors' random arm that is matched with 300 dense ones."""


def planned(shared: dict[str, Any], out: Path, train: dict[str, Any] | None = None, **study: Any) -> StudyPlan:
    """A plan of a random and a dense arm with one seed."""
    values = {"out": str(out), "arms": "random,dense", "seeds": "0", "measure": 0} | study
    return plan_study(checked(CompareConfig, values), shared | (train or {}))


def epochs(plan: StudyPlan) -> dict[str, int]:
    return {str(run.arm): run.cost.epochs for run in plan.runs}


def at_stage_rate(rate: str) -> TicketHeader:
    """The header of a file that was made at a stage rate, for DeiT-S at 224 px."""
    budget = Budget.from_stage_keep(rate, 196, 3)
    counts = {name: getattr(budget, name) for name in ("k", "keep", "stage_keep", "stage_tokens")}
    return make_header(**DEIT | counts)


@pytest.mark.parametrize("rate", PAPERS)
def test_the_papers_matched_epochs(rate: str) -> None:
    """A file made at a stage rate has, as its share, the rate's third power in three digits: so come their numbers."""
    share = nominal_share(None, at_stage_rate(rate))
    assert share == Fraction(f"{float(rate) ** 3:.3f}")
    assert nearest_epochs(lambda count: float(count * share), 300.0) == PAPERS[rate]


def test_a_share_that_was_asked_for_is_taken_as_it_was() -> None:
    """0.7 of the patches is 0.7, though 138 of 196 are kept and the stage rate is a root of six digits."""
    header = make_header(**DEIT)
    assert share_of_stages(header) is None
    assert nominal_share(None, header) == Fraction(7, 10)
    assert nominal_share("0.25", header) == Fraction(1, 4)


def test_a_plan_matches_tokens_as_the_paper_does(shared: dict[str, Any], tmp_path: Path) -> None:
    """300 dense epochs, and the paper's shares: the paper's epochs; steps, images and tokens follow."""
    plan = planned(shared, tmp_path, {"epochs": 300}, match="tokens", keep="0.857,0.729,0.614,0.512,0.422")
    assert [run.cost.epochs for run in plan.runs] == [*PAPERS.values(), 300]
    assert [run.settings["epochs"] for run in plan.runs] == [*PAPERS.values(), 300]
    assert [run.cost.images for run in plan.runs] == [21 * count for count in (*PAPERS.values(), 300)]
    assert {run.settings["warmup_epochs"] for run in plan.runs} == {1}
    assert plan.may_differ == ("epochs", "keep")


def test_a_short_study_has_one_warm_up(shared: dict[str, Any], tmp_path: Path) -> None:
    """A recipe's warm-up that the reference's two epochs cut to one is one epoch of every arm, however long."""
    given = {name: value for name, value in shared.items() if name != "warmup_epochs"} | {"recipe": "deit"}
    plan = planned(given, tmp_path, {"epochs": 2}, match="tokens", keep="0.25")
    assert [(run.settings["epochs"], run.settings["warmup_epochs"]) for run in plan.runs] == [(8, 1), (2, 1)]


def arms_of(shared: dict[str, Any], train: dict[str, Any], **study: Any) -> tuple[CompareConfig, list[Arm]]:
    """Arms of a study, opened; they compute 100 operations a second, the dense one 150."""
    values = {"out": "study", "seeds": "0", "measure": 0, "arms": "random,dense"} | study
    config = checked(CompareConfig, values)
    given = shared | {"epochs": 40, "val_tickets": None} | train
    arms = opened(grid(config, given)[0], config, None, {ArmKey("dense"): 150.0})
    return config, [
        arm if arm.survey.flops_per_second else replace(arm, survey=replace(arm.survey, flops_per_second=100.0))
        for arm in arms
    ]


@pytest.fixture(scope="module")
def opened_arms(shared: dict[str, Any]) -> dict[str, list[Arm]]:
    """A random and a dense arm, with one share and with a schedule that ends on all patches."""
    schedules = {"one share": {}, "rising": {"keep_schedule": "0:0.25,30:1.0"}}
    return {name: arms_of(shared, schedule)[1] for name, schedule in schedules.items()}


@pytest.mark.parametrize("schedule", ["one share", "rising"])
@pytest.mark.parametrize("match", ["tokens", "flops", "hours"])
def test_arms_spend_alike_to_half_an_epoch(opened_arms: dict[str, list[Arm]], match: str, schedule: str) -> None:
    """What the sparse arm spends is within half of its last epoch of what the dense one spends; an epoch less or more
    is farther from it.
    """

    def spent(arm: Arm, epochs: int) -> float:
        work = arm.survey.work(epochs)
        return {"tokens": work.patches, "flops": work.flops, "hours": arm.survey.seconds(epochs, 0) or 0}[match]

    config = checked(CompareConfig, {"out": "study", "match": match, "arms": "random,dense"})
    sparse, dense = matched(opened_arms[schedule], config, {}, None)
    assert (dense.config.epochs, sparse.config.epochs) == (40, sparse.cell.values["epochs"])
    off = [abs(spent(sparse, sparse.config.epochs + more) - spent(dense, 40)) for more in (-1, 0, 1)]
    assert off[1] == min(off)
    assert off[1] <= (spent(sparse, sparse.config.epochs) - spent(sparse, sparse.config.epochs - 1)) / 2


def test_epochs_of_an_arms_own_stay(opened_arms: dict[str, list[Arm]]) -> None:
    """Whoever gives an arm its epochs does not want them matched."""
    values = {"out": "study", "match": "tokens", "arms": "random,dense", "arm": {"random": {"epochs": 9}}}
    arms = [arm.with_epochs(9, arm) if arm.key.arm == "random" else arm for arm in opened_arms["one share"]]
    assert [arm.config.epochs for arm in matched(arms, checked(CompareConfig, values), {}, None)] == [9, 40]


def test_hours_that_were_measured_stay(opened_arms: dict[str, list[Arm]]) -> None:
    """A grid that grows keeps the epochs of the arms it had, however fast the machine is now."""
    config = checked(CompareConfig, {"out": "study", "match": "hours", "arms": "random,dense"})
    sparse = opened_arms["one share"][0]
    known = PlannedRun("random", sparse.key, 0, {}, RunCost(77, 0, 0, 0, 0.0))
    arms = matched(opened_arms["one share"], config, {}, StudyPlan((known,)))
    assert [arm.config.epochs for arm in arms] == [77, 40]


def test_without_a_dense_arm_the_largest_keep_is_the_measure(shared: dict[str, Any]) -> None:
    """0.75 for 40 epochs is 0.25 for 120."""
    config, arms = arms_of(shared, {}, match="tokens", arms="random", keep="0.25,0.75")
    assert [arm.config.epochs for arm in matched(arms, config, {}, None)] == [120, 40]


def test_the_selectors_cost_is_charged_to_tickets(shared: dict[str, Any], tmp_path: Path) -> None:
    """Stage 1 is counted as its forward over every image, the training as its result has it; both come off the ticket
    arm's epochs, and off no other's; shared by runs, a part of it does.
    """
    blind = {"tickets": None, "val": None, "val_tickets": None, "epochs": 1, "warmup_epochs": 0}
    result = train(layered(shared | blind | {"arm": "dense", "out": str(tmp_path / "selector")}))
    info = SelectorInfo("vit_tiny_patch16_224", "", "model.safetensors", (0, 1))
    budget = Budget.from_keep("0.5", 16, 2)
    store = select_tickets(open_index(shared["data"]), tmp_path / "t.zarr", selector=info, budget=budget)
    with pytest.raises(InputError, match="--selector-run"):
        stage1_flops(store, None)
    vit = build(shared["model"], img_size=32, **shared["model_kwargs"])
    stage1 = 21 * Selector(vit, blocks=(0, 1), stage_keep=None, tokens=8).flops[0]
    study = {"arms": "ticket,random,dense", "match": "flops", "selector_run": str(tmp_path / "selector")}
    _, arms = arms_of(shared, {"tickets": str(store.path)}, **study)

    def with_cost(**cost: Any) -> tuple[list[float], list[int]]:
        config = checked(CompareConfig, {"out": "study", **study, **cost})
        charged = {arm.key: selector_cost(arm, config).charged for arm in arms}
        return list(charged.values()), [arm.config.epochs for arm in matched(arms, config, charged, None)]

    cost = stage1 + (result.train_flops or 0)
    free, whole = with_cost(), with_cost(selector_cost="charged")
    part = with_cost(selector_cost="amortised", selector_runs=10)
    assert [charged for charged, _ in (free, whole, part)] == [[0, 0, 0], [cost, 0, 0], [cost / 10, 0, 0]]
    fewer = cost / arms[0].survey.work(1).flops
    assert fewer > 1
    assert free[1][0] - whole[1][0] == pytest.approx(fewer, abs=1)
    assert free[1][0] - part[1][0] == pytest.approx(fewer / 10, abs=1)
    assert free[1][1:] == whole[1][1:] == part[1][1:]
    config, dense = checked(CompareConfig, {"out": "study", **study}), arms[2].survey.work(40).flops
    with pytest.raises(InputError, match=r"ticket, keep 0\.5, projected: .*amortised"):
        matched(arms, config, {arms[0].key: dense}, None)
    with pytest.raises(InputError, match=r"ticket, keep 0\.5, projected, matched with 1 epochs: 1 epochs of warm-up"):
        matched(arms, config, {arms[0].key: 0.999 * dense}, None)


def test_the_selectors_cost_is_charged_whichever_arm_comes_first(shared: dict[str, Any]) -> None:
    """Without a dense arm the one that pays for a selector is not the measure of the one that does not; where all that
    keep the most pay, the others may spend as much besides.
    """
    study = {"match": "flops", "keep": "0.75,0.25"}
    _, (large, small, *blind) = arms_of(shared, {}, arms="ticket,random", **study)
    cost = 10 * large.survey.work(1).flops
    charged = {large.key: cost, small.key: cost}
    config = checked(CompareConfig, {"out": "study", "arms": "ticket,random", **study})

    def in_order(*arms: Arm) -> dict[str, int]:
        return {str(arm.key): arm.config.epochs for arm in matched(arms, config, charged, None)}

    either = in_order(large, small, *blind)
    assert either == in_order(*blind, large, small)
    assert (either[str(large.key)], either[str(blind[0].key)]) == (30, 40)
    alone = in_order(large, blind[1])
    assert alone[str(large.key)] == 40
    assert alone[str(blind[1].key)] == round(50 * large.survey.work(1).flops / blind[1].survey.work(1).flops)


def test_a_control_has_the_epochs_of_its_tickets(shared: dict[str, Any]) -> None:
    """It is charged for the selector as they are, and has what was said of the ticket arm alone."""
    study = {"match": "flops", "arms": "ticket,dense", "control": "centre"}
    config, arms = arms_of(shared, {}, **study)
    charged = {arms[0].key: arms[1].survey.work(5).flops}
    ticket, dense, control = (arm.config.epochs for arm in matched(arms, config, charged, None))
    assert (control, dense) == (ticket, 40)
    assert ticket < matched(arms, config, {}, None)[0].config.epochs
    _, (ticket_arm, _, control_arm) = arms_of(shared, {}, **study, arm={"ticket": {"epochs": 7, "lr": 2e-3}})
    for arm in (ticket_arm, control_arm):
        assert (arm.config.epochs, arm.config.lr) == (7, 2e-3)


def test_counting_a_model_takes_no_memory_for_it(tmp_path: Path, shared: dict[str, Any]) -> None:
    """A ticket file may name any model: its cost is counted without its weights being made (1.2 GB here)."""
    selector = SelectorInfo("vit_large_patch16_224", "", "", (6, 12, 18))
    view, index = ViewSpec("whole", 224, 224), open_index(shared["data"])
    whole = {"view": view, "grid": Grid(14, 14), "patch_size": 16, "budget": Budget.from_keep("0.5", 196, 3)}
    store = select_tickets(index, tmp_path / "t.zarr", selector=selector, **whole)
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert stage1_flops(store, None) > 21 * 6e10
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 300 * 1024
