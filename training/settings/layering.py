"""Who wins when a setting is given twice: defaults < recipe < file < flags; and where each value came from.

The layers are plain dictionaries merged before the configuration is made, so a checked object exists once and what it
holds is what runs. What dlth itself sets (a default, a recipe) gives way to what a user wrote: a recipe's five epochs
of warm-up do not stand in the way of a run of three. Two values of the user that contradict each other are an error.
Tables (``model_kwargs``) are taken whole, never merged: a reader of the file must see all that a table holds.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from dlth.tickets.ascii_digits import ascii_only
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import DlthError, InputError, shown
from dlth.tickets.user_files import named_text
from dlth.training.settings.fields import COSINE, Settings
from dlth.training.settings.recipes import RECIPE_MODEL, RECIPES
from dlth.training.settings.toml_text import CONFIG, MAX_CONFIG_BYTES, parse_toml, read_toml, to_toml, toml_of
from dlth.training.settings.train_config import DEFAULT_MODEL, TrainConfig

SettingsT = TypeVar("SettingsT", bound=Settings)
TrainT = TypeVar("TrainT", bound=TrainConfig)

DEFAULT, FLAG, NO_RECIPE = "default", "flag", "none"


@dataclass(frozen=True)
class Layer:
    """Settings from one place, by field name; `given` if a user wrote them there, so that they never give way."""

    source: str
    values: Mapping[str, Any]
    given: bool = False


@dataclass(frozen=True)
class Layers(Generic[SettingsT]):
    """Layers of settings of one kind, the lowest first; not checked before `config` is called."""

    kind: type[SettingsT]
    layers: tuple[Layer, ...] = ()

    def over(self, source: str, values: Mapping[str, Any]) -> Self:
        """With one more layer of dlth's own on top."""
        return replace(self, layers=(*self.layers, Layer(source, values)))

    def under(self, source: str, values: Mapping[str, Any]) -> Self:
        """With one more layer of dlth's own below all others, just above the defaults."""
        return replace(self, layers=(Layer(source, values), *self.layers))

    @property
    def values(self) -> dict[str, Any]:
        """What the layers say, as it was written; defaults are not among it."""
        return {name: value for layer in self.layers for name, value in layer.values.items()}

    def get(self, name: str) -> Any:
        """A setting as it was written, its default where no layer has it; None for a required one."""
        field = self.kind.model_fields[name]
        return self.values.get(name, None if field.is_required() else field.get_default(call_default_factory=True))

    def is_given(self, name: str) -> bool:
        """Whether the value that counts is a user's."""
        top = self._top(name)
        return top is not None and top.given

    @property
    def sources(self) -> dict[str, str]:
        """Where each setting's value came from."""
        tops = {name: self._top(name) for name in self.kind.names()}
        return {name: DEFAULT if top is None else top.source for name, top in tops.items()}

    def config(self) -> SettingsT:
        """The checked configuration. Raises InputError as `checked`."""
        return checked(self.kind, self.values, self.sources)

    def text(self) -> str:
        """TOML of every setting with its source, a run's student too; those required and not given are comments.

        Raises:
            InputError: a value that its field cannot take; whether the values fit together is not asked
        """
        problems: list[str] = []
        values: dict[str, Any] = {}
        for name, field in self.kind.names().items():
            try:
                adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
                values[name] = None if self.get(name) is None else adapter.validate_python(self.get(name))
            except ValidationError as error:
                problems += [_problem(dict(each, loc=(name, *each["loc"])), self.sources) for each in error.errors()]
        if problems:
            raise InputError("; ".join(problems))
        sources = self.sources
        if issubclass(self.kind, TrainConfig) and values["model"] is None and values["init_from"] is None:
            values["model"] = RECIPE_MODEL.get(values["recipe"], DEFAULT_MODEL)
            sources["model"] = f"recipe {values['recipe']}" if values["recipe"] in RECIPE_MODEL else DEFAULT
        return toml_of(self.kind, values, sources)

    def _top(self, name: str) -> Layer | None:
        return next((layer for layer in reversed(self.layers) if name in layer.values), None)


def layered(
    overrides: Mapping[str, Any],
    *,
    recipe: str | None = None,
    config_file: str | Path | None = None,
    note: Note = lambda text: None,
    kind: type[TrainT] = TrainConfig,  # type: ignore[assignment]
) -> TrainT:
    """Make the configuration of a run from its layers.

    Args:
        overrides: settings given as flags, by field name
        recipe: name of the recipe; the `recipe` of the flags or of the file if absent, else none
        config_file: a TOML file of settings, e.g. the ``config.toml`` of an earlier run
        note: told what gave way
        kind: of which run, a student's or (`SelectorTrainConfig`) a selector's
    Raises:
        InputError: an unknown recipe or key (the nearest known one is named), or a value that does not fit
        MissingFileError: no such file
    """
    from_file = read_toml(Path(config_file)) if config_file is not None else {}
    check_names(kind, from_file, f"in {shown(config_file)}")
    check_names(kind, overrides, "among the flags")
    flags = dict(overrides) | ({"recipe": recipe} if recipe is not None else {})
    given = (Layer(str(config_file), from_file, given=True), Layer(FLAG, flags, given=True))
    layers, notes = fitted(with_recipe(kind, given))
    for text in notes:
        note(text)
    return layers.config()


