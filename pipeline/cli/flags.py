"""Command-line flags made from a configuration class, so that a setting is described in one place only.

Writing sixty `Annotated[..., typer.Option(...)]` parameters beside sixty fields is how help texts and defaults drift
apart. Here the pydantic field is the source: its name gives the flag, its description the help, its default the text
in parentheses. A flag that is not given is absent from the overrides, so a recipe or a file can speak.
"""

import inspect
import types
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from dlth.tickets.ascii_digits import ascii_only
from dlth.training.settings.fields import Settings, panel_of

Number = TypeVar("Number", int, float)


def with_flags(
    *configs: type[Settings], without: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one flag per field of the `configs`; it receives those that were set as `overrides`, a dict.

    Of fields of one name the first has the flag; those `without` have none.
    The decorated function takes `overrides: dict[str, Any]` first and its own typer parameters after it.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        taken = {parameter.name for parameter in own}
        fields = {name: field for config in reversed(configs) for name, field in config.names().items()}
        order = dict.fromkeys(name for config in configs for name in config.names())
        flags = [_parameter(name, fields[name]) for name in order if name not in {*taken, *without}]

        @wraps(function)
        def command(**values: Any) -> Any:
            overrides = {flag.name: values.pop(flag.name) for flag in flags}
            return function({name: value for name, value in overrides.items() if value is not None}, **values)

        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        command.__signature__ = inspect.Signature(flags + keyword)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in flags + keyword}
        return command

    return decorate


def integer(text: object) -> int:
    """What a flag of a whole number reads: as the command line's own type, but ASCII digits alone."""
    return _number(int, text, "integer")


def number(text: object) -> float:
    """What a flag of a number reads: as the command line's own type, but ASCII digits alone."""
    return _number(float, text, "float")


number.__name__ = "float"  # what help pages call the value


def _number(kind: type[Number], text: object, name: str) -> Number:
    try:
        return kind(ascii_only(str(text)))
    except ValueError:
        raise typer.BadParameter(f"{str(text)!r} is not a valid {name}.") from None


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = _flag_type(field.annotation)
    flag = "--" + name.replace("_", "-")
    option = typer.Option(
        None,
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=_help(field),
        show_default=False,
        parser={int: integer, float: number}.get(kind),
        rich_help_panel=panel_of(field),
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None)


def _flag_type(annotation: Any) -> type:
    """bool, int and float are parsed by the command line; everything else is text that the field itself reads."""
    options = [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        options = [kind for kind in get_args(annotation) if kind is not type(None)]
    simple = {kind for kind in options if kind in (bool, int, float)}
    return simple.pop() if len(options) == 1 and simple else str


def _help(field: FieldInfo) -> str:
    text = (field.description or "").rstrip()
    if get_origin(field.annotation) is Literal:
        text += " One of: " + ", ".join(str(choice) for choice in get_args(field.annotation)) + "."
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default in (None, "", (), {}):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
    return f"{text} (Default: {shown}.)"
