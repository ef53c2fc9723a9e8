"""The arms of a grid, opened and checked: what can be wrong with a run of a study is found here, all at once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dlth.data.sharing.ticket_cache import local_tickets
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.studies.grid import Cell
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets import TicketStore
from dlth.tickets.errors import DlthError, InputError
from dlth.tickets.format.jsontext import canonical
from dlth.training.runs.survey import Survey, survey
from dlth.training.settings.layering import layered
from dlth.training.settings.train_config import TrainConfig

Counting = Callable[[str, int, str], AbstractContextManager[Any]]
"""``counting(label, total, unit)`` gives what shows progress, with a method `advance(count)`."""


@dataclass(frozen=True)
class Arm:
    """An arm of the grid, opened and checked: its settings, of its first seed, and what a run of it takes."""

    cell: Cell
    config: TrainConfig
    survey: Survey

    @property
    def key(self) -> ArmKey:
        """Its key, with the keep that its ticket file says where no other was asked for."""
        key = self.cell.key
        return key if key.arm == "dense" else replace(key, keep=self.survey.record["keep"])

    @property
    def trained_as(self) -> ArmKey:
        """The arm that it is to be trained alike: the ticket arm for a control, else itself."""
        return replace(self.key, arm="ticket") if self.cell.control else self.key

    @cached_property
    def tickets(self) -> TicketStore | None:
        """The training tickets of its settings; a control's are those that it is made of."""
        return TicketStore(local_tickets(self.config.tickets)) if self.config.tickets is not None else None

    def with_epochs(self, epochs: int, like: "Arm") -> "Arm":
        """The same arm trained for so many epochs, with the warm-up that `like` has unless a user gave it one.

        A keep schedule stays as the survey counted it, unless it would not end within fewer epochs.
        """
        settled = {"warmup_epochs": like.config.warmup_epochs}
        if epochs >= self.config.epochs:
            settled |= {name: getattr(self.config, name) for name in ("keep_schedule_start", "keep_schedule_epochs")}
        cell = replace(self.cell, values={**settled, **self.cell.values, "epochs": epochs})
        return replace(self, cell=cell, config=run_config(cell, self.config.seed, self.config.out))


def run_config(cell: Cell, seed: int, out: str) -> TrainConfig:
    """The settings of a run of an arm. Raises InputError for settings that contradict each other."""
    return layered({**cell.values, "seed": seed, "out": out})


def opened(
    cells: Sequence[Cell], config: CompareConfig, counting: Counting | None, rates: Mapping[ArmKey, float]
) -> tuple[Arm, ...]:
    """Open and check every arm, and measure some of its steps; a control is checked on the tickets it is made of.

    Args:
        cells: of the grid
        config: of the study
        counting: shows progress
        rates: operations per second of arms that need not be measured
    Raises:
        InputError: what is wrong with each arm that cannot be
    """
    arms: list[Arm] = []
    surveys: dict[bytes, Survey] = {}
    problems: dict[str, list[Cell]] = {}
    with counting("check arms", len(cells), "arms") if counting is not None else nullcontext() as counter:
        for cell in cells:
            try:
                settings = run_config(cell, config.seeds[0], config.out)
                alike = canonical(settings.model_dump(mode="json"))  # a control takes what the ticket arm takes
                if alike not in surveys:
                    surveys[alike] = _surveyed(settings, config, rates.get(cell.key))
                if settings.val is None:
                    raise InputError("it could never be judged without validation images: give --val")
                arms.append(Arm(cell, settings, surveys[alike]))
            except DlthError as error:
                problems.setdefault(str(error), []).append(cell)
            if counter is not None:
                counter.advance(1)
    if problems:
        raise InputError("\n".join(_told(text, failed, len(cells)) for text, failed in problems.items()))
    return tuple(arms)


def _surveyed(settings: TrainConfig, config: CompareConfig, rate: float | None) -> Survey:
    found = survey(settings, processes=config.gpus, seconds=config.measure if rate is None else 0.0)
    return found if rate is None else replace(found, flops_per_second=rate)


def _told(problem: str, cells: Sequence[Cell], of: int) -> str:
    whose = "every arm" if len(cells) == of else "; ".join(str(cell.key) for cell in cells)
    return f"{whose}: {problem}"
