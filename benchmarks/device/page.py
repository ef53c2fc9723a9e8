"""What was measured as Markdown, and its place in docs/benchmarks.md between two marks; the rest of the page stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rounds import markdown

from device.timing import Row
from dlth.tickets.errors import InputError, shown
from dlth.training.run_files import write_text

DEVICE = "device"
"""What the marks of docs/benchmarks.md name."""


@dataclass(frozen=True)
class Table:
    """A heading, a sentence or two on what is shown, and the rows."""

    title: str
    words: str
    rows: Sequence[Row]

    def __str__(self) -> str:
        return f"### {self.title}\n\n{self.words}\n\n{markdown(self.rows)}"


def section(facts: Mapping[str, str], command: str, verdict: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The whole section as Markdown, under the device's name; the verdict of the tests stands first."""
    about = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "device")
    told = "\n".join(f"- {note}" for note in notes)
    head = f"## On a GPU: {facts['device']} (`{command}`)\n\n{verdict}\n\n{about}."
    return "\n\n".join(filter(None, [head, told, *map(str, filter(lambda table: table.rows, tables))]))


def put_into(page: Path, text: str, name: str = DEVICE) -> None:
    """Replace what stands between the marks of that name. Raises InputError for a page that has not both, once."""
    begin_mark, end_mark = marks(name)
    old = page.read_text()
    before, begin, rest = old.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not (begin and end) or begin_mark in rest or end_mark in before + after:
        raise InputError(f"{shown(page)} must have the lines {begin_mark} and {end_mark}, each once")
    write_text(page, f"{before}{begin_mark}\n{text}\n{end_mark}{after}")


def marks(name: str) -> tuple[str, str]:
    """The lines between which a section stands; they do not show on a page."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
