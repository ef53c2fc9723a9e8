"""Errors, seeds, the grid and the budget: the small exact parts that everything else stands on."""

import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlth.tickets import Budget, Grid, errors, generator, num_kept
from dlth.tickets.errors import DlthError, InputError, LimitError, shown
from dlth.tickets.seeding import derive

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DlthError)]


def test_codes_are_stable_and_unique() -> None:
    """Scripts match on these codes: changing one breaks them."""
    assert sorted(error.code for error in FAMILY) == [
        "E_DAMAGE",
        "E_DLTH",
        "E_INCOMPLETE",
        "E_INPUT",
        "E_LIMIT",
        "E_LOCK",
        "E_MISMATCH",
        "E_MISSING_FILE",
        "E_NO_TICKET",
        "E_SCHEMA",
        "E_SIGNATURE",
        "E_SPACE",
        "E_TRANSFER",
        "E_UNSAFE",
    ]


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_errors_survive_a_worker_process(kind: type[DlthError]) -> None:
    """A loader worker's error crosses a pipe: text, attributes and type stay."""
    error = pickle.loads(pickle.dumps(kind("plain text")))
    assert type(error) is kind
    assert str(error) == "plain text"
    damage = pickle.loads(pickle.dumps(errors.DamageError("text", shard="a.tar", file="patches/c.0.0.0")))
    assert (damage.shard, damage.file) == ("a.tar", "patches/c.0.0.0")


def test_errors_are_builtins_too() -> None:
    """Code that knows nothing of dlth catches them by the builtin they also are."""
    pairs = [
        (errors.InputError, ValueError),
        (errors.MissingFileError, FileNotFoundError),
        (errors.DamageError, ValueError),
        (errors.SchemaError, ValueError),
        (errors.MismatchError, ValueError),
        (errors.MissingTicketError, KeyError),
        (errors.SpaceError, OSError),
    ]
    assert all(issubclass(error, builtin) for error, builtin in pairs)


def test_text_from_outside_cannot_drive_a_terminal() -> None:
    """Escape, newline, right-to-left marks and lone surrogates are escaped, long text is cut."""
    assert shown("a\x1b[31m\n\u202eb\udc80") == "a\\x1b[31m\\n\\u202eb\\udc80"
    assert shown("Füße 東") == "Füße 東"
    assert shown("x" * 300) == "x" * 200 + "… (300 characters)"


def test_derived_ids_are_pinned() -> None:
    """If these change, every seeded choice of every earlier run changes with them."""
    assert derive("dlth", 1, b"\x00") == 4160568111005081834
    assert generator("dlth", 7).integers(0, 1000, 4).tolist() == [315, 288, 872, 973]


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary()), max_size=4))
def test_derived_ids_fit_63_bits_and_depend_on_every_part(parts: list[int | str | bytes]) -> None:
    """Ids are non-negative int64, and splitting, joining or retyping a part gives another one."""
    base = derive(*parts)
    assert 0 <= base < 2**63
    assert derive(*parts, "") != base
    assert derive(*parts, 1) != derive(*parts, "1") != derive(*parts, b"1")
    assert derive(*parts, "ab") != derive(*parts, "a", "b")


def test_seeds_take_no_other_types() -> None:
    """A float or a bool in a seed is a mistake that would differ between machines or versions."""
    assert derive(np.int64(3)) == derive(3)
    for part in (1.5, True, None):
        with pytest.raises(TypeError, match="a part of a seed is int, str or bytes"):
            derive(part)  # type: ignore[arg-type]


def test_grid_bounds() -> None:
    """A grid has at least one patch and no more than two bytes can number."""
    assert str(Grid(14, 15)) == "14x15"
    assert Grid(14, 15).num_patches == 210
    with pytest.raises(InputError, match="grid cols must be a whole number of at least 1, got 0"):
        Grid(3, 0)
    with pytest.raises(InputError, match=r"grid rows must be .* got 1.5"):
        Grid(1.5, 1)  # type: ignore[arg-type]
    with pytest.raises(LimitError, match="more than 65535 patches"):
        Grid(256, 256)