def with_recipe(kind: type[TrainT], given: Sequence[Layer], unless_said: str = "") -> Layers[TrainT]:
    """What the user gave, and below it the recipe that the highest layer names; `unless_said` is taken without one.
    Raises InputError if there is no such recipe, or none for what is trained.
    """
    recipes = [layer.values["recipe"] for layer in given if layer.values.get("recipe") is not None]
    name = str(recipes[-1]) if recipes else unless_said
    layers = Layers(kind, tuple(given))
    if not name or name == NO_RECIPE:
        return layers.over(layers.sources["recipe"], {"recipe": ""}) if recipes else layers
    if name not in kind.recipes:
        if name in RECIPES:
            raise InputError(f"recipe {name} is not for {kind.trained}; {', '.join(kind.recipes)} are")
        there = f"there are {', '.join(kind.recipes)}.{nearest(name, kind.recipes)}"
        raise InputError(f"there is no recipe {shown(name)!r}; {there}")
    return layers.under(f"recipe {name}", RECIPES[name]).under(DEFAULT, {"recipe": name})


def fitted(layers: Layers[TrainT]) -> tuple[Layers[TrainT], list[str]]:
    """Let what a recipe or a default says of epochs give way to a run's length; and what a person should know of it.

    A warm-up is cut to the epochs before the last. A keep schedule that would not end within the run begins and lasts
    for the same shares of it as the paper's does of 300 epochs. Milestones of the learning rate come at the same shares
    of the run as of the length that they were meant for.
    """
    epochs, warmup = _whole(layers.get("epochs")), _whole(layers.get("warmup_epochs"))
    changes: dict[str, Any] = {}
    if warmup is not None and epochs is not None and warmup >= epochs:
        changes["warmup_epochs"] = max(epochs - 1, 0)
    if epochs is not None and layers.get("keep_schedule") == COSINE:
        start, span = _whole(layers.get("keep_schedule_start")), _whole(layers.get("keep_schedule_epochs"))
        if start is not None and span is not None and start + span > epochs:
            changes |= {"keep_schedule_start": epochs * 10 // 300, "keep_schedule_epochs": max(epochs * 100 // 300, 1)}
    if epochs is not None and layers.get("sched") == "multistep" and not layers.is_given("decay_milestones"):
        meant = _meant_epochs(layers)
        moved = sorted({fall * epochs // meant for fall in layers.get("decay_milestones")} - {0})
        changes |= {"decay_milestones": tuple(moved)} if epochs != meant else {}
    changes = {name: value for name, value in changes.items() if not layers.is_given(name)}
    whose = {name: "the defaults" if source == DEFAULT else source for name, source in layers.sources.items()}
    notes = [
        f"{name} is {_told(value)} in a run of {epochs} epochs, not the {_told(layers.get(name))} of {whose[name]}"
        for name, value in changes.items()
    ]
    return (layers.over("derived", changes) if changes else layers), notes


def _told(value: object) -> str:
    """A setting's value, as a flag takes it."""
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _meant_epochs(layers: Layers[TrainT]) -> int:
    """The length of the runs that the recipe's milestones of the learning rate are of, or the defaults'."""
    recipe, fields = RECIPES.get(str(layers.get("recipe")), {}), TrainConfig.model_fields
    own = recipe if "decay_milestones" in recipe else {}
    return int(own.get("epochs", fields["epochs"].default))


def _whole(value: object) -> int | None:
    """A number of epochs, if it is one; what is none is refused when the configuration is made."""
    try:
        return int(ascii_only(str(value)))
    except ValueError:
        return None


def checked(kind: type[SettingsT], values: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> SettingsT:
    """Make settings. Raises InputError for all that does not fit, with the flags and the files that it came from."""
    check_names(kind, values, "among the settings")
    try:
        return kind(**values)
    except ValidationError as error:
        raise InputError("; ".join(_problem(dict(problem), sources or {}) for problem in error.errors())) from error


def is_written(path: Path, kind: type[Settings]) -> bool:
    """Whether a file is settings as a run writes them, each with its value, and not what a person has written."""
    try:
        text = named_text(path, MAX_CONFIG_BYTES, "configuration file")
        return to_toml(checked(kind, parse_toml(text, CONFIG))) == text
    except DlthError:
        return False


def check_names(kind: type[Settings], values: Mapping[str, Any], where: str) -> None:
    """Raises InputError for names that are no settings; each with the nearest known one."""
    unknown = [f"{shown(key)!r}{nearest(key, kind.names())}" for key in values if key not in kind.names()]
    if unknown:
        raise InputError(f"unknown setting {where}: {'; '.join(unknown)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'lr'?)`` or nothing."""
    close = difflib.get_close_matches(str(name).replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _problem(problem: dict[str, Any], sources: Mapping[str, str]) -> str:
    names = [f", value {part + 1}" if isinstance(part, int) else f".{part}" for part in problem["loc"]]
    flag = "--" + "".join(names)[1:].replace("_", "-") if names else ""
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        name = problem["loc"][0]
        return f"{flag} is required: as a flag, or as {name} in a file of settings (dlth.toml)"
    text = str(problem["msg"]).removeprefix("Value error, ")
    source = sources.get(str(problem["loc"][0]), FLAG) if problem["loc"] else FLAG
    place = "" if source in (FLAG, DEFAULT) else f", in {shown(source)}"
    value = shown(problem["input"])
    found = "" if f"got {value}" in text or f"got {value!r}" in text else f", found {value}"
    return f"{flag}: {text}{found}{place}" if flag else text
