"""What tests/gpu found on the device, as the page tells it: how each test ended, also one that measures nothing or was
not run, and each difference that was measured.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device.page import Table
from device.timing import Row
from dlth.tickets.errors import InputError, shown

HOLDS = {True: "yes", False: "**NO**", None: ""}


@dataclass(frozen=True)
class Right:
    """Each test's name, claim, result (passed, failed, not run) and why it was not run; rows of what was compared."""

    tests: Sequence[Mapping[str, str]]
    rows: Sequence[Row]

    @classmethod
    def read(cls, path: Path) -> "Right":
        """What tests/gpu wrote with --gpu-table. Raises InputError for a file that is not there, or another one."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            why = f"--tests {shown(path)} is not what pytest tests/gpu --gpu-table writes, or cannot be read"
            raise InputError(f"{why}: {shown(error)}") from error

    @property
    def verdict(self) -> str:
        """One line: how many tests passed, failed, and were not run, and why not; the names of those that failed."""
        if not self.tests:
            return "**The tests (`tests/gpu`) were not run beside this.**"
        count = Counter(test["result"] for test in self.tests)
        whys = "; ".join(sorted({test["why"] for test in self.tests if test["why"]}))
        told = (
            f"{len(self.tests)} tests: {count['passed']} passed, {count['failed']} failed, {count['not run']} not run"
        )
        told += f" ({whys})" if whys else ""
        failed = ", ".join(f"`{test['test']}`" for test in self.tests if test["result"] == "failed")
        return f"**NOT RIGHT HERE.** {told}. Failed: {failed}." if failed else f"{told}."

    def tables(self) -> list[Table]:
        """Of tests, one line for all cases of one, and of differences."""
        rows = [row | {"tolerance": _bound(row["tolerance"]), "holds": HOLDS[row["holds"]]} for row in self.rows]
        return [
            Table("Tests (`tests/gpu`)", "What each claims, and how many cases of it ended how.", self._by_claim()),
            Table(
                "Largest differences (`tests/gpu`)",
                "From the same on the CPU, or from what the row names. *relative*: a share of it; *absolute*: in its"
                " own unit; *count*: a number of things. *told*: a number that claims nothing.",
                rows,
            ),
        ]

    def _by_claim(self) -> list[Row]:
        cases: dict[str, list[Mapping[str, str]]] = {}
        for test in self.tests:
            cases.setdefault(test["test"].partition("[")[0], []).append(test)
        return [{"claim": each[0]["claim"], "test": f"`{name}`"} | _ended(each) for name, each in cases.items()]


def _bound(tolerance: float | None) -> object:
    return "told" if tolerance is None else tolerance


def _ended(cases: Sequence[Mapping[str, str]]) -> Row:
    count = Counter(case["result"] for case in cases)
    whys = "; ".join(sorted({case["why"] for case in cases if case["why"]}))
    failed = f"**{count['failed']}**" if count["failed"] else 0
    return {"passed": count["passed"], "failed": failed, "not run": f"{count['not run']}: {whys}" if whys else 0}
