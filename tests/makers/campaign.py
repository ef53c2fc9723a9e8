"""Seeded campaigns: each number is judged in bounded time, what came of it is counted, and findings fail the script.

A script of a campaign prints one JSON object, and its exit code is 1 with findings; `run_script` reads it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dlth.tickets.errors import DlthError
from makers import TESTS
from makers.warm import run_warm


class HangError(BaseException):
    """The time is over; no `except Exception` of anybody stops it."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise HangError in the block when the time is over."""

    def ring(*_: object) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def numbered(doc: str, count: int) -> argparse.ArgumentParser:
    """The arguments of a campaign: which numbers, and whether a defence is switched off, when findings must come."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--weaken", action="store_true")
    return parser


class Tally:
    """What came of a campaign: counts of outcomes, and findings in words."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.findings: list[str] = []

    def judge(self, name: object, judged: Callable[[], str], seconds: float = 20) -> None:
        """Count an outcome in a word, 'refused CODE' of an error of dlth's; 'FINDING: …' and all else is a finding."""
        try:
            with within(seconds):
                outcome = judged()
        except DlthError as error:
            outcome = f"refused {error.code}"
        except HangError:
            outcome = f"FINDING: hung for more than {seconds} s"
        except Exception as error:  # whatever it is, it is no answer to a user
            outcome = f"FINDING: {type(error).__name__}: {str(error)[:200]}"
        word, _, text = outcome.partition(": ")
        self.outcomes[word if word == "FINDING" else outcome] += 1
        if word == "FINDING":
            self.findings.append(f"{name}: {text}")

    def tell(self, **counts: Any) -> int:
        """Print everything; gives the exit code."""
        print(json.dumps(counts | {"outcomes": self.outcomes, "findings": self.findings[:20]}))
        return 1 if self.findings else 0


def run_script(name: str, *arguments: object, warm: bool = False) -> tuple[int, dict[str, Any]]:
    """Exit code of a script below tests/, and the JSON object that it printed; `warm` for one that imports torch."""
    command = [str(TESTS / name), *map(str, arguments)]
    if warm:
        [done] = run_warm(command)
    else:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)
