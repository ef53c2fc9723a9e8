"""The header: it checks itself, reads back exactly, and agrees with its published schema."""

import copy
import dataclasses
import json
import re
from importlib import resources
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from makers.tickets import make_header
from PIL import Image

from dlth.tickets import Grid, TicketHeader, ViewSpec, differences
from dlth.tickets.errors import SchemaError
from dlth.tickets.format.jsontext import canonical, parse

Json = Any
SCHEMA = json.loads((resources.files("dlth.tickets") / "header.schema.json").read_text())


def test_header_reads_back_exactly() -> None:
    """Through canonical text and back nothing changes, extensions included."""
    header = make_header(creator="a lab", extensions={"lab": {"notes": ["x", 1, 2.5, None, True]}})
    again = TicketHeader.from_json(parse(canonical(header.to_json()), "header"))
    assert again == header
    assert canonical(again.to_json()) == canonical(header.to_json())
    assert differences(header, again) == []


def mutate(value: Json, path: str, new: Json) -> Json:
    """A copy of a JSON object with one dotted path set; `...` deletes it."""
    result = copy.deepcopy(value)
    *outer, last = path.split(".")
    place = result
    for key in outer:
        place = place[key]
    if new is ...:
        del place[last]
    else:
        place[last] = new
    return result


REFUSED = [
    ("format", "other", "format: must be 'dlth-tickets'"),
    ("version", "2.0", "version: the file is version 2.0, this dlth reads 1.x; update dlth"),
    ("version", "one", "version: must look like 1.0"),
    ("form", "best", "form: must be one of full, top, mask, got 'best'"),
    ("surprise", 1, "unknown field surprise; version 1.0 allows new fields under 'extensions' only"),
    ("selector.surprise", 1, r"header.selector: unknown field surprise"),
    ("k", ..., "field k is missing"),
    ("k", 0, r"header.k: must be from 1 to 16 \(the patches of the grid\), got 0"),
    ("k", 17, r"header.k: must be from 1 to 16"),
    ("k", True, "header.k: must be a whole number, got True"),
    ("k", 6.0, "header.k: must be a whole number, got 6.0"),
    ("k", "6", "header.k: must be a whole number"),
    ("keep", "1.5", "header.keep: must be plain decimal text above 0 and at most 1, got '1.5'"),
    ("stage_keep", "often", "header.stage_keep: must be plain decimal text"),
    ("keep", "7e-1", "header.keep: must be plain decimal text"),
    ("stage_tokens", [6], "stage_tokens: must be one number per selection block"),
    ("stage_tokens", [0, 9, 6], "stage_tokens: must be from 1"),
    ("stage_tokens", 3, "header.stage_tokens: must be a list"),
    ("grid", {"rows": 4}, "header.grid: field cols is missing"),
    ("grid.rows", 0, "header.grid.grid rows must be a whole number of at least 1"),
    ("grid.rows", 10**6, "header.grid.a grid of 1000000x4 has more than 65535 patches"),
    ("grid", [4, 4], "header.grid: must be an object"),
    ("patch_size", 0, "header.patch_size: must be from 1 to 65536, got 0"),
    ("view.kind", "squash", "header.view.kind: must be 'whole' or 'center'"),
    ("view.height", 10**9, "header.view.height: must be from 1 to 65536"),
    ("view.crop_pct", "0", "header.view.crop_pct: must be plain decimal text"),
    ("view.antialias", 1, "header.view.antialias: must be true or false"),
    ("preprocessing.mean", [0.5], "header.preprocessing.mean: must be as long as std"),
    ("preprocessing.mean", ["a", 1, 2], r"header.preprocessing.mean\[0\]: must be a number"),
    ("preprocessing.std", [0.0, 1.0, 1.0], "header.preprocessing.std: must be above 0"),
    ("preprocessing.decoder", None, "header.preprocessing.decoder: must be text, got None"),
    ("selector.weights_sha256", "AB" * 32, "weights_sha256: must be 64 hexadecimal digits or empty"),
    ("selector.blocks", [2, 1, 0], "header.selector.blocks: must ascend from 0"),
    ("selector.blocks", [-1, 1, 2], "header.selector.blocks: must ascend from 0"),
    ("dataset.count", -1, "header.dataset.count: must be from 0 to"),
    ("dataset.fingerprint", "x", "header.dataset.fingerprint: must be 64 hexadecimal digits or empty"),
    ("versions", {"dlth": 1}, "header.versions.dlth: must be text"),
    ("versions", {str(number): "1" for number in range(65)}, "header.versions: must have at most 64 fields"),
    ("creator", "x" * 1001, "header.creator: must be Unicode text of at most 1000 characters"),
    ("creator", "\ud800", "header.creator: must be Unicode text"),
    ("extensions", [], "header.extensions: must be an object"),
]


