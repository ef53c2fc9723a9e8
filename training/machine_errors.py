"""Errors of the machine and of programs: no other input would mend them, and nothing of tickets raises them.

They are of the one family all the same, for the command line and for scripts that match on codes.
"""

from dlth.tickets.errors import DlthError


class OutOfMemoryError(DlthError, MemoryError):
    """This machine has not the memory that the work needs."""

    code = "E_MEMORY"


class MachineError(DlthError, OSError):
    """The operating system refuses or fails: descriptors, processes, a disk's errors; no input would mend it."""

    code = "E_OS"


class RankError(DlthError, ConnectionError):
    """Another process of this run ended, or cannot be reached any more."""

    code = "E_RANK"


class BugError(DlthError):
    """Something that nobody foresaw: a mistake of dlth's or of a library's, to be reported."""

    code = "E_BUG"
