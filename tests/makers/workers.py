"""Workers of a study in processes of their own, which die when they are told to."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

import torch

from dlth.pipeline.evidence.run_states import RunState
from dlth.pipeline.studies.worker import StudyReporter

# PyTorch's autograd counts devices at a process's first backward. After a compiler's first graph it finds one whose
# threads no child may use, and refuses every backward in a forked one; before it, none, for good.
torch.ones(1, requires_grad=True).sum().backward()


class SignalAt(StudyReporter):
    """Sends this process a signal once so many steps of the study are seen to be done."""

    def __init__(self, number: int, steps: int) -> None:
        self.number, self.steps = number, steps

    def looked(self, states: Sequence[RunState]) -> None:
        if self.number and sum(state.step for state in states) >= self.steps:
            os.kill(os.getpid(), self.number)
            self.number = 0


def forked(work: Callable[[], object]) -> int:
    """Begin work in a child process, which has the imports of this one; gives its process id."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        except BaseException:  # nobody else would tell it
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(status)
    return child


def ended(child: int) -> int:
    """The exit code of a child; a signal's number, negative, if that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