@pytest.mark.parametrize(("path", "new", "message"), REFUSED, ids=[f"{path}={new!s:.12}" for path, new, _ in REFUSED])
def test_what_a_header_may_not_say(path: str, new: Json, message: str) -> None:
    """Each wrong field is refused with its path, and the schema refuses it where one field decides alone."""
    wrong = mutate(make_header().to_json(), path, new)
    with pytest.raises(SchemaError, match=message):
        TicketHeader.from_json(wrong)
    crosses_fields = path in (
        "k",
        "stage_tokens",
        "preprocessing.mean",
        "selector.blocks",
        "grid.rows",
    ) and new not in (..., 0, True, "6")
    surrogate = new == "\ud800"
    assert crosses_fields or surrogate or list(violations(wrong, SCHEMA))


def test_a_later_minor_version_is_read() -> None:
    """Version 1.7 with something new under 'extensions' opens; the new part is kept."""
    later = make_header().to_json() | {"version": "1.7", "extensions": {"new": 1}}
    header = TicketHeader.from_json(later)
    assert header.to_json() == later
    assert list(violations(later, SCHEMA)) == []


def test_headers_made_in_python_are_checked_too() -> None:
    """Values that JSON cannot hold, or not exactly, are refused where they are made."""
    import numpy as np

    with pytest.raises(SchemaError, match="k: must be from 1 to 16"):
        make_header(k=99)
    with pytest.raises(SchemaError, match=r"header.extensions.a: cannot hold a int64"):
        make_header(extensions={"a": np.int64(3)})
    with pytest.raises(SchemaError, match=r"header.extensions.a: must be a finite number"):
        make_header(extensions={"a": float("inf")})


def test_differences_name_every_field() -> None:
    """A user who resumes with other settings reads which ones, file first."""
    found = differences(
        make_header(), make_header(k=5, keep="0.3", view=ViewSpec("whole", 32, 40), extensions={"a": 1})
    )
    assert found == [
        "k: file has 6, asked 5",
        "keep: file has 0.375, asked 0.3",
        "view.width: file has 32, asked 40",
        "extensions.a: file has nothing, asked 1",
    ]


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":2}', '{"a":NaN}', '{"a":1e999}', '{"a":-Infinity}', "[" * 40 + "]" * 40, "{", ""]
)
def test_json_that_is_refused(text: str) -> None:
    """Duplicate keys, numbers that are none, depth: what Python's reader would take."""
    with pytest.raises(SchemaError, match="place: "):
        parse(text.encode(), "place")


@pytest.mark.parametrize("raw", [b"\xff", b"[" * 100_000, b'{"a":' + b"9" * 10_000 + b"}", b'"\x00"'])
def test_bytes_that_are_no_json(raw: bytes) -> None:
    """Bad UTF-8, unbounded depth and unbounded numbers are errors of ours, not of Python's."""
    with pytest.raises(SchemaError, match="place: "):
        parse(raw, "place")


