"""Which runs a study of levels has, as plain values; where they are rewound to; which settings cannot be."""

from itertools import product
from typing import Any

import pytest

from dlth.pipeline.evidence.arm_key import LT, ONE_SHOT, PRUNED, RANDOM_MASK, RR, share_remaining
from dlth.pipeline.pruning.levels import Level, added, levels
from dlth.pipeline.pruning.prune_config import PruneConfig, rewind_step
from dlth.tickets.errors import InputError
from dlth.training.settings.layering import checked

ALL = (*PRUNED, "dense")
SUBSETS = [tuple(arm for arm, chosen in zip(ALL, bits, strict=True) if chosen) for bits in product((0, 1), repeat=5)]


def config(**settings: Any) -> PruneConfig:
    return checked(PruneConfig, {"out": "study", **settings})


def test_the_levels_of_all_arms_in_order() -> None:
    """Level by level, lt first, each drawing by its number; one-shot pruning begins with the second round."""
    first = [Level(), Level(LT, 1), *(Level(arm, 1, draw) for arm in (RR, RANDOM_MASK) for draw in (0, 1))]
    second = [Level(LT, 2), *(Level(arm, 2, draw) for arm in (RR, RANDOM_MASK) for draw in (0, 1)), Level(ONE_SHOT, 2)]
    assert levels(ALL, rounds=2, draws=2) == (*first, *second)


@pytest.mark.parametrize("arms", SUBSETS[1:], ids="+".join)
def test_every_level_stands_behind_what_it_is_made_of(arms: tuple[str, ...]) -> None:
    """For any arms: a run's parent is there and before it, so many rounds earlier as it has; the unpruned run always
    is, every arm asked for has all of its levels, and more rounds, drawings or arms take nothing away.
    """
    found = levels(arms, rounds=3, draws=2)
    assert found[0] == Level()
    for place, level in enumerate(found[1:], 1):
        assert level.of in found[:place]
        assert level.of.level + level.rounds == level.level
    for arm in set(arms) & {LT, RR, RANDOM_MASK}:
        assert {level.level for level in found if level.arm == arm} == {1, 2, 3}
    assert {level.level for level in found if level.arm == ONE_SHOT} == ({2, 3} if ONE_SHOT in arms else set())
    for more in (levels(arms, 4, 2), levels(arms, 3, 3), levels(ALL, 3, 2)):
        assert set(found) <= set(more)


def test_what_each_level_is_made_of() -> None:
    """lt of the level before, rr and random-mask of the same run, one-shot of the unpruned run; rr alone is fresh."""
    assert [Level(arm, 1).of for arm in PRUNED] == [Level()] * 4
    assert [Level(arm, 3, 1).of for arm in PRUNED] == [Level(LT, 2)] * 3 + [Level()]
    assert [Level(arm, 3).rounds for arm in PRUNED] == [1, 1, 1, 3]
    assert [Level(arm, 3).is_rewound for arm in PRUNED] == [True, False, True, True]
    assert not Level().is_rewound


@pytest.mark.parametrize(
    ("arms", "told"),
    [
        ((LT, "dense"), []),
        ((RR, RANDOM_MASK, "dense"), ["rr and random-mask take the masks that its levels make"]),
        ((ONE_SHOT, "dense"), ["lt's first level is trained too"]),
        ((LT, ONE_SHOT, "dense"), ["begins with two rounds"]),
        ((LT,), ["every level is made of it"]),
        ((RANDOM_MASK,), ["lt is trained too: random-mask take", "the unpruned run is trained too"]),
    ],
    ids=str,
)
def test_what_is_trained_besides_is_told(arms: tuple[str, ...], told: list[str]) -> None:
    """One sentence for each thing that was not asked for, and for the level that one-shot pruning has not."""
    assert [text in note for text, note in zip(told, added(arms), strict=True)] == [True] * len(told)


