"""Settings as TOML text, and TOML files as settings.

TOML and not YAML: Python reads it itself, and it has one way to write a number. Written here and not by a library,
because the text is for people: a line a setting, under its panel, with where its value came from behind it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from dlth.tickets.errors import InputError, MissingFileError, shown
from dlth.training.settings import Settings

CONFIG = "config.toml"
"""The settings of a run, in its folder."""

MAX_CONFIG_BYTES = 1 << 20


def to_toml(config: Settings) -> str:
    """The whole configuration as TOML; reading the text back gives an equal configuration."""
    return toml_of(type(config), dict(config))


def toml_of(kind: type[Settings], values: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> str:
    """Settings as TOML, one line each under its panel's name; absent ones as comments.

    Args:
        kind: the settings' class, for order and panels
        values: validated values by name; None and what is missing is absent
        sources: where each value came from, written behind it
    """
    lines: list[str] = []
    panel = ""
    for name, field in kind.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("panel") != panel:
            panel = str(extra.get("panel"))
            lines += ["", f"# {panel}"]
        if values.get(name) is None:
            lines.append(f"# {name} is not set")
        else:
            origin = f"  # {shown(sources[name])}" if sources is not None else ""
            lines.append(f"{name} = {toml_value(values[name])}{origin}")
    return "\n".join(lines[1:]) + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML writes it; keys of tables are quoted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        items = ", ".join(f"{toml_value(str(key))} = {toml_value(item)}" for key, item in value.items())
        return "{" + items + "}"
    return "[" + ", ".join(toml_value(item) for item in value) + "]"


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        MissingFileError: no such file
        InputError: too large, or no TOML
    """
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