def violations(value: Json, schema: Json, path: str = "header") -> Any:
    """The paths at which a value breaks the schema: the keywords that header.schema.json uses, no more."""
    known = {"$schema", "$id", "title", "description", "type", "const", "enum", "pattern", "maxLength"}
    known |= {"minimum", "maximum", "maxProperties"}
    known |= {"exclusiveMinimum", "items", "minItems", "maxItems", "properties", "required", "additionalProperties"}
    assert set(schema) <= known, set(schema) - known
    kinds = {"string": str, "boolean": bool, "object": dict, "array": list}
    kind = schema.get("type")
    number = type(value) in (int, float)
    if kind and not (
        number and (kind == "number" or type(value) is int)
        if kind in ("integer", "number")
        else type(value) is kinds[kind]
    ):
        yield path
        return
    checks = [
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        "pattern" not in schema or re.search(schema["pattern"], value),
        "maxLength" not in schema or len(value) <= schema["maxLength"],
        "minimum" not in schema or value >= schema["minimum"],
        "maximum" not in schema or value <= schema["maximum"],
        "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"],
        "minItems" not in schema or len(value) >= schema["minItems"],
        "maxItems" not in schema or len(value) <= schema["maxItems"],
        "maxProperties" not in schema or len(value) <= schema["maxProperties"],
        set(schema.get("required", ())) <= set(value) if isinstance(value, dict) else True,
    ]
    if not all(checks):
        yield path
    if kind == "array" and "items" in schema:
        for index, item in enumerate(value):
            yield from violations(item, schema["items"], f"{path}[{index}]")
    if kind == "object":
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            if inner is False:
                yield f"{path}.{key}"
            elif inner is not True:
                yield from violations(item, inner, f"{path}.{key}")


def test_schema_accepts_what_is_written() -> None:
    """Headers that dlth writes are valid by the published schema."""
    assert list(violations(make_header().to_json(), SCHEMA)) == []
    assert (
        list(violations(make_header(form="top", selector=make_header().selector, license="CC0-1.0").to_json(), SCHEMA))
        == []
    )


def test_schema_has_the_dataclass_fields() -> None:
    """Same fields, all required, none beyond, same types: the schema cannot fall behind the code."""

    def compare(kind: Any, schema: Json, path: str) -> None:
        if dataclasses.is_dataclass(kind):
            hints = get_type_hints(kind)
            assert schema["type"] == "object", path
            assert schema["additionalProperties"] is False, path
            assert set(schema["properties"]) == set(schema["required"]) == set(hints), path
            for name, hint in hints.items():
                compare(hint, schema["properties"][name], f"{path}.{name}")
        elif get_origin(kind) is tuple:
            assert schema["type"] == "array", path
            compare(get_args(kind)[0], schema["items"], path)
        else:
            names = {str: "string", int: "integer", float: "number", bool: "boolean"}
            assert schema["type"] == names.get(kind, "object"), path

    compare(TicketHeader, SCHEMA, "header")


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (97, 1201), (301, 300), (231, 677)])
@pytest.mark.parametrize(
    ("target", "crop_pct"), [((224, 224), "0.875"), ((224, 224), "0.9"), ((64, 64), "1"), ((192, 224), "0.95")]
)
def test_center_view_is_timms_evaluation_crop(size: tuple[int, int], target: tuple[int, int], crop_pct: str) -> None:
    """Resized size and crop offsets equal what timm's evaluation transform does to an image of that size."""
    from timm.data import create_transform

    spec = ViewSpec("center", *target, crop_pct=crop_pct)
    steps = create_transform((3, *target), is_training=False, crop_pct=float(crop_pct), crop_mode="center").transforms
    height, width = size
    ramp = Image.new("L", (width, height))
    resized = steps[0](ramp)
    assert spec.resized(height, width) == (resized.height, resized.width)
    marked = Image.new("L", resized.size)
    top, left = spec.crop(height, width)
    marked.putpixel((left, top), 255)
    assert steps[1](marked).getpixel((0, 0)) == 255


def test_views_of_a_spec() -> None:
    """'whole' is the identity; 'center' of a 500x375 image cuts the sides and the frame that 0.875 leaves."""
    grid = Grid(14, 14)
    assert ViewSpec("whole", 224, 224).view_of(375, 500, grid).matrix.tolist() == [[1, 0, 0], [0, 1, 0]]
    (a, b, c), (d, e, f) = ViewSpec("center", 224, 224, crop_pct="0.875").view_of(375, 500, grid).matrix
    assert (b, d) == (0, 0)
    assert (e, f) == pytest.approx((224 / 256, 16 / 256))
    assert (a, c) == pytest.approx((224 / 341, 58 / 341))
