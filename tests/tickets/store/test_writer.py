"""One writer and many: who owns a shard, what is refused, and that the bytes depend on the rows alone."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import TESTS
from makers.tickets import make_header, make_specs, make_store, make_tickets, tree_bytes

from dlth.tickets import ShardSpec, TicketStore, TicketWriter
from dlth.tickets.errors import DamageError, InputError, LimitError, LockedError, MismatchError, SchemaError, SpaceError

ROWS = (3, 5, 2)


@pytest.fixture
def writer(tmp_path: Path) -> TicketWriter:
    return TicketWriter(tmp_path / "toy.zarr", make_header(), make_specs(), 12)


def test_order_of_writing_does_not_matter(tmp_path: Path, writer: TicketWriter) -> None:
    """Shards written backwards, by two writers in turn, give the same bytes and the same identity."""
    other = TicketWriter(writer.path, writer.header, writer.shards, 12)
    for index in (2, 1, 0):
        with (writer, other)[index % 2].claim(index) as mine:
            assert mine
            (writer, other)[index % 2].write(index, make_tickets(index, ROWS[index]))
    assert writer.missing() == other.missing() == []
    assert other.finish()
    assert writer.finish()
    straight = make_store(tmp_path / "straight.zarr")
    assert tree_bytes(writer.path) == tree_bytes(straight)
    assert TicketStore(writer.path).identity == TicketStore(straight).identity
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["straight.zarr", "toy.zarr"]


def test_one_writer_owns_a_shard(writer: TicketWriter) -> None:
    """A claimed shard is not handed out twice, a finished one not at all, and an unclaimed one cannot be written."""
    other = TicketWriter(writer.path, writer.header, writer.shards, 12)
    with writer.claim(0) as mine, other.claim(0) as theirs, other.claim(1) as another:
        assert (mine, theirs, another) == (True, False, True)
        with pytest.raises(LockedError, match=r"shard toy-000000.tar must be claimed before it is written"):
            other.write(0, make_tickets(0, 3))
    with other.claim(0) as theirs:
        assert theirs
        other.write(0, make_tickets(0, 3))
    with writer.claim(0) as mine:
        assert not mine
    assert writer.missing() == [1, 2]
    assert not writer.finish()
    assert not writer.path.exists()


def test_a_claim_dies_with_its_process(writer: TicketWriter) -> None:
    """A child that was forked while the shard was claimed (a loader worker) does not keep a dead parent's claim."""
    (alive_read, alive_write), (end_read, end_write) = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        with writer.claim(0):
            if os.fork() == 0:
                os.close(end_write)
                os.write(alive_write, b"x")
                os.read(end_read, 1)  # until the test closes its end
                os._exit(0)
            os.read(alive_read, 1)
            os._exit(0)
    try:
        assert os.waitpid(parent, 0)[1] == 0
        with writer.claim(0) as mine:  # the worker is alive still
            assert mine
    finally:
        for end in (alive_read, alive_write, end_read, end_write):
            os.close(end)


def test_finished_files_are_left_alone(store_path: Path) -> None:
    """Running again on a finished file does nothing, even where nothing may be written."""
    before = tree_bytes(store_path)
    writer = TicketWriter(store_path, make_header(), make_specs(), 12)
    assert writer.complete
    assert writer.missing() == []
    with writer.claim(0) as mine:
        assert not mine
    assert writer.finish()
    assert tree_bytes(store_path) == before
    assert not store_path.with_name("toy.zarr.partial").exists()


