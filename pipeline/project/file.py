"""The file of a project's settings, ``dlth.toml``: one for all commands, found where the user works.

Top-level keys say where the images are, tables hold any setting of a command. One file is taken and never two, so what
a command does can be read in one place: ``--config``, else ``$DLTH_CONFIG``, else ``./dlth.toml``. Its paths are
relative to its own folder, so that it means the same wherever it is used from. ``--config`` alone also takes the
settings of one command without a table, as a run's ``config.toml`` holds them; their paths are relative to the working
folder, as those of flags are.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.label_config import LabelConfig
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets.errors import InputError, MissingFileError, shown
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.fields import Settings, names_code, path_kind
from dlth.training.settings.layering import check_names, nearest
from dlth.training.settings.paths import beside
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.toml_text import read_toml
from dlth.training.settings.train_config import TrainConfig

NAME, VARIABLE = "dlth.toml", "DLTH_CONFIG"
TABLES: Mapping[str, type[Settings]] = {
    "select": SelectConfig,
    "label": LabelConfig,
    "train": TrainConfig,
    "evaluate": EvalConfig,
    "train-selector": SelectorTrainConfig,
    "compare": CompareConfig,
    "prune": PruneConfig,
}
STUDIES = ("compare", "prune")
"""Commands whose runs are of `dlth train`, and share its table."""
SHARDS, TOP = ("data", "val"), ("data", "val", "dataset", "split")


@dataclass(frozen=True)
class ProjectFile:
    """A file of settings as it was read, its paths as the working folder knows them.

    top: what its top-level keys say of the images; tables: settings by command
    """

    path: Path
    top: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def project_file(command: str, config_file: Path | None = None) -> ProjectFile | None:
    """The file of settings that a command takes; None where there is none.

    Args:
        command: a name of `TABLES`
        config_file: the path of ``--config``; ``$DLTH_CONFIG`` or ``./dlth.toml`` if absent
    Raises:
        MissingFileError: a file that was named is not there
        InputError: no TOML, keys and tables that do not exist, with the nearest that do, or code to import in a file
            that was found
    """
    if config_file is not None:
        content = read_toml(config_file)
        if content.keys() - {*TOP, *TABLES} and not content.keys() & TABLES.keys():
            check_names(TABLES[command], content, f"in {shown(config_file)}")
            return ProjectFile(config_file, {}, {command: content})
        return _of(config_file, content)
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise MissingFileError(f"${VARIABLE} names {shown(named)}, which is no file")
        return _of(Path(named), read_toml(Path(named)))
    return found_file(command, Path(NAME)) if Path(NAME).is_file() else None


def found_file(command: str, path: Path) -> ProjectFile:
    """A file of settings that nobody named. Raises InputError for what `project_file` refuses in one that was found."""
    return _without_code(_of(path, read_toml(path)), command)


def _without_code(file: ProjectFile, command: str) -> ProjectFile:
    """A file that was found and not named, which may have come with somebody's shards: it names no code to import."""
    tables = [(command, file.tables[command])]
    if command in STUDIES:
        tables += [("train", file.tables["train"])]
    if command == "compare":
        tables += _nested(file.tables[command])
    for table, name, value in ((table, *item) for table, values in tables for item in values.items()):
        if names_code(name, value):
            raise InputError(
                f"{shown(file.path)} names code to import ([{table}] {name} = {shown(value)!r}), and a file of"
                f" settings that nobody named may have come with somebody's shards: give --{name.replace('_', '-')}"
                f" {shown(value)}, or --config {shown(file.path)}"
            )
    return file


def _of(path: Path, content: Mapping[str, Any]) -> ProjectFile:
    _check_keys(path, content)
    top = {name: content[name] for name in TOP if name in content}
    if wrong := [name for name, value in top.items() if not isinstance(value, str)]:
        raise InputError(f"{shown(path)}: {', '.join(wrong)} must be text in quotes, found {shown(top[wrong[0]])}")
    top |= {name: beside(path.parent, top[name], "shards") for name in SHARDS if name in top}
    tables = {}
    for name, kind in TABLES.items():
        table = content.get(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{shown(path)}: {name} must be a table: write [{name}] and its settings below it")
        for key in table.keys() - kind.names().keys():
            if homes := _homes(key):
                raise InputError(f"{shown(path)} has {shown(key)!r} under [{name}]: it belongs under {homes}")
        check_names(kind, table, f"under [{name}] in {shown(path)}")
        tables[name] = {key: _placed(path.parent, kind.model_fields[key], value) for key, value in table.items()}
    for _, values in _nested(tables["compare"]):
        known = {key: TrainConfig.model_fields[key] for key in values if key in TrainConfig.model_fields}
        values |= {key: _placed(path.parent, field, values[key]) for key, field in known.items()}
    return ProjectFile(path, top, tables)


def _check_keys(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse keys that are none of the file's, and say where a setting belongs."""
    for key in content.keys() - {*TOP, *TABLES}:
        homes = _homes(key)
        advice = f": it belongs under {homes}" if homes else nearest(key, (*TOP, *TABLES))
        raise InputError(
            f"{shown(path)} has {shown(key)!r} at its top level{advice}. What may stand there: {', '.join(TOP)}, and"
            f" the tables {', '.join(f'[{name}]' for name in TABLES)}."
        )


def _homes(key: str) -> str:
    """The tables that have a setting of that name, in words; empty where none has."""
    return " or ".join(f"[{name}]" for name, kind in TABLES.items() if key in kind.names())


def _nested(study: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Tables of a study that hold settings of train, by their names; what is no table is refused with the rest."""
    arms = study.get("arm")
    named = {"compare.sweep": study.get("sweep")}
    named |= {f"compare.arm.{arm}": values for arm, values in arms.items()} if isinstance(arms, dict) else {}
    return [(name, values) for name, values in named.items() if isinstance(values, dict)]


def _placed(folder: Path, field: FieldInfo, value: Any) -> Any:
    if isinstance(value, list):  # values to sweep over
        return [_placed(folder, field, each) for each in value]
    kind = path_kind(field)
    return beside(folder, value, kind) if kind and isinstance(value, str) else value
