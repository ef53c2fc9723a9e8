"""Digits are ASCII: no other script's become a number, and none is a traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
from makers import ROOT
from typer.testing import CliRunner

from dlth.data.images.rand_augment import RandAugment
from dlth.data.joining.row_labels import class_number
from dlth.data.packing.imagenet import name_and_synset, validation_labels
from dlth.data.remote.addresses import patience
from dlth.data.remote.cache import cache_limit
from dlth.data.shards.sources import expand_braces
from dlth.pipeline.cli.app import app
from dlth.pipeline.cli.exchange import _grid
from dlth.pipeline.cli.ticket_info import _part
from dlth.tickets.errors import DlthError
from dlth.tickets.ranking.budget import exact_rate
from dlth.training.settings.fields import _literal
from dlth.training.settings.layering import layered

ONE = ("１", "١", "²")  # full-width and Arabic-Indic digits are numbers to Python, the superscript is a digit and none
BYTES = ("scan.py", "pax.py", "tar.py")  # there the digits are of bytes, which have ASCII's alone

REFUSED: dict[str, Callable[[str], object]] = {
    "share of patches": lambda one: exact_rate(f"0.{one}"),
    "part of a file": lambda one: _part(f"{one}/2"),
    "grid": lambda one: _grid(f"{one}x14"),
    "class": lambda one: class_number(one, ()),
    "augmentation": lambda one: RandAugment.parse(f"rand-m{one}"),
    "setting": lambda one: layered({"data": "d", "out": "o", "arm": "dense", "epochs": one}),
}


@pytest.mark.parametrize("one", ONE, ids=ascii)
@pytest.mark.parametrize("case", REFUSED)
def test_other_digits_are_users_mistakes(case: str, one: str) -> None:
    """Where a number is asked for, one error of the family, and it shows what was given."""
    REFUSED[case]("1")
    with pytest.raises(DlthError, match=one):
        REFUSED[case](one)


@pytest.mark.parametrize("one", ONE, ids=ascii)
def test_other_digits_are_text(one: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a number may stand, they are something else: a name, a brace's item, a model argument's text."""
    assert expand_braces(f"a-{{{one}..3}}.tar") == [f"a-{one}..3.tar"]
    assert name_and_synset(f"n0144076{one}_1") == (f"n0144076{one}_1", None)
    assert _literal(one) == one
    (tmp_path / "truth.txt").write_text(f"{one}\n")
    with pytest.raises(DlthError):
        validation_labels(tmp_path / "truth.txt")
    for variable, read in (("DLTH_CACHE_GB", cache_limit), ("DLTH_TIMEOUT", patience)):
        monkeypatch.setenv(variable, one)
        with pytest.raises(DlthError):
            read()


@pytest.mark.parametrize("flag", [("train", "--epochs"), ("train", "--lr"), ("pack", "s", "--shard-size")])
def test_flags_take_ascii_digits(flag: tuple[str, ...]) -> None:
    """The command line's own types would take them."""
    done = CliRunner().invoke(app, [*flag, "１"])
    assert done.exit_code == 2
    assert "is not a valid" in done.output


def test_the_source_asks_for_ascii() -> None:
    """No pattern says \\d of text, no text is asked for digits and not for ASCII, no flag has a type of its own."""
    found = []
    files = [path for folder in ("tickets", "data", "training", "pipeline") for path in (ROOT / folder).rglob("*.py")]
    assert {"scan.py", "flags.py"} <= {path.name for path in files}
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            asked = any(f".{name}()" in line for name in ("isdigit", "isdecimal", "isnumeric"))
            pattern = "\\d" in line and "re." in line and 'rb"' not in line
            own = "Annotated[int" in line and "typer.Option" in line and "parser=integer" not in line
            if pattern or own or (asked and "isascii" not in line and path.name not in BYTES):
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert found == []
