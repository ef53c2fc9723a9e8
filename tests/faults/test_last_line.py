"""The last line of defence: whatever a command meets ends in one message with a code, and a documented exit code."""

import errno
import os
import pwd
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, ROOT
from typer.main import get_command

from dlth.pipeline.cli.app import app
from dlth.pipeline.cli.environment import mend_environment
from dlth.pipeline.cli.error_handler import guarded
from dlth.pipeline.cli.exit_codes import EXIT_BUG, EXIT_DAMAGE, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_READER_GONE
from dlth.tickets import TicketStore
from dlth.training.distributed.signals import EXIT_RESUMABLE

DLTH = [sys.executable, "-c", "from dlth.pipeline.cli.error_handler import main; main()"]

Run = Callable[..., tuple[int, str, str]]


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def endless(depth: int = 0) -> int:
    return endless(depth + 1)


def told(command: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, code of the error, the whole message; one line, and never a traceback."""
    code, said = guarded(command), capsys.readouterr().err
    found = re.fullmatch(r"error\[(E_\w+)\]: .+\n", said)
    assert found, said
    return code, found[1], said


def test_every_error_of_the_system_names_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Each errno there is, with a path that holds an escape: exit code 2, the path escaped, what the system said."""
    codes = {}
    for number, name in errno.errorcode.items():
        code, kind, said = told(raising(OSError(number, os.strerror(number), "a/b\x1b[2J\n.tar")), capsys)
        assert code == 2, name
        assert r"a/b\x1b[2J\n.tar: " in said, name
        assert os.strerror(number) in said, name
        codes[name] = kind
    places = ("EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOTDIR", "EISDIR", "ELOOP")
    assert {codes.pop(name) for name in places} == {"E_INPUT"}
    assert {codes.pop(name) for name in ("ENOSPC", "EDQUOT", "EFBIG")} == {"E_SPACE"}
    assert {codes.pop(name) for name in ("EMFILE", "ENFILE", "EIO")} == {"E_OS"}
    assert (codes["ENOENT"], codes["ENOMEM"], codes["ECONNRESET"]) == ("E_MISSING_FILE", "E_MEMORY", "E_TRANSFER")


def test_what_libraries_make_of_the_machine_is_told_apart_from_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory, text and the system's words inside other exceptions have their code; nothing else passes as known."""
    text = "PytorchStreamWriter failed: No space left on device"
    known = (
        (MemoryError(), "E_MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "E_MEMORY"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "E_MEMORY"),
        (RuntimeError(text), "E_SPACE"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), "E_OS"),
        (RuntimeError("can't start new thread"), "E_OS"),
        (OSError("a library's own words"), "E_OS"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "E_INPUT"),
        (ConnectionResetError("gone"), "E_TRANSFER"),
    )
    for error, code in known:
        assert told(raising(error), capsys)[:2] == (2, code), error
    for error in (KeyError("a"), ZeroDivisionError(), SystemExit(0), SystemExit("a library's farewell"), EOFError()):
        assert told(raising(error), capsys)[:2] == (70, "E_BUG"), error
    assert told(endless, capsys)[:2] == (70, "E_BUG")
    assert guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_of_ours_leaves_a_report_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names a file of mode 0600 with the traceback, escaped; without a place for it, it is said."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, _, said = told(raising(ValueError("odd \x9b\u202e text\nsecond line")), capsys)
    assert r"ValueError: odd \x9b\u202e text)" in said
    [report] = tmp_path.iterdir()
    assert str(report) in said
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    text = report.read_text()
    assert "in command" in text
    assert text.replace("\n", "").isprintable()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert guarded(raising(ValueError("again"))) == 70
    said = capsys.readouterr().err
    assert "ValueError: again" in said
    assert "no file could be written" in said


STREAMS = {
    "full": (">/dev/full", 2, "error[E_SPACE]: the result cannot be written to standard output: No space left"),
    "full help": ("--help >/dev/full", 2, "error[E_SPACE]"),
    "closed": (">&-", 0, ""),
    "all closed": (">&- 2>&- <&-", 0, ""),
    "messages full": ("2>/dev/full", 0, ""),
    "broken pipe": ("| sh -c 'exec <&-; sleep 0'; exit ${PIPESTATUS[0]}", 141, ""),
    "ASCII": ("| cat; exit ${PIPESTATUS[0]}", 0, ""),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_that_cannot_take_the_result(name: str) -> None:
    """Full, closed and broken streams and an encoding without the marks end as documented, without a traceback."""
    words, code, said = STREAMS[name]
    line = f'"$@" tickets info "$TICKETS" {words}'
    environment = os.environ | {"TICKETS": str(GOLDEN), "PYTHONIOENCODING": "ascii" if name == "ASCII" else "utf-8"}
    run = ["bash", "-c", line, "bash", *DLTH]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr[: len(said)]) == (code, said), done.stderr
    assert done.stderr.count("\n") == (1 if said else 0)
    if name == "ASCII":
        assert r"\u25a0" in done.stdout


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """With standard streams closed, what a library prints by number does not land in the file that is written."""
    words = ["tickets", "control", str(GOLDEN), "--kind", "centre", "--out", str(tmp_path / "c.zarr")]
    hook = (
        "import os, sys\n"
        "def printing(event, args):\n"
        "    if event == 'os.rename': os.write(1, b'a library says'); os.write(2, b'something')\n"
        "sys.addaudithook(printing)\n" + DLTH[-1]
    )
    run = ["bash", "-c", '"$@" >&- 2>&- <&-', "bash", sys.executable, "-c", hook, *words]
    assert subprocess.run(run, timeout=120).returncode == 0
    assert TicketStore(tmp_path / "c.zarr").verify() == []


def test_interrupted_while_python_still_imports() -> None:
    """Ctrl-C during the imports ends as one later does: a word, exit code 130."""
    hook = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'zarr': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n" + DLTH[-1]
    )
    done = subprocess.run([sys.executable, "-c", hook, "tickets", "info"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


ODD = (
    ({"RANK": "abc"}, "the environment variable RANK is 'abc'"),
    ({"RANK": "-1", "WORLD_SIZE": "2"}, "the environment variable RANK is '-1'"),
    ({"RANK": "7", "WORLD_SIZE": "2"}, "RANK is 7 and WORLD_SIZE 2"),
    ({"WORLD_SIZE": "٣"}, "the environment variable WORLD_SIZE is"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and RANK is not set"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "do not find each other"),
    ({"DLTH_CONFIG": "/"}, "$DLTH_CONFIG names /"),
)


@pytest.mark.parametrize(("variables", "message"), ODD)
def test_odd_variables_are_refused_by_name(
    variables: dict[str, str],
    message: str,
    dlth: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_shards: Callable[..., Any],
) -> None:
    """A rank that is no number, ranks that do not fit, a port that is none: one message that names the variable."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shards = make_shards(1, 2).spec
    code, _, said = dlth(
        "train", "--arm", "dense", "--data", shards, "--val", shards, "--recipe", "smoke", "--out", tmp_path / "run"
    )
    assert (code, message in said, "Traceback" in said) == (2, True, False), said


def test_an_odd_terminal_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS=0 printed empty tables, COLUMNS=² ended rich's import: both are as if absent, as every other oddity."""
    run = [*DLTH, "tickets", "diff", str(GOLDEN), str(GOLDEN)]
    tables = [
        subprocess.run(run, capture_output=True, timeout=120, check=True, env=os.environ | {"COLUMNS": columns}).stdout
        for columns in ("0", "²", "80")
    ]
    assert tables[0] == tables[1] == tables[2] != b""
    for columns in ("-3", "9" * 5000, "many", " 80", "0080000"):
        monkeypatch.setenv("COLUMNS", columns)
        mend_environment()
        assert "COLUMNS" not in os.environ


def test_a_user_without_home_and_passwd_entry(
    dlth: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_shards: Callable[..., Any]
) -> None:
    """As in containers: the cache is a folder of this user's alone in the temporary one, and no one else's."""

    def nobody(number: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "DLTH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shards = make_shards(1, 2).spec
    assert dlth("index", shards)[0] == 0
    folder = tmp_path / f"dlth-cache-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    code, _, said = dlth("index", shards)
    assert (code, "set DLTH_CACHE" in said) == (2, True)


def test_a_working_folder_that_is_gone(dlth: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder removed under the shell is told as the cause, and not a path that looks right."""
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, said = dlth("tickets", "info", "t.zarr")
    assert (code, "the folder that dlth was started in is gone" in said) == (2, True), said


def _commands(group: Any, *names: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield from _commands(command, *names, name) if hasattr(command, "commands") else [(*names, name)]


def test_every_command_keeps_to_the_exit_codes(dlth: Run) -> None:
    """Help is 0 and a word that no command knows is 2, for each command that there is; the codes are documented."""
    for words in _commands(get_command(app)):
        assert dlth(*words, "--help")[0] == 0, words
        code, said, advice = dlth(*words, "--no-such-option\x1b[2J")
        assert (code, said, "Usage" in advice, "\x1b" in advice) == (2, "", True, False), words
    text = (ROOT / "docs" / "faults.md").read_text()
    codes = {int(code) for code in re.findall(r"(?:Exit codes: |· |·\n)(\d+) ", text)}
    assert codes == {0, EXIT_DAMAGE, EXIT_INPUT, EXIT_BUG, EXIT_RESUMABLE, EXIT_INTERRUPTED, EXIT_READER_GONE}
