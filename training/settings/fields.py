"""What configuration classes share: one field is name, type, limits, help text and panel of the command line.

Settings are pydantic models because a wrong value must be refused before a GPU is touched, and because the same
description serves the flag's help, the TOML file and the error.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from dlth.tickets.ascii_digits import ascii_only, is_digits
from dlth.tickets.ranking.budget import exact_rate

WHICH_BLOCKS = (
    "Blocks that select, from 0, e.g. 3,6,9; what the weights record if absent, otherwise a quarter, half and three"
    " quarters of the depth."
)
FUSE_TOKENS = "Fuse dropped tokens into one, as EViT may; what the weights record if absent."
WHICH_RANKER = (
    "What orders the patches: evit, evit-kq, evit-qv, cls-attention, rollout, gradient, pool-attention, feature-norm,"
    " or your own as package.module:name; evit if absent and the model has a class token."
)
TF32 = "Let a GPU multiply float32 in TF32: faster, with 10 bits of the mantissa's 23; otherwise as IEEE 754 says."
OWN_CODE = ("ranker", "selector_ranker")
"""Settings that may name a user's own code."""

MAX_SIDE = 1 << 16
"""Pixels of a view's side: a hundred times what models take, and below what a slip of the key makes."""
MAX_BATCH = 1 << 16
"""Images of one forward, and forwards of one step: beyond any device's memory, and any use."""
MAX_EPOCHS = 10**6

NO_SCHEDULE, COSINE = "none", "cosine"
"""Keep schedules that have a name; any other is milestones."""

_MAX_BRACKETS = 4
"""Brackets within brackets of a model's argument; timm's have two."""

NO_PATH = "auto"
"""The one word that may stand where a path may, and is none (``resume``)."""


def setting(
    default: Any,
    panel: str,
    description: str,
    *,
    free: bool = False,
    path: Literal["file", "shards"] | None = None,
    **limits: Any,
) -> Any:
    """A field with its help text.

    `free` ones may change when a run is resumed, as they do not touch its result, or name a file that is known by its
    content; `path` ones name a file or folder, or shards (several, with commas between), relative to the file of
    settings that they stand in.
    """
    extra: JsonDict = {"panel": panel, "free": free, "path": path}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def is_free(field: FieldInfo) -> bool:
    """Whether a field may differ between a checkpoint and the run that resumes it."""
    return bool(_extra(field).get("free"))


def names_code(name: str, value: object) -> bool:
    """Whether a setting's value is the place of a user's own code, which will be imported."""
    return name in OWN_CODE and ":" in str(value)


def path_kind(field: FieldInfo) -> str:
    """What a field names: ``file`` (or folder), ``shards``, or nothing of a file system."""
    return str(_extra(field).get("path") or "")


def panel_of(field: FieldInfo) -> str:
    """The heading that a field stands under, in help pages and files of settings."""
    return str(_extra(field)["panel"])


def _extra(field: FieldInfo) -> JsonDict:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


class Settings(BaseModel):
    """Frozen, and strict about names: a misspelt setting must not be silently a default."""

    # Defaults are validated too: 90 becomes 90.0, so that settings printed and read back are the same settings.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, validate_default=True
    )

    absent: ClassVar[frozenset[str]] = frozenset()
    """Fields that a subclass keeps at their defaults: it has neither a flag nor a line for them."""

    @classmethod
    def names(cls) -> dict[str, FieldInfo]:
        """The fields that a user may set, by name."""
        return {name: field for name, field in cls.model_fields.items() if name not in cls.absent}

    @model_validator(mode="before")
    @classmethod
    def _absent_ones_stay(cls, values: Any) -> Any:
        if isinstance(values, dict) and (given := sorted(cls.absent & values.keys())):
            raise ValueError(f"these are no settings here: {', '.join(given)}")
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse ``epochs = true``, which Python would take for 1."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("true and false are no value of this setting")
        return value

    recorded: ClassVar[bool] = False
    """Whether a run writes its settings down, as TOML, which is UTF-8."""

    @field_validator("*")
    @classmethod
    def _a_path_names_something(cls, value: object, info: ValidationInfo) -> object:
        """Refuse ``--tickets ''``, which would pass for no tickets, and what no file, or no record, can hold."""
        if not isinstance(value, str) or not path_kind(cls.model_fields[str(info.field_name)]):
            return value
        if not value or "\0" in value:
            raise ValueError("this names no file or folder")
        if cls.recorded and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("the name is not UTF-8, and could not be written into the run's settings")
        return value

    @field_validator("*")
    @classmethod
    def _within_64_bits(cls, value: object) -> object:
        """Refuse whole numbers that neither a checkpoint nor an array holds."""
        if isinstance(value, int) and value >= 1 << 63:
            raise ValueError(f"whole numbers end at {(1 << 63) - 1}")
        return value


def fixed_settings(config: Settings) -> dict[str, Any]:
    """The settings that decide the result, as JSON holds them: paths and machine matters are not among them."""
    values = config.model_dump(mode="json")
    return {name: values[name] for name, field in type(config).model_fields.items() if not is_free(field)}


