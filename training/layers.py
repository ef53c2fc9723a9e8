"""Who wins when a setting is given twice: defaults < recipe < ``--config`` file < flags; and the way back to TOML.

The layers are plain dictionaries merged before the configuration is made, so a checked object exists once and what it
holds is what runs. TOML and not YAML: Python reads it itself, and it has one way to write a number. Rejected: merging
inside tables (``model_kwargs``): a reader of the file must see all that a table holds.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dlth.tickets.errors import InputError, MissingFileError, shown
from dlth.training.config import RECIPES, TrainConfig
from dlth.training.settings import Settings

SettingsT = TypeVar("SettingsT", bound=Settings)

MAX_CONFIG_BYTES = 1 << 20


def layered(
    overrides: Mapping[str, Any], *, recipe: str | None = None, config_file: str | Path | None = None
) -> TrainConfig:
    """Make the configuration of a run from its layers.

    Args:
        overrides: settings given as flags, by field name
        recipe: name of the recipe; the file's `recipe` key if absent, else none
        config_file: a TOML file of settings, e.g. the ``config.toml`` of an earlier run
    Raises:
        InputError: an unknown recipe or key (the nearest known one is named), or a value that does not fit
        MissingFileError: no such file
    """
    from_file = _read_toml(Path(config_file)) if config_file is not None else {}
    check_names(TrainConfig, from_file, f"in {config_file}")
    check_names(TrainConfig, overrides, "among the flags")
    name = recipe or overrides.get("recipe") or from_file.get("recipe") or ""
    if name and name not in RECIPES:
        raise InputError(f"there is no recipe {shown(name)!r}; there are {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    values = RECIPES.get(name, {}) | from_file | dict(overrides) | {"recipe": name}
    return checked(TrainConfig, values)


def checked(kind: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """Make settings, turning all that does not fit into one error that names the flags.

    Raises:
        InputError: unknown names, missing or impossible values
    """
    check_names(kind, values, "among the settings")
    try:
        return kind(**values)
    except ValidationError as error:
        raise InputError("; ".join(_problem(dict(problem)) for problem in error.errors())) from error


def check_names(kind: type[Settings], values: Mapping[str, Any], where: str) -> None:
    """Refuse names that are no settings.

    Raises:
        InputError: names each unknown key and the nearest known one
    """
    unknown = [f"{shown(key)!r}{nearest(key, kind.model_fields)}" for key in values if key not in kind.model_fields]
    if unknown:
        raise InputError(f"unknown setting {where}: {'; '.join(unknown)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'lr'?)`` or nothing."""
    close = difflib.get_close_matches(str(name).replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def to_toml(config: Settings) -> str:
    """The whole configuration as TOML, one line a setting under its panel's name; absent ones as comments.

    Reading the text back gives an equal configuration.
    """
    lines: list[str] = []
    panel = ""
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("panel") != panel:
            panel = str(extra.get("panel"))
            lines += ["", f"# {panel}"]
        value = getattr(config, name)
        lines.append(f"# {name} is not set" if value is None else f"{name} = {_toml_value(value)}")
    return "\n".join(lines[1:]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(_toml_value(item) for item in value) + "]"


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"there is no configuration file {shown(path)}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InputError(
            f"{shown(path)} has {path.stat().st_size} bytes; a configuration has at most {MAX_CONFIG_BYTES}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)} is not TOML: {error}") from error


def _problem(problem: dict[str, Any]) -> str:
    flag = "--" + ".".join(map(str, problem["loc"])).replace("_", "-") if problem["loc"] else ""
    if problem["type"] == "missing":
        return f"{flag} is required"
    text = str(problem["msg"]).removeprefix("Value error, ")
    return f"{flag}: {text}, found {shown(problem['input'])}" if flag else text