@pytest.mark.parametrize("finished", [False, True], ids=["unfinished", "finished"])
def test_other_settings_are_refused_by_name(tmp_path: Path, finished: bool) -> None:
    """The same name with another header, shard list or key width: every difference is named, nothing is touched."""
    path = tmp_path / "toy.zarr"
    if finished:
        make_store(path)
    else:
        TicketWriter(path, make_header(), make_specs(), 12)
    shards = [*make_specs()[:1], ShardSpec("other.tar", 9), *make_specs()[2:], ShardSpec("more.tar", 1)]
    with pytest.raises(MismatchError) as caught:
        TicketWriter(path, make_header(k=5, keep="0.3", creator="me\x1b"), shards, 16)
    assert str(caught.value).split("\n")[1:] == [
        "  k: file has 6, asked 5",
        "  keep: file has 0.375, asked 0.3",
        "  creator: file has , asked me\\x1b",
        "  number of shards: file has 3, asked 4",
        "  shard 1: file has toy-000001.tar with 5 rows, asked other.tar with 9 rows",
        "  key width: file has 12, asked 16",
    ]
    TicketWriter(path, make_header(), make_specs(), 12)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    """A folder, file or dangling link under the wanted name stops the run before anything is made."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(InputError, match=f"{name} exists and is not a finished ticket file; choose another name"):
            TicketWriter(tmp_path / name, make_header(), make_specs(), 12)
    assert len(list(tmp_path.iterdir())) == 3


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("repeated patch", {"patches": np.zeros((3, 16), int)}, "row 0 names a patch twice"),
    ("patch outside", {"patches": np.full((3, 16), 16)}, r"row 0 names a patch outside 0 … 15 \(found 16\)"),
    ("negative patch", {"patches": np.arange(-1, 15) * np.ones((3, 1), int)}, r"outside 0 … 15 \(found -1\)"),
    ("too few patches", {"patches": np.zeros((3, 6), int)}, r"'patches' must have shape \[3, 16\], got \[3, 6\]"),
    ("float patches", {"patches": np.zeros((3, 16))}, "'patches' has the wrong type float64"),
    ("too few rows", {"keys": ("a", "b")}, "2 keys were given for 3 rows"),
    ("empty key", {"keys": ("a", "", "b")}, "the key '' of row 1 must be 1 to 12 bytes"),
    ("long key", {"keys": ("a", "ß" * 7, "b")}, "the key 'ßßßßßßß' of row 1 must be 1 to 12 bytes"),
    ("NUL in key", {"keys": ("a", "b\0", "c")}, r"the key 'b\\x00' of row 1"),
    ("surrogate in key", {"keys": ("a", "\udc80", "c")}, r"the key '\\udc80' of row 1 is not valid Unicode"),
    ("repeated key", {"keys": ("a", "b", "a")}, "the key 'a' stands in rows 0 and 2"),
    ("short hash", {"images": np.zeros((3, 8), np.uint8)}, r"'images' must have shape \[3, 16\]"),
    ("hash type", {"images": np.zeros((3, 16), np.int64)}, "'images' has the wrong type int64"),
    ("negative gap", {"gap": np.array([0, -1, 0], np.float32)}, "row 1 has the gap -1.0"),
    ("NaN gap", {"gap": np.array([0, 0, np.nan], np.float32)}, "row 2 has the gap nan"),
    ("skipped as numbers", {"skipped": np.zeros(3, int)}, "'skipped' has the wrong type int64"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_rows_are_refused(writer: TicketWriter, change: dict[str, Any], message: str) -> None:
    """No rule can be broken by a writer: the shard and the row are named, and the shard stays missing."""
    wrong = dataclasses.replace(make_tickets(0, 3), **change)
    with writer.claim(0), pytest.raises(InputError, match=f"shard toy-000000.tar: .*{message}"):
        writer.write(0, wrong)
    assert writer.missing() == [0, 1, 2]


def test_a_key_in_two_shards_is_refused_at_the_end(writer: TicketWriter) -> None:
    """Keys are unique in the whole file; the message names the key and both shards, and no file appears."""
    for index, rows in enumerate(ROWS):
        rows_of = make_tickets(index, rows)
        with writer.claim(index):
            writer.write(
                index, dataclasses.replace(rows_of, keys=(*rows_of.keys[:-1], "same") if index else rows_of.keys)
            )
    with pytest.raises(InputError, match=r"the key 'same' stands in the shards toy-000001.tar and toy-000002.tar"):
        writer.finish()
    assert not writer.path.exists()


@pytest.mark.parametrize("name", ["patches/c.1.0.0", "keys/c.1.0.0", "images/c.1.0.0", "gap/c.1.0"])
def test_damage_before_the_end_is_found_and_redone(writer: TicketWriter, tmp_path: Path, name: str) -> None:
    """Every byte is read back before the file gets its name; the damaged shard alone is done again."""
    for index, rows in enumerate(ROWS):
        with writer.claim(index):
            writer.write(index, make_tickets(index, rows))
    chunk = tmp_path / "toy.zarr.partial/store" / name
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamageError, match=rf"{name} \(shard toy-000001.tar\) .*taken back: run the same command again"):
        writer.finish()
    assert not writer.path.exists()
    assert writer.missing() == [1]
    with writer.claim(1):
        writer.write(1, make_tickets(1, 5))
    assert writer.finish()
    assert tree_bytes(writer.path) == tree_bytes(make_store(tmp_path / "straight.zarr"))


def test_damaged_bookkeeping_is_named(writer: TicketWriter) -> None:
    """A plan or record that is not what was written stops the run with its name."""
    partial = writer.path.with_name("toy.zarr.partial")
    for index, rows in enumerate(ROWS):
        with writer.claim(index):
            writer.write(index, make_tickets(index, rows))
    (partial / "commits/000002.json").write_text('{"name":1}')
    with pytest.raises(DamageError, match=r"commits/000002.json is damaged.*taken back"):
        writer.finish()
    assert writer.missing() == [2]
    (partial / "plan.json").write_text("{}")
    with pytest.raises(DamageError, match=r"toy.zarr.partial: plan.json is damaged; remove the folder to begin again"):
        TicketWriter(writer.path, make_header(), writer.shards, 12)


def test_plans_that_cannot_be(tmp_path: Path) -> None:
    """Shard lists and sizes are bounded before anything is allocated or made."""
    cases: list[tuple[list[ShardSpec], int, type[Exception], str]] = [
        ([], 8, LimitError, "0 shards with 0 rows"),
        ([ShardSpec("a", 0)], 8, LimitError, "1 shards with 0 rows"),
        ([ShardSpec("a", 1), ShardSpec("a", 1)], 8, SchemaError, "the name 'a' appears twice"),
        ([ShardSpec("", 1)], 8, SchemaError, "a name must be text of 1 to 1000 characters"),
        ([ShardSpec("a", -1)], 8, SchemaError, "the rows of 'a' must be a whole number, got -1"),
        ([ShardSpec("a", 1)], 0, LimitError, "the number of key bytes must be from 1 to 1024, got 0"),
        ([ShardSpec("a", 10**7)], 8, LimitError, "one shard's 'patches' would take 160000000 bytes, the bound is"),
    ]
    for shards, key_width, error, message in cases:
        with pytest.raises(error, match=message):
            TicketWriter(tmp_path / "t.zarr", make_header(), shards, key_width)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_everything_whole(tmp_path: Path) -> None:
    """Whatever the size at which files can no longer grow, the error says so, and the next run gives the same bytes.

    A limit on file size (the kernel's EFBIG, as a quota gives) stands for the full disk: it needs no rights.
    """
    script = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from makers.tickets import make_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from dlth.tickets.errors import SpaceError
path, limits = Path(sys.argv[2]), map(int, sys.argv[3:])
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        make_store(path)
    except SpaceError as error:
        assert error.code == "E_SPACE" and "no space left for" in str(error), error
        print(limit, path.exists(), sorted((path.with_name(path.name + ".partial") / "temp").iterdir()))
    else:
        print(limit, "done")
"""
    limits = [str(limit) for limit in (0, 60, 150, 300, 600, 1_200, 2_400)]
    done = subprocess.run(
        [sys.executable, "-c", script, str(TESTS), str(tmp_path / "toy.zarr"), *limits],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:4] == [f"{limit} False []" for limit in limits[:4]]
    assert all(line.endswith(("False []", "done")) for line in lines)
    make_store(tmp_path / "toy.zarr")
    assert tree_bytes(tmp_path / "toy.zarr") == tree_bytes(make_store(tmp_path / "straight.zarr"))


def test_only_space_errors_are_called_so(tmp_path: Path) -> None:
    """Disk full, quota and file size become SpaceError, no permission InputError; other trouble keeps its own name."""
    from dlth.tickets.store.disk import space_errors

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with pytest.raises(SpaceError, match=r"no space left for 7 bytes in .*: free some"), space_errors(tmp_path, 7):
            raise OSError(number, "full")
    with pytest.raises(InputError, match=r"cannot be written \(no\): choose another place"), space_errors(tmp_path, 7):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(InterruptedError), space_errors(tmp_path, 7):
        raise InterruptedError(errno.EINTR, "no")