def test_the_arms_that_are_told_of_are_those_that_are_there() -> None:
    """lt has levels wherever it is asked for or told of, and nowhere else: only its first beside one-shot alone."""
    for arms in SUBSETS[1:]:
        lt = {level.level for level in levels(arms, 3, 1) if level.arm == LT}
        says = " ".join(added(arms))
        assert (lt == {1, 2, 3}) == (LT in arms or "lt is trained too" in says)
        assert (lt == {1}) == ("lt's first level is trained too" in says)


def test_the_share_of_a_level_is_exact_to_four_digits() -> None:
    """Powers of the exact fraction, rounded once, without an exponent."""
    assert [share_remaining("0.2", level) for level in (0, 1, 2, 3, 4, 20)] == [
        *("1", "0.8", "0.64", "0.512", "0.4096", "0.01153")
    ]
    assert share_remaining("0.5", 30) == "0.0000000009313"
    assert share_remaining("0.0001", 1) == "0.9999"


@pytest.mark.parametrize(
    ("text", "step"), [("0", 0), ("7", 7), ("19", 19), ("1ep", 10), ("0.5ep", 5), ("1.9ep", 19), ("0ep", 0)]
)
def test_a_rewinding_point_is_a_step(text: str, step: int) -> None:
    """Of two epochs of ten steps: a step by its number, or whole and broken epochs that end with a step."""
    assert rewind_step(config(rewind=text).rewind, steps_per_epoch=10, epochs=2) == step


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.25ep", r"--rewind 0\.25ep is step 2\.5, and an epoch has 10 steps: give --rewind 2 "),
        ("20", r"--rewind 20 is step 20 of the 20 of a run \(2 epochs of 10\): nothing would be left"),
        ("2ep", r"--rewind 2ep is step 20 of the 20"),
        ("999999999999999", r"is step 999999999999999 of the 20"),
    ],
)
def test_a_rewinding_point_that_is_none_is_refused(text: str, said: str) -> None:
    """Between two steps, or where nothing is left to train: told with the numbers that it was held against."""
    with pytest.raises(InputError, match=said):
        rewind_step(config(rewind=text).rewind, steps_per_epoch=10, epochs=2)


def test_settings_may_come_as_text_or_values() -> None:
    """A command line's text, and what a file of settings holds, are the same."""
    as_text = config(arm="lt, random-mask", seeds="3,4", exclude="*.attn.*, head*", rewind="7", rate="0.2")
    values = config(arm=[LT, RANDOM_MASK], seeds=[3, 4], exclude=["*.attn.*", "head*"], rewind=7, rate=0.2)
    assert as_text == values
    assert (values.arm, values.seeds, values.rewind, values.rate) == ((LT, RANDOM_MASK), (3, 4), "7", "0.2")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arm": "rnd-mask"}, r"no arm 'rnd-mask' \(did you mean 'random-mask'"),
        ({"arm": "one_shot"}, r"no arm 'one_shot' \(did you mean 'one-shot'"),
        ({"arm": ""}, "--arm"),
        ({"arm": "lt,lt"}, "--arm names something twice: lt,lt"),
        ({"seeds": "0,1,0"}, "--seeds names something twice: 0,1,0"),
        ({"exclude": "a,a"}, "--exclude names something twice: a,a"),
        ({"rewind": "two"}, "expected a step, or epochs as in 2ep, got two"),
        ({"rewind": "-1"}, "expected a step, or epochs"),
        ({"rewind": "1.5"}, "expected a step, or epochs"),
        ({"rewind": True}, "--rewind"),
        ({"rate": "1"}, "masks every weight in the first round"),
        ({"rate": "1.0"}, "masks every weight in the first round"),
        ({"rate": "0"}, "--rate"),
        ({"rate": "a fifth"}, "--rate"),
        ({"rounds": 0}, "--rounds"),
        ({"draws": 101}, "--draws"),
        ({"scope": "local"}, "--scope"),
        ({"round": 3}, r"'round' \(did you mean 'rounds'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    """Each says which flag it is about, and the nearest word that there is."""
    with pytest.raises(InputError, match=said):
        config(**settings)
