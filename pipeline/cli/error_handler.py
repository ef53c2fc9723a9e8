"""The last line of defence of the `dlth` command: whatever happens ends in one message and a documented exit code.

Errors of the family say themselves. What the operating system refuses, a lack of memory and text in no encoding get
their places in the family here, for the places where nobody foresaw them. Anything else is a mistake of dlth's or of a
library's: its traceback goes into a file that can be sent, and not over the user's screen. Causes are mended where they
arise, and this module stays without knowledge of any of them.

It imports next to nothing, so that Ctrl-C during the second that the other imports take ends as it does later.
"""

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from dlth.pipeline.cli.exit_codes import EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_READER_GONE

if TYPE_CHECKING:
    from dlth.tickets.errors import DlthError

_PLACES = {
    errno.EACCES: "check the permissions of it and of the folders above it",
    errno.EPERM: "check the permissions of it and of the folders above it",
    errno.EROFS: "choose a place on another disk",
    errno.ENAMETOOLONG: "choose a shorter name; most disks take 255 bytes a name",
    errno.ENOTDIR: "a file stands where the path needs a folder",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ELOOP: "its links lead in a circle",
    errno.EEXIST: "choose another name, or remove what stands there",
    errno.ENOTEMPTY: "choose another name, or remove what stands there",
    errno.ENXIO: "name a regular file",
    errno.ENODEV: "name a regular file",
}
"""What makes a place unusable -> what to do."""
_MACHINE = {
    errno.EMFILE: "use fewer --workers, or allow more open files (ulimit -n)",
    errno.ENFILE: "use fewer --workers, or wait until other programs have ended",
    errno.EAGAIN: "use fewer --workers, or allow more processes (ulimit -u; a container's limit on pids)",
    errno.EIO: "the disk or the network file system fails: look at the system's log before you go on",
    errno.ESTALE: "the network file system lost the file: run again",
}
_NO_THREAD = "can't start new thread"
"""What Python says where the system says EAGAIN."""
_NO_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate memory|bad_alloc|failed to map segment", re.I)


def main() -> None:
    """Entry point of the `dlth` command."""
    sys.exit(guarded(_command))