def unknown_to(said: Collection[str], config: Settings) -> dict[str, Any]:
    """The settings that decide the result and that a record does not name, at their defaults, as JSON holds them: it is
    an older version's, which did as their defaults say.
    """
    names = [name for name in fixed_settings(config) if name not in said]
    default = {name: type(config).model_fields[name].get_default(call_default_factory=True) for name in names}
    return dict(json.loads(json.dumps(default)))


def settings_digest(config: Settings, said: Collection[str] = ()) -> str:
    """Sha256, hexadecimal, of the settings that decide the result, as results have it (``config_sha256``).

    said: names of an older version's record, to have the digest as that version made it
    """
    fixed = fixed_settings(config)
    unknown = unknown_to(said, config) if said else {}
    known = {name: value for name, value in fixed.items() if name not in unknown or value != unknown[name]}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def comma_list(value: object) -> object:
    """Text to a tuple of what stands between its commas; anything else stays as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _pairs(value: object) -> object:
    """``a=1,b=true,c=[1,2]`` to a dict; values are numbers, true, false or text, or lists or tuples of such."""
    if not isinstance(value, str):
        return value
    pairs: dict[str, Any] = {}
    for part in filter(None, _parts(value)):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"expected name=value, found {part!r}")
        if (name := name.strip()) in pairs:
            raise ValueError(f"{name} is given twice")
        pairs[name] = _literal(text.strip())
    return pairs


def _parts(text: str) -> list[str]:
    """Cut at the commas that stand in no bracket."""
    cuts, depth = [-1], 0
    for place, char in enumerate(text):
        depth += (char in "[(") - (char in "])")
        if not 0 <= depth <= _MAX_BRACKETS:
            raise ValueError(f"expected brackets in pairs, at most {_MAX_BRACKETS} within each other")
        if char == "," and depth == 0:
            cuts.append(place)
    if depth:
        raise ValueError("a bracket is not closed (a shell may need quotes around them)")
    return [text[one + 1 : other] for one, other in pairwise([*cuts, len(text)])]


def _finite_pairs(pairs: dict[str, Any]) -> dict[str, Any]:
    """Numbers that are none would be met in the middle of a step, if at all."""
    for name, value in pairs.items():
        if isinstance(value, list | tuple):
            for item in value:
                _finite_pairs({name: item})
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, which is no number")
    return pairs


WHERE = {"device": "--device", "dtype": "--amp-dtype"}
"""Arguments by which timm places a model, and the flags that place it here."""


def refuse_own_flags(kwargs: Mapping[str, Any] | None, flag: str, own: Mapping[str, str]) -> None:
    """Raises ValueError for model arguments of `flag` that have a flag of their `own`: timm would get them twice."""
    for name in own.keys() & (kwargs or {}):
        raise ValueError(f"{flag} {name} has a flag of its own: {own[name]}")


def _literal(text: str) -> Any:
    """One value. A tuple is a list here, as it would be once it was written down and read again."""
    if (text[:1], text[-1:]) in (("[", "]"), ("(", ")")):
        return [_literal(part.strip()) for part in _parts(text[1:-1]) if part.strip()]
    for read in (int, float):
        try:
            return read(ascii_only(text))
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _exact(value: object) -> object:
    """A keep share stays the text that the user wrote: 0.7 is seven tenths, not the nearest binary fraction."""
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _share(value: str) -> str:
    """A share that no number of patches could be kept by is refused before a model is built."""
    exact_rate(value, "the share")
    return value


def read_milestones(text: str) -> tuple[tuple[int, str], ...]:
    """``0:0.7,280:1.0`` to (epoch, share of the patches kept from its first step on) of each, epochs rising.

    Raises ValueError for anything else.
    """
    found: list[tuple[int, str]] = []
    for part in text.split(","):
        epoch, _, share = (piece.strip() for piece in part.partition(":"))
        if not is_digits(epoch) or not share or len(epoch) > len(str(MAX_EPOCHS)):
            raise ValueError(f"expected none, cosine, or epoch:share milestones such as 0:0.7,280:1.0, found {part!r}")
        if found and int(epoch) <= found[-1][0]:
            raise ValueError(f"epochs of milestones must rise, found {epoch} after {found[-1][0]}")
        found.append((int(epoch), _share(share)))
    return tuple(found)


def _schedule(text: str) -> str:
    if text not in (NO_SCHEDULE, COSINE):
        read_milestones(text)
    return text


ScheduleText = Annotated[str, AfterValidator(_schedule)]
Keep = Annotated[str, BeforeValidator(_exact), AfterValidator(_share)]
Integers = Annotated[tuple[int, ...], BeforeValidator(comma_list), Field(min_length=1)]
Milestones = Annotated[tuple[int, ...], BeforeValidator(comma_list)]
"""Epochs from whose first step on something changes; none at all: it never does."""
Pair = Annotated[tuple[float, float], BeforeValidator(comma_list)]
# Of values in [0, 1]: means of 0 to 255, as other programs have them, would blacken every image without a word.
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
Means = Annotated[tuple[Mean, Mean, Mean], BeforeValidator(comma_list)]
Deviations = Annotated[tuple[Deviation, Deviation, Deviation], BeforeValidator(comma_list)]
Pairs = Annotated[dict[str, Any], BeforeValidator(_pairs), AfterValidator(_finite_pairs)]
