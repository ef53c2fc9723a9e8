"""The settings of `dlth compare`: which arms, how often, matched by what. Those of each run are of `dlth train`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dlth.pipeline.evidence.arm_key import CONTROL
from dlth.tickets.derive.controls import KINDS, Kind
from dlth.tickets.ranking.budget import exact_rate
from dlth.training.settings.fields import Integers, Keep, Pairs, Settings, comma_list, setting
from dlth.training.settings.layering import nearest
from dlth.training.settings.train_config import Arm, Mode, TrainConfig

GRID, MATCH, STUDY = "What is compared", "Matching and judging", "How the study runs"
OWN = ("arm", "mode", "keep", "seed", "out", "resume")
"""Settings of train that a study gives each of its runs itself."""


Arms = Annotated[tuple[Arm, ...], BeforeValidator(comma_list), Field(min_length=1)]
Keeps = Annotated[tuple[Keep, ...], BeforeValidator(comma_list)]
Modes = Annotated[tuple[Mode, ...], BeforeValidator(comma_list), Field(min_length=1)]
Kinds = Annotated[tuple[Kind, ...], BeforeValidator(comma_list)]


class CompareConfig(Settings):
    """Settings of `dlth compare`; field names are the flags' names."""

    out: str = setting(..., STUDY, "Folder of the study: its plan, control tickets, runs and report.", path="file")
    arms: Arms = setting(("ticket", "random", "dense"), GRID, "Arms, with commas between.")
    keep: Keeps = setting((), GRID, "Shares of the patches to keep, e.g. 0.9,0.7; the ticket file's own if absent.")
    mode: Modes = setting(("projected",), GRID, "How rankings meet augmented images: projected, frozen, online.")
    seeds: Integers = setting((0, 1, 2), GRID, "Seeds; fewer than three give no verdict.")
    control: Kinds = setting((), GRID, f"Controls of the tickets, trained as the ticket arm is: {', '.join(KINDS)}.")
    sweep: Pairs = setting({}, GRID, "Settings of train to try several values of, e.g. lr=[1e-3,5e-4],mixup=[0,0.8].")
    arm: dict[str, dict[str, Any]] = setting(
        {}, GRID, "Settings of train for one arm alone: tables [compare.arm.random] of a file."
    )
    match: Literal["epochs", "tokens", "flops", "hours"] = setting(
        "epochs",
        MATCH,
        "What arms spend alike: epochs; or tokens, operations or hours, then arms that drop get more epochs.",
    )
    margin: float = setting(1.0, MATCH, "Points within which two arms count as equally good.", gt=0, le=100)
    selector_cost: Literal["none", "charged", "amortised"] = setting(
        "none",
        MATCH,
        "What the tickets cost (stage 1, and --selector-run's training): left out, charged to each ticket run, or its"
        " share of --selector-runs.",
    )
    selector_runs: int = setting(1, MATCH, "Amortised: runs that will use these tickets.", gt=0)
    selector_run: str | None = setting(
        None, MATCH, "Folder of the run that trained the selector, whose operations count too.", path="file"
    )
    gpus: int = setting(1, STUDY, "Processes that train one run together, each on its own GPU.", gt=0, free=True)
    measure: float = setting(
        5.0, STUDY, "Seconds for which steps of each arm are measured, to estimate hours; 0: not.", ge=0, free=True
    )

    @model_validator(mode="after")
    def _names_settings_of_train(self) -> Self:
        for name, values in self.sweep.items():
            _check_name(name, "--sweep")
            if not isinstance(values, list) or not values or _repeats(values):
                raise ValueError(f"--sweep {name} needs different values in brackets, as in {name}=[1,2]")
        known = (*self.arms, *(CONTROL + kind for kind in self.control))
        for arm, values in self.arm.items():
            if arm not in known:
                raise ValueError(f"[compare.arm.{arm}]: the study has {', '.join(known)}{nearest(arm, known)}")
            for name in values:
                _check_name(name, f"[compare.arm.{arm}]")
        for what in ("arms", "keep", "mode", "seeds", "control"):
            given = getattr(self, what)
            if len({exact_rate(each) if what == "keep" else each for each in given}) < len(given):
                raise ValueError(f"--{what} names something twice: {','.join(map(str, given))}")
        if self.match == "hours" and not self.measure:
            raise ValueError("--match hours needs measured steps: give --measure some seconds")
        if self.control and "ticket" not in self.arms:
            raise ValueError("controls are compared with the ticket arm: add ticket to --arms")
        return self


def _repeats(values: list[Any]) -> bool:
    """Whether two values, which may be lists, are equal, as 1 and 1.0 are."""
    return any(value in values[:place] for place, value in enumerate(values))


def _check_name(name: str, where: str) -> None:
    """Raises ValueError for what is no setting of train, or one that the study gives by itself."""
    if name in OWN:
        raise ValueError(f"{where}: {name} is the study's own to give (--arms, --keep, --mode, --seeds, --out)")
    if name not in TrainConfig.names():
        raise ValueError(f"{where}: dlth train has no setting {name!r}{nearest(name, TrainConfig.names())}")