def guarded(command: Callable[[], int]) -> int:
    """The exit code of a command, whatever it raises; what went wrong is said on standard error."""
    try:
        from dlth.pipeline.cli.environment import mend_environment
        from dlth.pipeline.cli.streams import ReaderGoneError, harmless

        mend_environment()

        try:
            with harmless():
                try:
                    return command()
                except ReaderGoneError:
                    raise
                except (Exception, SystemExit) as error:  # no library may choose the exit code
                    return _told(error)
        except ReaderGoneError:
            return EXIT_READER_GONE
        except Exception as error:  # the last flush of standard output, or no descriptor for the streams
            return _told(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED


def _command() -> int:
    """Run what the command line says. A command is called without typer's own net, which hides a broken pipe."""
    import typer
    from typer import rich_utils

    from dlth.pipeline.cli.app import command_line
    from dlth.tickets.errors import plain

    try:
        with command_line.make_context("dlth", sys.argv[1:]) as context:
            context.command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except cast(tuple[type[typer.BadParameter], ...], typer.BadParameter.__bases__) as usage:  # any mistake of words
        usage.message = plain(usage.message)
        rich_utils.rich_format_error(usage)
        return EXIT_INPUT
    return 0


def _told(error: BaseException) -> int:
    """Say what went wrong; the exit code."""
    from dlth.training.machine_errors import BugError

    known = meant(error) or _bug(error)
    sys.stderr.write(f"error[{known.code}]: {known}\n")
    return EXIT_BUG if isinstance(known, BugError) else EXIT_INPUT


def meant(error: BaseException) -> "DlthError | None":
    """The error of the family that an exception is to a user; None for one that nobody foresaw."""
    from dlth.tickets import errors
    from dlth.training import machine_errors

    if isinstance(error, errors.DlthError):
        return error
    if isinstance(error, ModuleNotFoundError) and _is_left_out(error):
        return errors.InputError(
            f"this command needs {error.name}, which a light installation leaves out: install dlth whole (pip install ."
            " in its folder)"
        )
    handed_on = isinstance(error, RuntimeError | ImportError) and _NO_MEMORY.search(str(error))
    if isinstance(error, MemoryError) or handed_on:
        return machine_errors.OutOfMemoryError(
            f"this machine's memory is too small for this work ({_first_line(error)}): use a smaller --batch-size and"
            " fewer --workers, or free some"
        )
    if isinstance(error, UnicodeError):
        return errors.InputError(
            f"a name or a file holds text that cannot be read or written here ({_first_line(error)}): texts must be"
            " UTF-8; for names of files set LANG to a UTF-8 locale, or PYTHONUTF8=1"
        )
    return _refused(error)


def _refused(error: BaseException) -> "DlthError | None":
    """An error of the operating system's, or of a library that hands one on as text."""
    from dlth.tickets import errors
    from dlth.training import machine_errors

    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        handed_on = (*errors.FULL, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
        number = next((known for known in handed_on if os.strerror(known) in str(error)), None)
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        number = errno.EAGAIN
    if number is None and not isinstance(error, OSError):
        return None
    place, what = _place(error), os.strerror(number) if number else _first_line(error)
    if isinstance(error, ConnectionError | TimeoutError):
        return errors.TransferError(f"{place}{what}: a connection failed; run the same command again")
    if number in errors.FULL:
        return errors.SpaceError(f"{place}{what}: free some and run again; everything finished before is whole")
    if number == errno.ENOMEM:
        return machine_errors.OutOfMemoryError(f"{place}{what}: free some memory, or use fewer --workers")
    if number == errno.ENOENT:
        gone = "" if _has_folder() else "; the folder that dlth was started in is gone: change into another"
        return errors.MissingFileError(f"{place}{what}: check the path{gone}")
    if number in _PLACES:
        return errors.InputError(f"{place}{what}: {_PLACES[number]}")
    return machine_errors.MachineError(f"{place}{what}: {_MACHINE.get(number or 0, 'the operating system refuses')}")


def _place(error: BaseException) -> str:
    """The paths that an error of the operating system's names."""
    from dlth.tickets.errors import shown

    paths = [getattr(error, name, None) for name in ("filename", "filename2")]
    named = [shown(os.fsdecode(path) if isinstance(path, bytes) else path) for path in paths if path is not None]
    return " -> ".join(named) + ": " if named else ""


def _has_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _bug(error: BaseException) -> "DlthError":
    """An unforeseen error, its traceback written to a file for a report."""
    import platform
    import tempfile
    import traceback
    from importlib.metadata import version

    from dlth.tickets.errors import plain, shown
    from dlth.training.machine_errors import BugError

    made = f"dlth {version('dlth')}, Python {platform.python_version()}, {platform.platform()}"
    report = plain(f"{made}\n{' '.join(map(repr, sys.argv))}\n\n{''.join(traceback.format_exception(error))}")
    try:
        handle, path = tempfile.mkstemp(prefix="dlth-bug-", suffix=".txt")  # for this user's eyes alone: 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(report)
        where = f"{shown(path)} holds the details: look through it and report it with what you did"
    except OSError as problem:
        sys.stderr.write(report)
        where = f"report the lines above with what you did (no file could be written: {shown(problem)})"
    return BugError(
        f"something that dlth did not foresee ({type(error).__name__}: {_first_line(error)}). This is a mistake in dlth"
        f" or a library, not yours; what was finished before is whole. {where}."
    )


def _first_line(error: BaseException) -> str:
    from dlth.tickets.errors import shown

    return shown(next(iter(str(error).splitlines()), "")) or type(error).__name__


def _is_left_out(error: ModuleNotFoundError) -> bool:
    """Whether a package is missing that dlth's whole installation has: anything else is a mistake of ours."""
    from importlib.metadata import requires

    needed = {re.split(r"[^\w-]", need)[0].lower() for need in requires("dlth") or () if "extra ==" not in need}
    missing = (error.name or "").partition(".")[0].lower()
    return {"pil": "pillow"}.get(missing, missing) in needed
