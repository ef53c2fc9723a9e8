"""Verdicts on the paper's clauses: what is paired with what, how p-values are corrected, and what a verdict says."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.judging.arm_comparison import compare_arms
from dlth.pipeline.judging.power import MoreSeeds, more_seeds
from dlth.pipeline.judging.verdicts import PAPER, WEIGHTS, Clause, ClauseVerdict, holm, judge
from dlth.tickets.errors import InputError, MismatchError

KEEPS = ("0.9", "0.7", "0.5")
DENSE = ArmKey("dense")
AS_GOOD, TICKET_BETTER, DENSE_BETTER = PAPER


def runs(arms: Mapping[ArmKey, float], seeds: int = 5, images: int = 2_000, spread: float = 0.3) -> dict:
    """Runs of arms of these accuracies in percent, spread by so many points."""
    rng = np.random.default_rng(7)
    return {
        arm: {seed: rng.random(images) < (top1 + spread * rng.standard_normal()) / 100 for seed in range(seeds)}
        for arm, top1 in arms.items()
    }


def sparse(arm: str, top1: float, mode: str = "projected", variant: str = "") -> dict[ArmKey, float]:
    """An arm at three keeps."""
    return {ArmKey(arm, keep, mode, variant): top1 for keep in KEEPS}


def one(verdicts: tuple[ClauseVerdict, ...], clause: Clause, keep: str = "0.7") -> ClauseVerdict:
    """The only verdict of a clause at a keep."""
    (found,) = [each for each in verdicts if each.clause == clause and keep in (each.first.keep, each.second.keep)]
    return found


def test_every_clause_is_judged_at_every_keep() -> None:
    """Three clauses and a control at three keeps: each pair once, in the order of the clauses, most kept first."""
    arms = {DENSE: 80.0} | sparse("random", 60.0) | sparse("control-centre", 60.0) | sparse("ticket", 80.0)
    verdicts = judge(runs(arms), margin=4.0)
    control = Clause("ticket", "better than", "control-centre")
    assert [(each.clause, each.first.keep or each.second.keep) for each in verdicts] == [
        *itertools.product((*PAPER, control), KEEPS)
    ]
    for each in verdicts:
        assert (each.first.arm, each.second.arm) == (each.clause.first, each.clause.second)
        assert (each.outcome, each.more_seeds, each.num_keeps, each.seeds) == ("holds", None, 3, (0, 1, 2, 3, 4))
    assert one(verdicts, AS_GOOD).text.startswith(
        "ticket as good as dense within 4 points, keep 0.7, projected: holds. 80."
    )


def test_what_is_not_so_fails() -> None:
    """Tickets far worse than dense and than random ones, and dense worse than random: each clause fails."""
    verdicts = judge(runs({DENSE: 70.0} | sparse("random", 80.0) | sparse("ticket", 60.0)), margin=1.0)
    assert {each.outcome for each in verdicts} == {"fails"}
    higher = judge(runs({DENSE: 60.0} | sparse("ticket", 80.0)), margin=1.0)
    assert {each.outcome for each in higher} == {"fails"}
    assert "Ticket is better by more than the margin." in higher[0].text


def test_each_arm_is_held_against_its_own() -> None:
    """Modes and variants are not mixed; random patches of mode projected stand in where a mode has none of its own."""
    fast, slow = "lr=0.01", "lr=0.001"
    arms = {ArmKey("dense", variant=fast): 80.0, ArmKey("dense", variant=slow): 70.0}
    for variant in (fast, slow):
        arms |= sparse("ticket", 80.0, "online", variant) | sparse("random", 60.0, "projected", variant)
    verdicts = judge(runs(arms | sparse("ticket", 80.0, "frozen")), margin=4.0)
    for each in verdicts:
        assert each.first.variant == each.second.variant != ""
        assert {each.first.mode, each.second.mode} <= {"online", "projected", ""}
    assert len(verdicts) == 2 * 3 * 3
    outcomes = {each.first.variant: each.outcome for each in verdicts if each.clause == AS_GOOD}
    assert outcomes == {fast: "holds", slow: "fails"}
    stand_in = next(each for each in verdicts if each.clause == TICKET_BETTER)
    assert f"keep 0.9, online, {slow} (against random, keep 0.9, projected, {slow}): holds" in stand_in.text
    both = sparse("random", 60.0, "frozen") | sparse("random", 60.0, "projected") | sparse("ticket", 80.0, "frozen")
    assert {each.second.mode for each in judge(runs(both), margin=4.0)} == {"frozen"}


def test_a_variant_of_a_variant_is_held_against_what_it_lacks() -> None:
    """Random patches at matched epochs, students that see zeros, and another's tickets are judged by the arms of the
    variant they are of, at their own keep; no other variant's arm stands in.
    """
    arms = (
        {replace(DENSE, variant="m"): 80.0} | sparse("ticket", 80.0, variant="m") | sparse("random", 60.0, variant="m")
    )
    arms |= {ArmKey("random", "0.7", "projected", "m/matched"): 70.0}
    arms |= {ArmKey("ticket", "0.7", "projected", "m/zero"): 80.0, ArmKey("ticket", "0.7", "projected", "n"): 80.0}
    verdicts = [each for each in judge(runs(arms), 4.0) if not each.first.variant == each.second.variant == "m"]
    assert [(str(each.clause), each.first.variant, each.second.variant) for each in verdicts] == [
        ("ticket as good as dense", "m/zero", "m"),
        ("ticket better than random", "m", "m/matched"),
        ("ticket better than random", "m/zero", "m"),
        ("dense better than random", "m", "m/matched"),
    ]
    assert verdicts[1].text.startswith(
        "ticket better than random, keep 0.7, projected, m (against random, keep 0.7, projected, m/matched): holds."
    )


@pytest.mark.parametrize(("seeds", "missing"), [(1, "2 more seeds are"), (2, "1 more seed is")])
def test_nothing_is_decided_below_three_seeds(seeds: int, missing: str) -> None:
    """Arms 20 points apart stay undecided with one seed and with two, and it says how many more are needed."""
    verdicts = judge(runs({DENSE: 80.0} | sparse("random", 60.0), seeds), margin=1.0)
    for each in verdicts:
        assert (each.outcome, each.p_value, each.p_holm) == ("not decided", None, None)
        assert each.more_seeds == MoreSeeds("at least", 3 - seeds)
        assert each.text.endswith(
            f"2,000 images, about these very models. Arms are not judged below 3 seeds: at least {missing} needed."
        )


def test_seeds_that_one_arm_lacks_are_left_out() -> None:
    """Runs are paired by their seed, in whichever order they came; arms that share no seed are not compared."""
    whole = runs({DENSE: 80.0, ArmKey("random", "0.7"): 70.0}, seeds=6)
    dense, random = (list(each.items()) for each in whole.values())
    verdict = one(judge({DENSE: dict(dense[:5]), ArmKey("random", "0.7"): dict(random[:0:-1])}, 1.0), DENSE_BETTER)
    assert verdict.seeds == (1, 2, 3, 4)
    first, second = (np.stack([each[seed] for seed in verdict.seeds]) for each in whole.values())
    assert verdict.comparison == compare_arms(first, second)
    assert verdict.top1 == pytest.approx((100 * first.mean(), 100 * second.mean()))
    apart = one(judge({DENSE: dict(dense[:3]), ArmKey("random", "0.7"): dict(random[3:])}, 1.0), DENSE_BETTER)
    assert (apart.outcome, apart.comparison, apart.more_seeds) == ("not decided", None, MoreSeeds("at least", 3))
    assert "No seed was run with both arms." in apart.text


def pruned(arm: ArmKey, top1: Mapping[str, float], shares: tuple[str, ...] = ("0.8", "0.64", "0.512")) -> dict:
    """An arm pruned in these ways, at each share of its weights."""
    return {replace(arm, pruned=way, weights=share): of for share in shares for way, of in top1.items()}


def test_lt_is_held_against_each_other_way_to_prune_at_every_share() -> None:
    """Planted: as good as unpruned, better than random masks and one-shot, worse than rr. Each clause is judged at each
    share, most weights first, corrected over them; where an arm is missing there is no verdict.
    """
    ways = {"lt": 80.0, "rr": 90.0, "random-mask": 70.0, "one-shot": 60.0}
    hits = runs({DENSE: 80.0} | pruned(DENSE, ways))
    verdicts = judge(hits, margin=3.0)
    outcomes = dict(zip(WEIGHTS, ("fails", "fails", "holds", "holds", "holds"), strict=True))
    assert [(each.clause, each.first.weights) for each in verdicts] == [
        *itertools.product(WEIGHTS, ("0.8", "0.64", "0.512"))
    ]
    for each in verdicts:
        assert (each.outcome, each.num_keeps) == (outcomes[each.clause], 3)
        assert each.second.pruned in (*ways, "")
        assert each.second.weights == (each.first.weights if each.second.pruned else "")
    assert verdicts[-1].text.startswith("lt better than one-shot at 0.512 of the weights: holds. 80.")
    assert "corrected over 3 shares p < 0.001" in verdicts[-1].text
    assert verdicts[8].text.startswith(
        "lt as good as the unpruned model within 3 points at 0.512 of the weights: holds. "
    )
    without = {key: of for key, of in hits.items() if key.pruned in ("lt", "rr")}
    assert {each.clause for each in judge(without, 3.0)} == set(WEIGHTS[:2])


def test_nothing_is_found_where_ways_to_prune_are_alike() -> None:
    """Five equal arms at ten shares: no verdict says that one is better or worse, though ten shares are looked at."""
    shares = tuple(f"{0.8**level:.4g}" for level in range(1, 11))
    ways = dict.fromkeys(("lt", "rr", "random-mask", "one-shot"), 80.0)
    verdicts = judge(runs({DENSE: 80.0} | pruned(DENSE, ways, shares), seeds=4), margin=1.0)
    better = [each for each in verdicts if each.clause.claim == "better than"]
    assert [each.first.weights for each in better] == [*shares] * 3
    assert {each.outcome for each in better} == {"not decided"}
    assert {each.num_keeps for each in verdicts} == {10}


def test_draws_of_a_seed_are_judged_by_their_mean() -> None:
    """Three draws of rr in each seed: their mean is held against lt, the verdict says how many; seeds need as many."""
    lt, rr = pruned(DENSE, {"lt": 80.0, "rr": 70.0}, ("0.512",))
    draws = [runs({rr: 66.0 + 4 * draw})[rr] for draw in range(3)]
    hits = runs({lt: 80.0}) | {rr: {seed: np.stack([of[seed] for of in draws]) for seed in range(5)}}
    (verdict,) = [each for each in judge(hits, 1.0) if each.clause == WEIGHTS[0]]
    assert verdict.top1 == pytest.approx((80, 70), abs=1)
    assert verdict.outcome == "holds"
    assert "5 seeds, 1 against 3 draws of each, 2,000 images" in verdict.text
    hits[rr][0] = hits[rr][0][:2]
    with pytest.raises(MismatchError, match="some seeds have more draws than others"):
        judge(hits, 1.0)


def test_patches_are_judged_at_equal_weights_and_weights_at_equal_patches() -> None:
    """Both lotteries at once: tickets are held against dense and random of the same weights, lt against rr of the
    same patches; unpruned arms are judged with unpruned ones as ever.
    """
    ticket, random = ArmKey("ticket", "0.7", "projected"), ArmKey("random", "0.7", "projected")
    unpruned = {DENSE: 80.0, ticket: 80.0, random: 60.0}
    ways = {"lt": 78.0, "rr": 60.0}
    hits = runs(unpruned | {key: of for arm in unpruned for key, of in pruned(arm, ways, ("0.8", "0.64")).items()})
    verdicts = judge(hits, margin=4.0)
    alone = judge({arm: hits[arm] for arm in unpruned}, margin=4.0)
    assert [each for each in verdicts if each.clause in PAPER and not each.first.pruned] == [*alone]
    for each in verdicts:
        if each.clause in PAPER:
            assert (each.first.pruned, each.first.weights) == (each.second.pruned, each.second.weights)
            assert each.num_keeps == 1
        else:
            assert each.first.unpruned == each.second.unpruned
            assert each.num_keeps == 2
    assert [each.first.weights for each in verdicts if each.clause == TICKET_BETTER] == [
        "",
        "0.8",
        "0.8",
        "0.64",
        "0.64",
    ]
    texts = [each.text.partition(":")[0] for each in verdicts]
    assert "ticket better than random, keep 0.7, projected, lt 0.64 of weights" in texts
    assert "lt better than rr, ticket, keep 0.7, projected, at 0.64 of the weights" in texts


def test_one_keep_alone_is_judged_as_its_comparison() -> None:
    """Nothing is corrected for one keep: outcome and p are those of `compare_arms`, on both sides of every border."""
    seen = set()
    rng = np.random.default_rng(2)
    for _ in range(60):
        arms = {DENSE: 80.0, ArmKey("ticket", "0.7"): 80 + 4 * rng.standard_normal()}
        hits = {arm: {seed: rng.random(900) < top1 / 100 for seed in range(4)} for arm, top1 in arms.items()}
        hits |= {ArmKey("random", "0.7"): hits[ArmKey("ticket", "0.7")]}
        as_good, dense_better = one(verdicts := judge(hits, 2.0), AS_GOOD), one(verdicts, DENSE_BETTER)
        assert as_good.comparison is not None
        assert dense_better.comparison is not None
        assert as_good.outcome == as_good.comparison.as_good
        assert dense_better.outcome == dense_better.comparison.better
        assert dense_better.p_value == dense_better.p_holm == dense_better.comparison.p_value
        seen |= {(each.clause, each.outcome) for each in (as_good, dense_better)}
    assert len(seen) == 6


def test_holm_corrects_as_by_hand() -> None:
    """Smallest times n, next times n - 1, none below one before it, none above 1; the order of the keeps stays."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_more_keeps_ask_for_more() -> None:
    """A difference that one keep would decide is not decided beside two that show nothing; too few seeds count, too."""
    arms = {DENSE: 80.0} | sparse("random", 80.0)
    hits = runs(arms)
    lone = {key: value for key, value in hits.items() if key.keep in ("", "0.7")}
    # images that dense alone got right, until a single keep is just decided
    for worse in range(10, 400, 5):
        harmed = {
            seed: run & (np.arange(2_000) >= worse) for seed, run in lone[ArmKey("random", "0.7", "projected")].items()
        }
        verdict = one(judge(lone | {ArmKey("random", "0.7", "projected"): harmed}, 1.0), DENSE_BETTER)
        if verdict.outcome == "holds":
            break
    assert verdict.outcome == "holds"
    assert verdict.p_value is not None
    assert verdict.p_value > 0.05 / 3
    beside = one(judge(hits | {ArmKey("random", "0.7", "projected"): harmed}, 1.0), DENSE_BETTER)
    assert (beside.outcome, beside.p_value) == ("not decided", verdict.p_value)
    assert beside.p_holm == pytest.approx(3 * verdict.p_value)
    assert f"corrected over 3 keeps p = {beside.p_holm:.2g}" in beside.text
    few = {key: (dict(list(value.items())[:1]) if key.keep in ("0.5", "0.9") else value) for key, value in hits.items()}
    assert one(judge(few | {ArmKey("random", "0.7", "projected"): harmed}, 1.0), DENSE_BETTER).p_holm == beside.p_holm


