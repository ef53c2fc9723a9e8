"""The specification's examples run, and its numbers are the code's."""

import json
import re
import shutil
from importlib import resources
from pathlib import Path

import pytest
from makers import GOLDEN

from dlth.tickets import TicketStore, errors
from dlth.tickets.format import layout
from dlth.tickets.format.header import MAX_ITEMS, MAX_TEXT
from dlth.tickets.format.jsontext import MAX_DEPTH

README = (resources.files("dlth.tickets") / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines of zarr and numpy, and ten with dlth, as they stand, on a golden file."""
    shutil.copytree(GOLDEN, tmp_path / "tickets.zarr")
    monkeypatch.chdir(tmp_path)
    plain, checked = EXAMPLES
    names: dict[str, object] = {}
    exec(compile(plain, "README.md", "exec"), names)
    store = TicketStore(GOLDEN)
    assert (
        {key: value.tolist() for key, value in names["tickets"].items()}
        == {  # type: ignore[attr-defined]
            key: ranking[:6].tolist() for key, ranking in zip(store.keys(0), store.patches(0), strict=True)
        }
    )
    exec(compile(checked, "README.md", "exec"), names)
    assert names["best"].shape == (2, 6)  # type: ignore[attr-defined]


def test_the_metadata_is_as_printed() -> None:
    """The zarr.json in the specification is what the code asks for, but for the letters."""
    printed = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert printed is not None
    filled = re.sub(r"\bS\b", "2", re.sub(r"\bR\b", "3", re.sub(r"\bP\b", "20", printed[1])))
    assert json.loads(filled) == TicketStore(GOLDEN).layout.patches.meta(2)


def test_the_bounds_are_as_printed() -> None:
    """Every bound in the text is the one in the code."""
    assert (
        f"S ≤ {layout.MAX_SHARDS:,}; rows ≤ 10⁹ in all; a decoded chunk ≤ 64 MiB; W ≤ {layout.MAX_KEY_BYTES:,}"
        in README
    )
    assert (layout.MAX_CHUNK_BYTES, layout.MAX_MANIFEST_BYTES, layout.MAX_META_BYTES) == (2**26, 2**26, 2**16)
    assert (
        f"at most {MAX_TEXT:,} characters, lists and objects at most {MAX_ITEMS} entries, JSON at most {MAX_DEPTH}"
        in README
    )


def test_every_code_is_explained() -> None:
    """The table of errors has every class of the family, under its code."""
    table = dict(re.findall(r"^\| (E_\w+) \| (\w+)", README, re.MULTILINE))
    family = {kind.code: kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)}
    assert table == {code: name for code, name in family.items() if code != "E_DLTH"}
