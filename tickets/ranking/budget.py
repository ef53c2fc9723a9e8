"""How many patches are kept, decided by whole numbers.

`keep` is the final share of the patches, `stage keep` the share each selection stage keeps; with s stages keep ≈
stage keep^s. Floats are read by their shortest decimal text, so 0.7 means seven tenths, and every count is found by
integer arithmetic. Rejected: `math.ceil(0.7 * 10)` style arithmetic, where 0.28 * 25 is 7.000000000000001 and keeps
8.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from dlth.tickets.ascii_digits import ascii_only
from dlth.tickets.errors import InputError, shown

Rate = str | float | Decimal | Fraction

_DIGITS = 1_000_000
"""Rates that have no short decimal form are written with six digits."""


def exact_rate(rate: Rate, name: str = "keep") -> Fraction:
    """The exact value of a rate in (0, 1]; raises InputError for anything else."""
    try:
        value = rate if isinstance(rate, Fraction) else Fraction(_decimal(rate))
    except (TypeError, ValueError, OverflowError, InvalidOperation) as error:
        raise InputError(f"{name} must be a decimal number such as 0.7, got {shown(repr(rate), 60)}") from error
    if not 0 < value <= 1:
        raise InputError(f"{name} must be above 0 and at most 1, got {shown(rate, 60)}")
    return value


def num_kept(keep: Rate, num_patches: int) -> int:
    """ceil(keep · num_patches), exactly."""
    return math.ceil(exact_rate(keep) * _counted(num_patches))


def share_left(stage_keep: Rate, stages: int) -> Fraction:
    """The share that so many stages leave, in three digits: the paper's scripts must have rounded it so, as 300 epochs
    over it are their matched 350, 412, 489, 586 and 711 for rates of 0.95 to 0.75.
    """
    return round(exact_rate(stage_keep) ** stages, 3)


@dataclass(frozen=True, slots=True)
class Budget:
    """The counts of one selection.

    `stage_tokens[i]` is the number of tokens that stage i keeps (a fused token may be among them); `k` patches are the
    ticket. `keep` and `stage_keep` are decimal text: exact where the user gave them, otherwise six digits (the share
    rounded to the nearest, the root rounded up).
    """

    num_patches: int
    stage_tokens: tuple[int, ...]
    k: int
    keep: str
    stage_keep: str

    @property
    def keeps_all(self) -> bool:
        """Whether no patch is dropped, so that nothing need be ranked."""
        return self.k == self.num_patches

    @classmethod
    def of(
        cls,
        num_patches: int,
        num_stages: int,
        fuse_tokens: bool = False,
        stage_keep: Rate | None = None,
        keep: Rate | None = None,
        tokens: int | None = None,
    ) -> "Budget":
        """By that of `stage_keep`, `keep` and `tokens` which is not None; raises InputError unless it is just one."""
        rates = {"stage_keep": stage_keep, "keep": keep, "tokens": tokens}
        given = [name for name, rate in rates.items() if rate is not None]
        if not given:
            raise InputError("give stage_keep, keep or tokens: one of them must say how many patches to keep")
        if len(given) > 1:
            raise InputError(f"give {' or '.join(given)}, not both")
        make: Callable[..., Budget] = getattr(cls, f"from_{given[0]}")
        return make(rates[given[0]], num_patches, num_stages, fuse_tokens)

    @classmethod
    def from_keep(cls, keep: Rate, num_patches: int, num_stages: int, fuse_tokens: bool = False) -> "Budget":
        """Each stage keeps the share keep^(1/num_stages) of what reaches it; the last keeps ceil(keep · num_patches).

        A stage that n tokens reach keeps the smallest m with (m/n)^num_stages >= keep, found without roots.
        """
        share = exact_rate(keep)
        last = math.ceil(share * _counted(num_patches))
        stages = _stages(num_stages)

        def kept(tokens: int, stage: int) -> int:
            return last if stage == stages - 1 else _root_share(share, tokens, stages)

        root = Fraction(_root_share(share, _DIGITS, stages), _DIGITS)
        return cls(
            num_patches, _run(num_patches, stages, fuse_tokens, kept), last, _text(share, keep), _decimal_text(root)
        )

    @classmethod
    def from_stage_keep(
        cls, stage_keep: Rate, num_patches: int, num_stages: int, fuse_tokens: bool = False
    ) -> "Budget":
        """Each stage keeps ceil(stage_keep · n) of the n tokens that reach it (the paper's and EViT's rule)."""
        share = exact_rate(stage_keep, "stage keep")
        tokens = _run(
            _counted(num_patches), _stages(num_stages), fuse_tokens, lambda tokens, _: math.ceil(share * tokens)
        )
        k = min(tokens[-1], num_patches)
        return cls(num_patches, tokens, k, _decimal_text(Fraction(k, num_patches)), _text(share, stage_keep))

    @classmethod
    def from_tokens(cls, k: int, num_patches: int, num_stages: int, fuse_tokens: bool = False) -> "Budget":
        """Exactly k patches; the stages share the cut as in `from_keep`."""
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= _counted(num_patches):
            raise InputError(f"tokens must be a whole number from 1 to {num_patches} (the patches), got {k!r}")
        return cls.from_keep(Fraction(k, num_patches), num_patches, num_stages, fuse_tokens)


def _decimal(rate: str | float | Decimal) -> Decimal:
    """The decimal number a user meant; floats by their shortest text. At most 30 digits after the point."""
    value = rate if isinstance(rate, Decimal) else Decimal(ascii_only(rate) if isinstance(rate, str) else repr(rate))
    exponent = value.as_tuple().exponent
    if isinstance(rate, bool) or not isinstance(exponent, int) or not -30 <= exponent <= 30:
        raise ValueError
    return value


def _run(num_patches: int, num_stages: int, fuse_tokens: bool, kept: Callable[[int, int], int]) -> tuple[int, ...]:
    """Tokens each stage keeps; with fusion a stage that drops something hands one token more to the next."""
    counts: list[int] = []
    tokens = num_patches
    for stage in range(num_stages):
        count = min(kept(tokens, stage), tokens)
        counts.append(count)
        tokens = count + (1 if fuse_tokens and count < tokens else 0)
    return tuple(counts)


def _root_share(share: Fraction, tokens: int, num_stages: int) -> int:
    """The smallest m with (m / tokens)^num_stages >= share, by bisection over whole numbers."""
    bound = share.numerator * tokens**num_stages
    low, high = 1, tokens
    while low < high:
        middle = (low + high) // 2
        if middle**num_stages * share.denominator >= bound:
            high = middle
        else:
            low = middle + 1
    return low


def _counted(num_patches: int) -> int:
    if isinstance(num_patches, bool) or not isinstance(num_patches, int) or num_patches < 1:
        raise InputError(f"the number of patches must be a whole number of at least 1, got {num_patches!r}")
    return num_patches


def _stages(num_stages: int) -> int:
    if isinstance(num_stages, bool) or not isinstance(num_stages, int) or not 1 <= num_stages <= 64:
        raise InputError(f"the number of selection stages must be from 1 to 64, got {num_stages!r}")
    return num_stages


def _text(share: Fraction, rate: Rate) -> str:
    """The rate as plain decimal text: exact unless it was given as a fraction without a short decimal form."""
    return _decimal_text(share) if isinstance(rate, Fraction) else f"{_decimal(rate).normalize():f}"


def _decimal_text(share: Fraction) -> str:
    """Six decimal digits, half up, trailing zeros cut; never '0'."""
    millionths = max(1, math.floor(share * _DIGITS + Fraction(1, 2)))
    return f"{(Decimal(millionths) / _DIGITS).normalize():f}"
