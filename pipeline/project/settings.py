"""A command's settings from all their layers: defaults < derived < recipe < file of settings < flags."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from dlth.data.shards.splits import VALIDATION
from dlth.pipeline.evidence.study_plan import STUDY
from dlth.pipeline.project import derived
from dlth.pipeline.project.file import SHARDS, TABLES, ProjectFile, found_file, project_file
from dlth.pipeline.project.run_folder import RUNS, run_folder, run_name
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.label_config import LabelConfig
from dlth.pipeline.studies.founding import ASKED
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets.errors import InputError, shown
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.layering import FLAG, NO_RECIPE, Layer, Layers, SettingsT, TrainT, fitted, with_recipe
from dlth.training.settings.recipes import SELECTORS_UNLESS_SAID, UNLESS_SAID
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig


@dataclass(frozen=True)
class CommandSettings(Generic[SettingsT]):
    """The settings of one call of a command.

    notes: what a person should know of them; file: the file of settings that was read; problem: why they cannot be used
    as they stand, None if they can
    """

    layers: Layers[SettingsT]
    notes: tuple[str, ...]
    file: Path | None
    problem: InputError | None = None

    def config(self) -> SettingsT:
        """The checked configuration. Raises InputError if it cannot be one."""
        if self.problem is not None:
            raise self.problem
        return self.layers.config()

    @property
    def facts(self) -> dict[str, str]:
        """For the plan: the file of settings, if there is one, and the shards."""
        shards = {name: str(self.layers.get(name)) for name in SHARDS if name in self.layers.values}
        return ({"settings": str(self.file)} if self.file is not None else {}) | shards


def select_settings(flags: Mapping[str, Any], config_file: Path | None) -> CommandSettings[SelectConfig]:
    """The settings of ``dlth select``. Raises DlthError for what no setting can be."""
    file = project_file("select", config_file)
    written = _given("select", file, flags)
    split = Layers(SelectConfig, written).get("split")
    if file is not None and "val" in file.top and str(split).lower() in VALIDATION:
        written = (written[0], Layer(str(file.path), {"data": file.top["val"]}, given=True), *written[1:])
    layers, notes = derived.for_select(Layers(SelectConfig, written), file)
    return _command_settings(layers, notes, file)


def label_settings(flags: Mapping[str, Any], config_file: Path | None) -> CommandSettings[LabelConfig]:
    """The settings of ``dlth label``. Raises DlthError for what no setting can be."""
    file = project_file("label", config_file)
    layers, notes = derived.for_label(Layers(LabelConfig, _given("label", file, flags)), file)
    return _command_settings(layers, notes, file)


def import_settings(data: str | None, split: str | None) -> tuple[str, str | None, tuple[str, ...]]:
    """Shards and split of ``dlth label import``, as ``dlth label`` finds them, and what a person should know of them.

    Raises DlthError for what no setting can be, and where nothing says which shards.
    """
    flags = {name: value for name, value in (("data", data), ("split", split)) if value is not None}
    chosen = label_settings(flags, None)
    if chosen.layers.get("data") is None:
        raise InputError("name the shards of the images: --data, or data = … in dlth.toml")
    return str(chosen.layers.get("data")), chosen.layers.get("split") or None, chosen.notes


def train_settings(flags: Mapping[str, Any], config_file: Path | None) -> CommandSettings[TrainConfig]:
    """The settings of ``dlth train``. Raises DlthError for what no setting can be."""
    return _run_settings("train", TrainConfig, UNLESS_SAID, flags, config_file)


def train_selector_settings(flags: Mapping[str, Any], config_file: Path | None) -> CommandSettings[SelectorTrainConfig]:
    """The settings of ``dlth train-selector``. Raises DlthError for what no setting can be."""
    return _run_settings("train-selector", SelectorTrainConfig, SELECTORS_UNLESS_SAID, flags, config_file)


def _run_settings(
    command: str, kind: type[TrainT], recipe: str, flags: Mapping[str, Any], config_file: Path | None
) -> CommandSettings[TrainT]:
    """The settings of a command that trains; one that names no folder gets its own, one that names no recipe this."""
    file = project_file(command, config_file)
    layers, notes = derived.for_train(with_recipe(kind, _given(command, file, flags), recipe), file)
    layers, shortened = fitted(layers)
    notes += shortened
    if layers.get("out") is not None:
        return _command_settings(layers, notes, file)
    named = _command_settings(layers.under(derived.DERIVED, {"out": str(RUNS)}), notes, file)
    if named.problem is not None:
        return replace(named, layers=layers)
    config = named.config()
    header = derived.header_of(config.tickets) if config.tickets is not None else None
    folder, name = run_folder(config, header), run_name(config, header)
    if folder.name != name:
        notes.append(f"{shown(RUNS / name)} holds a run of other settings: this one is {shown(folder)}")
    return _command_settings(layers.under(derived.DERIVED, {"out": str(folder)}), notes, file)


@dataclass(frozen=True)
class StudySettings(Generic[SettingsT]):
    """The settings of one call of ``dlth compare`` or ``prune``: the study's, and those of train that its runs share.

    notes: what a person should know of them
    """

    study: CommandSettings[SettingsT]
    train: Mapping[str, Any]
    notes: tuple[str, ...]


def compare_settings(
    flags: Mapping[str, Any], train: Mapping[str, Any], config_file: Path | None
) -> StudySettings[CompareConfig]:
    """The settings of ``dlth compare`` from its own flags and those of train. Raises DlthError for what none can be."""
    return _study_settings("compare", CompareConfig, flags, train, config_file)


def prune_settings(
    flags: Mapping[str, Any], train: Mapping[str, Any], config_file: Path | None
) -> StudySettings[PruneConfig]:
    """The settings of ``dlth prune`` from its own flags and those of train. Raises DlthError for what none can be."""
    return _study_settings("prune", PruneConfig, flags, train, config_file)


def _study_settings(
    command: str,
    kind: type[SettingsT],
    flags: Mapping[str, Any],
    train: Mapping[str, Any],
    config_file: Path | None,
) -> StudySettings[SettingsT]:
    """The settings of a command that makes a study; one that is there already speaks below the flags."""
    file = project_file(command, config_file)
    if config_file is None and (file is None or not file.tables.get(command)):
        file = _of_study(command, flags.get("out")) or file
    chosen = _command_settings(Layers(kind, _given(command, file, flags)), [], file)
    layers, notes = derived.for_train(with_recipe(TrainConfig, _given("train", file, train), UNLESS_SAID), file)
    shared: dict[str, Any] = {"recipe": layers.get("recipe") or NO_RECIPE}
    for layer in layers.layers:
        shared |= layer.values if layer.given or layer.source == derived.DERIVED else {}
    where = [f"settings: {shown(file.path)}"] if file is not None else []
    return StudySettings(chosen, shared, (*where, *notes))


def _of_study(command: str, out: str | None) -> ProjectFile | None:
    """What the study in a folder was asked for: flags say in what it is to grow. None where there is no study."""
    folder = Path(out or "")
    return found_file(command, folder / ASKED) if all((folder / name).is_file() for name in (STUDY, ASKED)) else None


def evaluate_settings(flags: Mapping[str, Any], config_file: Path | None) -> CommandSettings[EvalConfig]:
    """The settings of ``dlth evaluate``. Raises DlthError for what no setting can be."""
    file = project_file("evaluate", config_file)
    layers, notes = derived.for_evaluate(Layers(EvalConfig, _given("evaluate", file, flags)), file)
    return _command_settings(layers, notes, file)


def _given(command: str, file: ProjectFile | None, flags: Mapping[str, Any]) -> tuple[Layer, ...]:
    """What the user wrote: the file's top level as far as the command has such settings, its table, flags."""
    if file is None:
        return (Layer(FLAG, flags, given=True),)
    known = TABLES[command].names()
    top = {name: value for name, value in file.top.items() if name in known}
    source = str(file.path)
    table = file.tables.get(command, {})
    return (Layer(source, top, given=True), Layer(source, table, given=True), Layer(FLAG, flags, given=True))


def _command_settings(
    layers: Layers[SettingsT], notes: list[str], file: ProjectFile | None
) -> CommandSettings[SettingsT]:
    problem = None
    try:
        layers.config()
    except InputError as error:
        problem = error
    return CommandSettings(layers, tuple(notes), file.path if file is not None else None, problem)
