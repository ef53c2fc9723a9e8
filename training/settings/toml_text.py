"""Settings as TOML text, and TOML files as settings.

TOML and not YAML: Python reads it itself, and it has one way to write a number. Written here and not by a library,
because the text is for people: a line a setting, under its panel, with where its value came from behind it.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from dlth.tickets.errors import InputError, LimitError, UnsafeError, shown
from dlth.tickets.user_files import named_text
from dlth.training.settings.fields import Settings, panel_of

CONFIG = "config.toml"
"""The settings of a run, in its folder."""

MAX_CONFIG_BYTES = 1 << 18
"""Settings have some thousand bytes; this leaves room for thousands of shards, named one by one."""

_MAX_DEPTH = 16
"""Parts of a dotted key, and brackets within brackets: the parser keeps a list of all beginnings of a key (gigabytes
for 100,000 parts) and calls itself for each bracket. Settings have three of either."""

_TOKEN = re.compile(
    r"""
    (?P<part> (?: "{3} (?: \\. | [^"] | "(?!"") )*+ (?: "{3,5} | \Z )  # strings; one without an end goes to the end
              | '{3} (?: [^'] | '(?!'') )*+ (?: '{3,5} | \Z )
              | " (?: \\[^\n] | [^"\n] )*+ "?
              | ' [^'\n]*+ '?
              | [A-Za-z0-9_-]++ ) )
    | (?P<dot> \. ) | (?P<open> [\[{] ) | (?P<close> [\]}] ) | (?P<space> [ \t]++ ) | \#[^\n]*+ | .
    """,
    re.VERBOSE | re.DOTALL,
)
"""Every text is cut into these in one pass, whatever it holds: none of them is ever tried twice at one place."""


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
    for name, field in kind.names().items():
        if panel_of(field) != panel:
            panel = panel_of(field)
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
        quoted = json.dumps(value, ensure_ascii=False)
        return "".join(char if char.isprintable() else _escaped(char) for char in quoted)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        items = ", ".join(f"{toml_value(str(key))} = {toml_value(item)}" for key, item in value.items())
        return "{" + items + "}"
    return "[" + ", ".join(toml_value(item) for item in value) + "]"


def _escaped(char: str) -> str:
    """A character as TOML escapes it: what a terminal would obey is never written as it is."""
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        MissingFileError: no such file
        InputError: too large, neither a file nor a pipe, no TOML, or nested beyond every need
    """
    try:
        text = named_text(path, MAX_CONFIG_BYTES, "configuration file")
    except (LimitError, UnsafeError) as error:
        raise InputError(str(error)) from error
    return parse_toml(text.replace("\r\n", "\n").replace("\r", "\n"), shown(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """What a TOML text holds; raises InputError, naming `where`, for what is no TOML or nested beyond every need."""
    _check_depth(text, where)
    try:
        content = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError is one, and so is what a number of 5,000 digits raises
        raise InputError(f"{where} is not TOML: {error}") from error
    _check_numbers(content, where)
    return content


def _check_depth(text: str, where: str) -> None:
    parts, joined, brackets = 0, False, 0
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "space":
            continue
        brackets += (kind == "open") - (kind == "close")
        parts = (parts + 1 if joined else 1) if kind == "part" else parts if kind == "dot" else 0
        joined = kind == "dot"
        if max(parts, brackets) > _MAX_DEPTH:
            line = text.count("\n", 0, token.start()) + 1
            raise InputError(f"{where}, line {line}: nested more than {_MAX_DEPTH} deep, which no setting is")


def _check_numbers(value: Any, where: str) -> None:
    """Refuse whole numbers beyond the 64 bits that TOML has."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item, where)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{where}: a whole number has more than 64 bits")