def test_seeds_are_asked_for_at_the_level_that_holms_next_step_leaves() -> None:
    """Of three keeps one is decided: the other two need as many seeds as decide at half of 5 %."""
    arms = {DENSE: 80.0, ArmKey("random", "0.9"): 60.0, ArmKey("random", "0.7"): 78.0, ArmKey("random", "0.5"): 77.0}
    decided, *others = judge(runs(arms, spread=1.0), 1.0)
    assert (decided.outcome, decided.more_seeds) == ("holds", None)
    for each in others:
        assert each.outcome == "not decided"
        assert each.comparison is not None
        assert each.more_seeds == more_seeds(each.comparison, 0.05 / 2) != more_seeds(each.comparison, 0.05)


def test_what_cannot_be_judged_is_refused() -> None:
    """Other numbers of images, and what is not right or wrong; a study without arms to compare has no verdicts."""
    hits = runs({DENSE: 80.0, ArmKey("random", "0.7"): 70.0})
    with pytest.raises(MismatchError, match="different numbers of images"):
        judge(hits | {DENSE: {0: np.ones(3, bool)}}, 1.0)
    with pytest.raises(InputError, match="bool"):
        judge({arm: {seed: run.astype(float) for seed, run in each.items()} for arm, each in hits.items()}, 1.0)
    with pytest.raises(InputError, match="margin 0"):
        judge({DENSE: hits[DENSE], ArmKey("ticket", "0.7"): hits[DENSE]}, 0)
    assert judge({DENSE: hits[DENSE]}, 1.0) == judge({}, 1.0) == ()
