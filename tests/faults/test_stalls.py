"""Servers that stall: at each point the wait is bounded, said, and ends in one clear error; what came is kept."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from makers.servers import FolderServer
from makers.tickets import make_store

from dlth.data.remote.cache import open_shard
from dlth.data.remote.storage import Facts
from dlth.data.shards.sources import resolve
from dlth.data.sharing.share import pull
from dlth.data.sharing.transfer import BLOCK, download
from dlth.tickets import TicketStore
from dlth.tickets.errors import InputError, TransferError
from dlth.tickets.exchange.archive import pack

SHORT = "0.3"  # seconds; a minute in earnest
WHOLE = 2 * BLOCK + 1_000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderServer]:
    """A server of `served/`; minutes are tenths of a second."""
    monkeypatch.setenv("DLTH_TIMEOUT", SHORT)
    monkeypatch.setattr("dlth.data.remote.retry.WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr("dlth.data.remote.stall_log.FIRST_WORD", 0.1)
    monkeypatch.setattr("dlth.data.sharing.share._SIGNATURE_SECONDS", 0.3)
    (tmp_path / "served").mkdir()
    found = FolderServer(tmp_path / "served")
    with found.running():
        yield found


@pytest.mark.parametrize("point", ["facts", "head", "body"])
def test_a_stall_is_said_and_bounded(
    server: FolderServer, tmp_path: Path, point: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the facts, before an answer's head, within its body: a word meanwhile, then how far it came and advice."""
    (tmp_path / "served/big.bin").write_bytes(bytes(WHOLE))
    server.stalls["/big.bin"] = point
    kept = {"facts": 0, "head": 0, "body": 2 * BLOCK}[point]
    wanted = "no answer within 0.3 seconds" if point == "facts" else rf"stalls: {kept:,} of {WHOLE:,} bytes came"
    with caplog.at_level(logging.WARNING, "dlth"), pytest.raises(TransferError, match=wanted) as caught:
        download(f"{server.url}/big.bin", tmp_path / "part")
    assert "DLTH_TIMEOUT sets the seconds" in str(caught.value)
    assert f"waiting for {server.url}/big.bin: nothing moved for 0.1 seconds" in caplog.messages
    server.stalls.clear()
    download(f"{server.url}/big.bin", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == bytes(WHOLE)


@pytest.mark.usefixtures("server")
def test_a_place_that_never_answers(tmp_path: Path) -> None:
    """A port that takes the connection and says nothing is a stall as well, of shards as of tickets."""
    quiet = FolderServer(tmp_path)  # nobody accepts: the kernel takes the connection alone
    url = f"{quiet.url}/a.tar"
    with pytest.raises(TransferError, match=r"a\.tar: the server stalls: no answer within 0.3 seconds"):
        download(url, tmp_path / "part")
    with pytest.raises(TransferError, match=r"a\.tar: the server stalls: 0 of 5,000 bytes came, then none for 0.3 sec"):
        open_shard(url, Facts(5_000, "x"), tmp_path / "cache")
    quiet.server_close()


def test_slow_bytes_are_told(server: FolderServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A shard that drips from a slow server is no stall: the log says how many bytes are there."""
    (tmp_path / "served/a.tar").write_bytes(bytes(20))
    server.stalls["/a.tar"] = "drip"
    with caplog.at_level(logging.WARNING, "dlth"), pytest.raises(Exception, match="changed after its index"):
        open_shard(f"{server.url}/a.tar", Facts(20, "x"), tmp_path / "cache")
    assert any(re.fullmatch(r"fetching .*a.tar: [1-9]\d* of 20 bytes", text) for text in caplog.messages)


def test_a_small_file_that_drips_comes_to_an_end(
    server: FolderServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that comes byte by byte is given up after the seconds for a whole file; nobody says that nothing moved."""
    monkeypatch.setattr(
        "dlth.data.remote.stall_log.FIRST_WORD", 0.25
    )  # a byte comes every 0.05 seconds, five times as often
    (tmp_path / "served/_info.json").write_bytes(bytes(1_000))
    server.stalls["/_info.json"] = "drip"
    wanted = r"_info\.json: the server stalls: only \d+ bytes came within 0.3 seconds"
    with caplog.at_level(logging.WARNING, "dlth"), pytest.raises(TransferError, match=wanted):
        resolve(server.url)


@pytest.mark.parametrize("point", ["head", "body", "drip"])
def test_a_signature_never_holds_up_a_whole_file(server: FolderServer, tmp_path: Path, point: str) -> None:
    """The ticket file is there; a signature that stalls or drips is given up soon, and said."""
    store = TicketStore(make_store(tmp_path / "t.zarr"))
    pack(store, tmp_path / "served/t.zip")
    (tmp_path / "served/t.zip.sig").write_bytes(bytes(1_000))
    server.stalls["/t.zip.sig"] = point
    notes: list[str] = []
    before = time.monotonic()
    assert pull(f"{server.url}/t.zip", tmp_path / "mine.zarr", note=notes.append) == store.identity
    assert time.monotonic() - before < 20  # it dripped for 50 seconds otherwise, or stalled for ever
    assert len(notes) == 1
    assert notes[0].startswith(f"the signature was not fetched: {server.url}/t.zip.sig: the server stalls")
    assert not (tmp_path / "mine.zarr.sig").exists()


def test_seconds_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DLTH_TIMEOUT is a number of seconds above 0; anything else is told before a connection is made."""
    for text in ("0", "-1", "soon", "nan", "inf", "1e9"):
        monkeypatch.setenv("DLTH_TIMEOUT", text)
        with pytest.raises(InputError, match=f"DLTH_TIMEOUT must be a number of seconds .* got '{text}'"):
            download("http://127.0.0.1:1/a.zip", tmp_path / "part")
