"""A study as it is asked for, as text: study.toml, which `dlth compare` or `dlth prune --config` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.pipeline.studies.study_config import CompareConfig
from dlth.training.settings.fields import Settings, path_kind
from dlth.training.settings.paths import beside
from dlth.training.settings.toml_text import toml_value
from dlth.training.settings.train_config import TrainConfig

_NONE: Mapping[str, Mapping[str, Any]] = {}


def asked_text(config: CompareConfig, train: Mapping[str, Any]) -> str:
    """TOML of what makes a study: settings of train that its runs share, and the study's own; paths are absolute.

    What may change while it runs (processes, how long is measured) is not in it.
    """
    nested = {"compare.sweep": config.sweep} | {f"compare.arm.{arm}": values for arm, values in config.arm.items()}
    return study_text("compare", config, train, nested)


def study_text(
    command: str, config: Settings, train: Mapping[str, Any], nested: Mapping[str, Mapping[str, Any]] = _NONE
) -> str:
    """The same for the study of any command; `nested`: what fields of `config` hold that are tables of settings of
    train, by the tables' names.
    """
    tables_of_their_own = {name for name, value in config if isinstance(value, dict)}
    own = config.model_dump(mode="json", exclude={"gpus", "measure", *tables_of_their_own}, exclude_none=True)
    own = {name: located(type(config), name, value) for name, value in own.items()}
    shared = {name: located(TrainConfig, name, value) for name, value in train.items() if value is not None}
    tables = {"train": shared, command: own} | {
        table: {name: located(TrainConfig, name, value) for name, value in values.items()}
        for table, values in nested.items()
    }
    return "\n".join(_table(name, values) for name, values in tables.items() if values)


def located(kind: type[Settings], name: str, value: Any) -> Any:
    """A setting, where it is a path as it is found from anywhere: other processes may work in another folder."""
    if isinstance(value, list):  # of a sweep
        return [located(kind, name, each) for each in value]
    said = path_kind(kind.model_fields[name])
    return beside(Path.cwd(), value, said) if said and isinstance(value, str) else value


def _table(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"{key} = {toml_value(values[key])}" for key in sorted(values)]
    return "\n".join([f"[{name}]", *lines, ""])
