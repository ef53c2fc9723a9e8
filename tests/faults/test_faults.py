"""Short forms of the faults that `make torture` takes at length, and those that need no long form."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.campaign import run_script
from makers.runs import select_config
from makers.tickets import tree_bytes

from dlth.data.shards.index import open_index
from dlth.pipeline.selection.stage import plan, select
from dlth.tickets import TicketStore
from dlth.tickets.errors import DlthError, MissingFileError

Make = Callable[..., Any]


def test_a_full_disk(tmp_path: Path) -> None:
    """At 20 sizes: the old file is whole, the error says what is needed, and the same command then ends well."""
    code, told = run_script("faults/full_disk.py", tmp_path, 20)
    assert code == 0
    assert told["runs"] == 20
    assert told["full"] >= 10


def test_a_full_disk_in_training(tmp_path: Path) -> None:
    """At three sizes, of a page and more: what stands under a run's names is whole, and a retry gives its weights."""
    code, told = run_script("faults/full_disk_train.py", tmp_path, 3, warm=True)
    assert code == 0
    assert (told["runs"], told["full"]) == (3, 3)


def test_a_full_disk_under_the_ticket_tools() -> None:
    """All that write, where there is room for half: one E_SPACE, nothing half-written, and the same command again."""
    with tempfile.TemporaryDirectory() as short:  # sockets lie on that disk, whose paths end at 107 bytes
        code, told = run_script("faults/full_disk_tools.py", Path(short), 1)
    assert (code, told["findings"]) == (0, [])
    assert told["runs"] == told["tools"]
    assert told["full"] > 15, "what fits into one page is never too much"


def test_a_read_only_disk(tmp_path: Path) -> None:
    """Finished files are read there; writing is refused with the place and what to do."""
    code, told = run_script("faults/read_only.py", tmp_path)
    assert code == 0
    for message in told.get("messages", {}).values():
        assert "cannot be written (Read-only file system): choose another place" in message


def test_killed_at_random_moments(make_shards: Make, tmp_path: Path) -> None:
    """kill -9 six times: nothing unfinished opens, and the end is the same bytes."""
    shards = make_shards(2, [3, 2])
    (tmp_path / "out").mkdir()
    code, told = run_script("faults/kill_moments.py", shards.spec, tmp_path / "out", 6, warm=True)
    assert code == 0
    assert told["kills"] == 6


def test_cut_and_flipped_shards() -> None:
    """Every fourth 64-byte cut and 300 flipped bits: no sample is lost or exchanged without a word."""
    code, told = run_script("faults/tars.py", "--cuts", 4, "--flips", 300)
    assert (code, told["findings"]) == (0, [])
    assert told["outcomes"]["refused E_DAMAGE"] > 200


def test_the_same_damage_without_checksums() -> None:
    """Python's tarfile in place of dlth's walk loses samples on the same damage: the test above can fail."""
    code, told = run_script("faults/tars.py", "--cuts", 16, "--flips", 200, "--weaken")
    assert code == 1
    assert any("samples instead of 10" in finding for finding in told["findings"])


def test_clocks_do_not_matter(make_shards: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day back, ten years on, frozen; shards dated in the future or 1970: the same bytes."""
    shards = make_shards(2, [3, 2])
    now = time.time()
    trees = []
    for clock, date in ((now - 86_400, 0), (now + 10 * 365 * 86_400, 4_000_000_000), (0.0, 1_000_000_000)):
        for path in shards.paths:
            os.utime(path, (date, date))
        out = tmp_path / f"{clock}.zarr"
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda clock=clock: clock)
            patch.setattr(time, "time_ns", lambda clock=clock: int(clock * 1e9))
            assert select(plan(select_config(shards.spec, out))).complete
        trees.append(tree_bytes(out))
    assert trees[0] == trees[1] == trees[2]


def test_a_shard_vanishes(make_shards: Make, tmp_path: Path) -> None:
    """Gone between planning and reading: an error with its name; back again, the run ends with the same bytes."""
    shards = make_shards(2, [3, 2])
    select(plan(select_config(shards.spec, tmp_path / "whole.zarr")))
    prepared = plan(select_config(shards.spec, tmp_path / "t.zarr"))
    hidden = shards.paths[1].rename(tmp_path / "hidden.tar")
    with pytest.raises(MissingFileError, match=r"train-000001\.tar is missing"):
        select(prepared)
    assert not (tmp_path / "t.zarr").exists()
    hidden.rename(shards.paths[1])
    assert select(plan(select_config(shards.spec, tmp_path / "t.zarr"))).complete
    assert tree_bytes(tmp_path / "t.zarr") == tree_bytes(tmp_path / "whole.zarr")


def test_a_shard_is_exchanged_or_cut_after_it_was_indexed(make_shards: Make, tmp_path: Path) -> None:
    """An index that no longer fits its shard is noticed before an image is believed."""
    shards = make_shards(1, 4)
    index = open_index(shards.spec)
    whole = shards.paths[0].read_bytes()
    other = make_shards(1, 4, seed=1, folder=tmp_path / "other").paths[0].read_bytes()
    for content in (other, whole[: len(whole) // 2], b""):
        shards.paths[0].write_bytes(content)
        with pytest.raises(DlthError, match=r"train-000000\.tar"):
            index.read_many(range(4))


def test_stale_leftovers_of_a_kill_do_not_bar_the_way(make_shards: Make, tmp_path: Path) -> None:
    """Lock files and temporary files that a killed run left behind are nobody's: the next run goes on at once."""
    shards = make_shards(2, [3, 2])
    select(plan(select_config(shards.spec, tmp_path / "whole.zarr")))
    partial = tmp_path / "t.zarr.partial"
    for name in ("locks", "temp", "store/patches", "commits"):
        (partial / name).mkdir(parents=True)
    for name in ("locks/create", "locks/finish", "locks/000000", "temp/000000.0", "temp/create.1"):
        (partial / name).write_bytes(b"pid 1")
    assert select(plan(select_config(shards.spec, tmp_path / "t.zarr"))).complete
    assert TicketStore(tmp_path / "t.zarr").verify() == []
    assert tree_bytes(tmp_path / "t.zarr") == tree_bytes(tmp_path / "whole.zarr")