@pytest.mark.parametrize(
    ("stage_keep", "tokens"),
    [
        ("0.95", (187, 178, 170)),
        ("0.9", (177, 160, 144)),
        ("0.85", (167, 142, 121)),
        ("0.8", (157, 126, 101)),
        ("0.75", (147, 111, 84)),
        ("0.7", (138, 97, 68)),
        ("0.5", (98, 49, 25)),
    ],
)
def test_stage_keep_gives_the_papers_counts(stage_keep: str, tokens: tuple[int, ...]) -> None:
    """Patches of 196 after each stage, as METHOD.md lists them."""
    budget = Budget.from_stage_keep(stage_keep, 196, 3)
    assert (budget.stage_tokens, budget.k, budget.stage_keep) == (tokens, tokens[-1], stage_keep)


def test_keep_is_the_final_share() -> None:
    """--keep 0.7 keeps 138 of 196 patches, each stage its cube root, the last exactly k."""
    assert Budget.from_keep(0.7, 196, 3) == Budget(196, (175, 156, 138), 138, "0.7", "0.887905")
    assert Budget.from_keep("1", 196, 3) == Budget(196, (196, 196, 196), 196, "1", "1")
    assert Budget.from_keep("0.25", 64, 1) == Budget(64, (16,), 16, "0.25", "0.25")
    assert Budget.from_tokens(49, 196, 2) == Budget(196, (98, 49), 49, "0.25", "0.5")


def test_a_fused_token_counts_at_the_next_stage() -> None:
    """EViT's fused token is one token more for the next stage, and none where nothing was dropped."""
    assert Budget.from_stage_keep("0.7", 64, 3, fuse_tokens=True).stage_tokens == (45, 33, 24)
    assert Budget.from_stage_keep(1, 64, 3, fuse_tokens=True).stage_tokens == (64, 64, 64)
    assert Budget.from_keep("0.7", 64, 3, fuse_tokens=True).k == 45


def test_floats_mean_their_decimal_text() -> None:
    """0.28 of 25 is exactly 7; in binary floating point it would be 8."""
    assert (
        num_kept(0.28, 25)
        == num_kept("0.28", 25)
        == num_kept(Decimal("0.28"), 25)
        == num_kept(Fraction(7, 25), 25)
        == 7
    )
    assert num_kept(1, 9) == 9
    assert num_kept(1e-6, 9) == 1


@given(st.integers(1, 10_000), st.integers(1, 1_000), st.integers(1, 5), st.booleans())
def test_budgets_hold_their_promises(millis: int, patches: int, stages: int, fuse: bool) -> None:
    """k is the ceiling; every stage keeps the least count whose share to the power of the stages reaches keep."""
    keep = Fraction(millis, 10_000)
    budget = Budget.from_keep(keep, patches, stages, fuse)
    assert budget.k == budget.stage_tokens[-1] == -(-millis * patches // 10_000)
    reached = patches
    for count in budget.stage_tokens[:-1]:
        assert Fraction(count, reached) ** stages >= keep
        assert count == 1 or Fraction(count - 1, reached) ** stages < keep
        reached = count + (fuse and count < reached)
    assert budget.k <= reached


@pytest.mark.parametrize(
    "rate", ["0", "-0.5", "1.01", "nan", "inf", "70%", "", "1e-400", float("nan"), True, None, "0" * 99]
)
def test_rates_that_are_none(rate: object) -> None:
    """A rate is a decimal number above 0 and at most 1."""
    with pytest.raises(InputError, match="keep must be"):
        num_kept(rate, 196)  # type: ignore[arg-type]


def test_counts_that_are_none() -> None:
    """Stages and tokens are whole numbers within bounds, and the message says which."""
    with pytest.raises(InputError, match="selection stages must be from 1 to 64, got 0"):
        Budget.from_keep("0.7", 196, 0)
    with pytest.raises(InputError, match=r"tokens must be a whole number from 1 to 196 \(the patches\), got 197"):
        Budget.from_tokens(197, 196, 3)
    with pytest.raises(InputError, match="number of patches must be a whole number of at least 1, got 0"):
        num_kept("0.7", 0)
