"""Odd tars: what dlth takes, every other reader takes alike."""

import os
from pathlib import Path

import webdataset
from makers.campaign import run_script

from dlth.data.shards.tar import members


def test_refused_or_the_same_members() -> None:
    """Of 2,000 odd tars each is refused with the shard's name, or has the names and bytes that tarfile finds."""
    code, told = run_script("hostile/odd_tars.py", "--count", 2_000)
    assert (code, told["findings"]) == (0, [])
    assert told["outcomes"]["the same members"] > 400
    assert told["outcomes"]["refused E_UNSAFE"] > 800


def test_without_disputes_members_differ() -> None:
    """The same tars, read as before, hide samples or show others: the test above can fail."""
    code, told = run_script("hostile/odd_tars.py", "--count", 300, "--weaken")
    assert code == 1
    assert any("tarfile has" in finding for finding in told["findings"])


def test_webdatasets_own_shards_pass(tmp_path: Path) -> None:
    """What its writer makes, in GNU's format with long names, is disputed in nothing."""
    path, keys = tmp_path / "s.tar", ["a", "b" * 150]
    with webdataset.TarWriter(str(path)) as writer:
        for key in keys:
            writer.write({"__key__": key, "jpg": b"\xff\xd8", "cls": 3})
    descriptor = os.open(path, os.O_RDONLY)
    names = [member.name for member in members(descriptor, path.stat().st_size, where="s.tar")]
    os.close(descriptor)
    assert sorted(names) == sorted(f"{key}.{suffix}" for key in keys for suffix in ("jpg", "cls"))
