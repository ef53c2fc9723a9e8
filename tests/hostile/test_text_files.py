"""Settings and lists that a user names: any of them is read within its bound, or refused with one clear error."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dlth.pipeline.project.file import project_file
from dlth.pipeline.project.record import obstacles, record_shards
from dlth.tickets.errors import DlthError, InputError, LimitError, MissingFileError, UnsafeError
from dlth.tickets.user_files import named_lines, read_named
from dlth.training.settings.toml_text import parse_toml, read_toml

DEEP = "nested more than 16 deep"
SETTINGS = {
    "a key of 100,000 parts": (".".join("a" * 100_000) + " = 1", DEEP),
    "quoted parts": (" . ".join(["'a'", '"b\\""'] * 10_000) + " = 1", DEEP),
    "a table of 100,000 parts": ("[" + ".".join("a" * 100_000) + "]", DEEP),
    "a key inside an inline table, behind quotes": (f'x = {{a = """b"""", {".".join("c" * 90_000)} = 1}}', DEEP),
    "brackets": ("x = " + "[" * 100_000, DEEP),
    "inline tables": ("x = " + "{a=" * 50_000, DEEP),
    "a number of 50,000 digits": ("x = " + "1" * 50_000, "is not TOML"),
    "a number of 50,000 hexadecimal digits": ("x = 0x" + "f" * 50_000, "more than 64 bits"),
    "quotes without an end": ("x = " + '"\\"' * 80_000, "is not TOML"),
    "too long": ("#" * 300_000, "more than 262,144 bytes"),
}

READ = """
import json, pathlib, resource, sys
from dlth.pipeline.project.file import project_file
from dlth.tickets.errors import DlthError
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        project_file("train", path)
    except DlthError as error:
        print(json.dumps(str(error)))
"""


def test_settings_that_would_take_gigabytes(tmp_path: Path) -> None:
    """Deep, long and odd TOML ends in an error of ours within 200 MB: keys of any spelling, brackets, numbers."""
    files = []
    for number, (text, _) in enumerate(SETTINGS.values()):
        files.append(tmp_path / f"{number}.toml")
        files[-1].write_text(text)
    done = subprocess.run([sys.executable, "-c", READ, *map(str, files)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(SETTINGS)
    for (name, (_, wanted)), text in zip(SETTINGS.items(), said, strict=True):
        assert wanted in text, name
        assert ".toml" in text
        assert len(text) < 1_000


def test_settings_as_editors_write_them(tmp_path: Path) -> None:
    """A byte order mark, other line ends, dots in strings and comments, a link: read as any other."""
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfdata = 'a'\r\n[train]\r\nepochs = 3 # " + b"." * 100)
    (tmp_path / "link.toml").symlink_to(file)
    assert read_toml(tmp_path / "link.toml") == {"data": "a", "train": {"epochs": 3}}
    dots = ".".join("a" * 100)
    text = f'a = "{dots}"\nb = \'{dots}\'\nc = """{dots}\n{dots}"""""\nd = [[1.5, -2e3], [{{e = "{dots}"}}]] # {dots}'
    assert parse_toml(text, "a")["d"] == [[1.5, -2000.0], [{"e": dots}]]
    file.write_bytes(data := "data = 'ü'".encode("utf-16"))
    with pytest.raises(InputError, match="cannot be read as configuration file"):
        project_file("train", file)
    assert file.read_bytes() == data


def test_lists_from_places_that_never_end(tmp_path: Path) -> None:
    """A device, a folder, a pipe that pours for ever, one that nobody writes into: one error, and soon."""
    fifo, poured = tmp_path / "fifo", tmp_path / "poured"
    os.mkfifo(fifo)
    os.mkfifo(poured)
    threading.Thread(target=_pour, args=(poured,), daemon=True).start()
    refused: dict[str, type[DlthError]] = {
        "/dev/zero": UnsafeError,
        "/dev/null": UnsafeError,
        str(tmp_path): UnsafeError,
        str(poured): LimitError,
        str(fifo): InputError,
        str(tmp_path / "none"): MissingFileError,
        str(fifo / "below"): MissingFileError,
        "a\0b": InputError,
        "a" * 5_000: InputError,
    }
    for path, error in refused.items():
        with pytest.raises(error):
            named_lines(path, 2**16, 100, "list of keys")
    (tmp_path / "short").write_bytes(b"\n" * 2**16)
    with pytest.raises(LimitError, match=r"has more than 100 lines, the bound of a list of keys"):
        named_lines(tmp_path / "short", 2**16, 100, "list of keys")


def _pour(path: Path) -> None:
    try:
        with path.open("wb") as file:
            while True:
                file.write(b"key\n" * 1_000)
    except BrokenPipeError:
        pass


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_pipes_are_read_to_their_end(pause: float) -> None:
    """What ``--keys <(command)`` names is read whole, also where the command takes its time."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            for _ in range(3):
                threading.Event().wait(pause)
                file.write(b"key\r\n" * 10_000)
                file.flush()

    threading.Thread(target=write, daemon=True).start()
    assert read_named(f"/dev/fd/{reading}", 2**20, "list") == b"key\r\n" * 30_000
    os.close(reading)


Tell = Callable[[Path], object]
PLACES: dict[str, tuple[Tell, str]] = {
    "a FIFO": (os.mkfifo, "is not a regular file, and is left as it is"),
    "a folder": (Path.mkdir, "is not a regular file, and is left as it is"),
    "deep": (lambda path: path.write_text("a" + ".a" * 50_000 + " = 1"), DEEP),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe"), "is not TOML"),
    "too long": (lambda path: path.write_bytes(b"#" * 300_000), "more than 262,144 bytes"),
}


@pytest.mark.parametrize("name", PLACES)
def test_pack_leaves_what_is_no_file_of_settings(name: str, tmp_path: Path) -> None:
    """Whatever stands where dlth.toml would: told before the work and after it, and left as it is."""
    make, wanted = PLACES[name]
    path = tmp_path / "dlth.toml"
    make(path)
    before = path.lstat()
    for told in (
        obstacles(tmp_path / "shards", "train"),
        record_shards(tmp_path / "shards", "train", ["a-000000.tar"]),
    ):
        assert len(told) == 1
        assert wanted in told[0]
    assert path.lstat() == before


def test_pack_writes_through_a_link_and_behind_a_mark(tmp_path: Path) -> None:
    """A linked dlth.toml stays a link, a byte order mark stays first, a table with such a key is no obstacle."""
    own = tmp_path / "own" / "settings.toml"
    own.parent.mkdir()
    own.write_bytes(b"\xef\xbb\xbf[train]\ndata = 'x'\n")
    path = tmp_path / "dlth.toml"
    path.symlink_to(own)
    assert obstacles(tmp_path / "shards", "train") == []
    record_shards(tmp_path / "shards", "train", ["a-000000.tar"])
    assert path.is_symlink()
    assert own.read_bytes() == b"\xef\xbb\xbfdata = \"shards/a-000000.tar\"\n[train]\ndata = 'x'\n"
    assert read_toml(path) == {"data": "shards/a-000000.tar", "train": {"data": "x"}}
