"""What a row needs beside its images, and dlth can make: a selector's weights, and the tickets that they rank.

Each has one place in the folder and is made once. A selector is the run of a row of its own, for some rows a student
that was trained before; tickets are made at the row's rate by the selector of that rate, as the authors had one for
each, in form `full`. Whole images are seen for training, and for validation the row's own evaluation crop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlth.data.shards.index import open_index
from dlth.data.sharing.ticket_cache import local_tickets
from dlth.pipeline.evidence.study_plan import STUDY as PLAN
from dlth.pipeline.evidence.study_plan import read_study
from dlth.pipeline.reproduction.bundle import BundleOf, file_digest
from dlth.pipeline.reproduction.experiment import WHOLE, Experiment
from dlth.pipeline.reproduction.reproduce_config import ReproduceConfig
from dlth.pipeline.reproduction.row_settings import ranked_unlike, row_settings
from dlth.pipeline.reproduction.scaling import first_shards, step_settings
from dlth.pipeline.selection.config import SelectConfig
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.store.ticket_store import TicketStore
from dlth.training.models.registry import has_released_weights, same_model
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.runs.result import read_result
from dlth.training.runs.runlog import RESULT
from dlth.training.settings.layering import checked, layered
from dlth.training.settings.recipes import RECIPES
from dlth.training.settings.selector_config import SelectorTrainConfig

SELECTORS, TICKETS, STUDY = "selectors", "tickets", "study"
ROWS = "rows"
"""In the settings of the study's plan: names of each row's runs."""
EVALUATION_CROP = 0.875
"""Of DeiT, and of any recipe that says none."""


@dataclass(frozen=True)
class Materials:
    """Where everything lies that rows share.

    config: of the reproduction; home: its folder, at a smaller scale one in it
    data, val: specs of the shards; images: how many training images a step may have, None without a bound
    rows: every experiment by name
    """

    config: ReproduceConfig
    home: Path
    data: str
    val: str
    images: int | None
    rows: Mapping[str, Experiment] = field(repr=False)

    @classmethod
    def of(cls, config: ReproduceConfig, rows: Mapping[str, Experiment]) -> "Materials":
        """Find the shards. Raises DlthError as `open_index`."""
        out = Path(config.out)
        if config.is_whole:
            return cls(config, out, config.data, config.val, None, rows)
        data = first_shards(config.data, config.split, config.scale)
        val = first_shards(config.val, config.val_split, config.scale)
        return cls(config, out / f"scale{config.scale}", data, val, open_index(data).num_samples, rows)

    @property
    def study(self) -> Path:
        """The folder of the students' runs."""
        return self.home / STUDY

    def key(self, row: Experiment) -> str:
        """The row, and the mode where it has one: what the plan tells runs of one row from another's by."""
        return "+".join(filter(None, (row.name, self.mode_of(row))))

    @property
    def shared(self) -> dict[str, Any]:
        """Settings that every run has: images and machine."""
        config = self.config
        machine = {name: getattr(config, name) for name in ("device", "workers", "amp", "amp_dtype")}
        return {"data": self.data, "val": self.val, "split": config.split, "val_split": config.val_split, **machine}

    def step(self, row: Experiment) -> dict[str, int]:
        """Batch size and accumulation of a row's step."""
        return step_settings(row, self.config.gpus, self.config.batch_size, self.images)

    def selector_run(self, row: Experiment, seed: int) -> SelectorTrainConfig:
        """The run of a selector row. Raises InputError for settings that contradict each other."""
        start = {"init_from": self.config.init_from, "pretrained": self.config.init_from is None}
        values: dict[str, Any] = {} if row.arm == "evit" else start
        values |= row_settings(row) | self.shared | self.step(row) | {"seed": seed, "resume": "auto"}
        out = self.home / SELECTORS / f"{row.name.replace('/', '_')}-seed{seed}"
        values = {name: value for name, value in values.items() if value is not None}
        return layered(values | {"out": str(out)}, kind=SelectorTrainConfig)

    def selector_of(self, row: Experiment, wanted: frozenset[str]) -> str:
        """The weights that select for a row: those given, else those of its selector row's first seed, which may be a
        student's.

        `wanted`: names of rows that are trained before this one is run. Raises InputError where there are none.
        """
        if self.config.selector is not None:
            return self.config.selector
        owner = self.rows[row.selector]
        out = self._student_run(owner) if owner.is_student else self.selector_run(owner, self.config.seeds[0]).out
        result = read_result(Path(out) / RESULT) if out else None
        if owner.name in wanted or (result is not None and result.status == "finished"):
            return out
        when = "run {} first, in the same --out" if owner.is_student else "run {} too, which trains it"
        raise InputError(
            f"{row.name} needs a selector: give its weights (--selector), or {when.format(shown(owner.name))}"
        )

    def _student_run(self, row: Experiment) -> str:
        """The folder of a student's run of the first seed, in this mode; empty where the study has none."""
        if not (self.study / PLAN).is_file():
            return ""
        plan = read_study(self.study)
        names, seed = plan.settings[ROWS].get(self.key(row), ()), self.config.seeds[0]
        runs = (run for run in plan.runs if run.name in names and run.seed == seed)
        return next((str(plan.folder(self.study, run)) for run in runs), "")

    def unserved(self, row: Experiment) -> str:
        """Why the selector that was given cannot rank for a row; empty where it can, or where none is asked."""
        given = self.config.selector
        if given is None or not row.selector or not (self.config.mode == "online" or self._tickets_to_make()):
            return ""
        owner = self.rows[row.selector]
        return "" if is_of(given, owner) else f"--selector {shown(given)} is not of {owner.settings['model']}"

    def given_unlike(self, row: Experiment) -> list[str]:
        """Why ticket files that were given are not the row's (`ranked_unlike`). Raises DlthError for what are none."""
        if not row.selector or self.config.mode == "online":
            return []
        given = [path for path in (self.config.tickets, self.config.val_tickets) if path is not None]
        headers = [TicketStore(local_tickets(path)).header for path in given]
        return [text for header in headers for text in ranked_unlike(row, self.rows[row.selector], header)]

    def lacks_start(self, row: Experiment) -> str:
        """Why a selector's training cannot begin as the row says; empty where it can."""
        given, model = self.config.init_from, str(row.settings.get("model"))
        if row.arm != "selector":
            return ""
        if given is None:
            return "" if has_released_weights(model) else f"timm has no released weights of {model}: give --init-from"
        return "" if is_of(given, row) else f"--init-from {shown(given)} is not of {model}"

    def _tickets_to_make(self) -> list[str]:
        """Settings of train for which no ticket file was given."""
        return [name for name in ("tickets", "val_tickets") if getattr(self.config, name) is None]

    def _selectors_model(self, row: Experiment) -> dict[str, Any]:
        """Of which model the weights are that select for a row; empty where they say so themselves, as a run's do."""
        given = self.config.selector
        if given is None or WeightsFile.find(given).note is not None:
            return {}
        settings = self.rows[row.selector].settings
        return {name: settings[name] for name in ("model", "model_kwargs", "img_size") if name in settings}

    def tickets_of(self, row: Experiment, wanted: frozenset[str]) -> dict[str, SelectConfig]:
        """The ticket files of a row that nobody gave, by the setting of train that names them, as they are made.

        Raises InputError where nothing selects for it.
        """
        absent = self._tickets_to_make()
        if not row.selector or self.config.mode == "online" or not absent:
            return {}
        weights = self.selector_of(row, wanted)
        shared: dict[str, Any] = {
            **self._selectors_model(row),
            **{name: getattr(self.config, name) for name in ("device", "workers", "amp", "amp_dtype")},
            **{"checkpoint": weights, "stage_keep": row.rate, "dataset": row.dataset.name},
        }
        crop = RECIPES.get(row.settings.get("recipe", ""), {}).get("crop_pct", EVALUATION_CROP)
        stem = self.home / TICKETS / f"{row.dataset.name.lower()}-{self._whose(row, weights)}-{row.rate}"
        train = {"data": self.data, "split": self.config.split or "", "view": "whole", "out": f"{stem}-train.zarr"}
        val = {"data": self.val, "split": self.config.val_split or "", "view": "center", "crop_pct": crop}
        val |= {"out": f"{stem}-val-crop{crop}.zarr"}
        made = {"tickets": train, "val_tickets": val}
        return {name: checked(SelectConfig, shared | made[name]) for name in absent}

    def _whose(self, row: Experiment, weights: str) -> str:
        """The selector as the name of its ticket files has it: another one must not find them."""
        if self.config.selector is None:
            return row.selector.removesuffix(f"/{row.rate}").replace("/", "_")
        return f"given-{file_digest(WeightsFile.find(weights).path)[:10]}"

    def student_settings(self, row: Experiment, wanted: frozenset[str]) -> dict[str, Any]:
        """Settings of train of a student's row, but for those that a study gives each run."""
        values = row_settings(row) | self.shared | self.step(row)
        if row.settings.get("recipe") == "lvvit":
            values["token_labels"] = self.config.token_labels
        if row.selector and self.config.mode == "online":
            model = self._selectors_model(row)
            values |= {"selector": model.get("model"), "selector_kwargs": model.get("model_kwargs", {})}
            values["selector_checkpoint"] = self.selector_of(row, wanted)
        elif row.selector:
            values |= {"tickets": self.config.tickets, "val_tickets": self.config.val_tickets}
            values |= {name: made.out for name, made in self.tickets_of(row, wanted).items()}
        return {name: value for name, value in values.items() if value is not None}

    def mode_of(self, row: Experiment) -> str:
        """The mode of a row's tickets; empty where none are asked for."""
        return self.config.mode if row.selector else ""

    def bundle_of(self, row: Experiment, runs: Mapping[str, Path], **plan: Any) -> BundleOf:
        """What a row's bundle is made of."""
        return BundleOf(row.name, self.mode_of(row), WHOLE if self.config.is_whole else self.config.scale, runs, **plan)


def is_of(name: str, row: Experiment) -> bool:
    """Whether weights are of a row's model: as they say themselves, else by their shapes.

    Raises DlthError for what are no weights.
    """
    weights, model, options = WeightsFile.find(name), row.settings["model"], row.settings.get("model_kwargs", {})
    if weights.note is not None:
        return same_model(weights.note.model, model) and weights.note.model_kwargs == options
    try:
        weights.build(model, img_size=row.settings.get("img_size"), **options)
    except MismatchError:
        return False
    return True
