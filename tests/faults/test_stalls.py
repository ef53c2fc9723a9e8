"""Servers that stall: at each point the wait is bounded, said, and ends in one clear error; what came is kept."""

from __future__ import annotations

import logging
import re
import runpy
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dlth.data.cache import open_shard
from dlth.data.remote import Facts
from dlth.data.share import pull
from dlth.data.sources import resolve
from dlth.data.transfer import BLOCK, download
from dlth.tickets import TicketStore
from dlth.tickets.archive import pack
from dlth.tickets.errors import InputError, TransferError

SHORT = "0.3"  # seconds; a minute in earnest
WHOLE = 2 * BLOCK + 1_000


class Handler(SimpleHTTPRequestHandler):
    """A folder with byte ranges; whatever `stalls` says so of stays without an answer, or without the rest of one."""

    server: Stalling

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match is not None
        start, stop = int(match[1]), min(int(match[2]) + 1, len(content))
        stalls = self.server.stalls.get(self.path, "")
        if stalls == "head":
            self.server.ended.wait()
        self.send_response(206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        if stalls == "body" and stop == len(content):
            self.wfile.write(content[start : start + 100])
            self.server.ended.wait()
        if stalls == "drip":
            for at in range(start, stop):
                self.wfile.write(content[at : at + 1])
                if self.server.ended.wait(0.05):
                    return
        self.wfile.write(content[start:stop])

    def do_HEAD(self) -> None:
        if self.server.stalls.get(self.path) == "facts":
            self.server.ended.wait()
        super().do_HEAD()

    def log_message(self, *args: object) -> None:
        pass


class Stalling(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.stalls: dict[str, str] = {}
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: object) -> None:
        pass  # a client that gave up


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stalling]:
    """A server of `served/`; minutes are tenths of a second."""
    monkeypatch.setenv("DLTH_TIMEOUT", SHORT)
    monkeypatch.setattr("dlth.data.fetch.WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr("dlth.data.remote.WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr("dlth.data.waiting.FIRST_WORD", 0.1)
    monkeypatch.setattr("dlth.data.share._SIGNATURE_SECONDS", 0.3)
    (tmp_path / "served").mkdir()
    found = Stalling(tmp_path / "served")
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    found.ended.set()
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("point", ["facts", "head", "body"])
def test_a_stall_is_said_and_bounded(
    server: Stalling, tmp_path: Path, point: str, caplog: pytest.LogCaptureFixture
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


def test_a_place_that_never_answers(tmp_path: Path, server: Stalling) -> None:
    """A port that takes the connection and says nothing is a stall as well, of shards as of tickets."""
    server.ended.clear()
    quiet = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # nobody accepts: the kernel takes the connection alone
    url = f"http://127.0.0.1:{quiet.server_address[1]}/a.tar"
    with pytest.raises(TransferError, match=r"a\.tar: the server stalls: no answer within 0.3 seconds"):
        download(url, tmp_path / "part")
    with pytest.raises(TransferError, match=r"a\.tar: the server stalls: 0 of 5,000 bytes came, then none for 0.3 sec"):
        open_shard(url, Facts(5_000, "x"), tmp_path / "cache")
    quiet.server_close()


def test_slow_bytes_are_told(server: Stalling, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A shard that drips from a slow server is no stall: the log says how many bytes are there."""
    (tmp_path / "served/a.tar").write_bytes(bytes(20))
    server.stalls["/a.tar"] = "drip"
    with caplog.at_level(logging.WARNING, "dlth"), pytest.raises(Exception, match="changed after its index"):
        open_shard(f"{server.url}/a.tar", Facts(20, "x"), tmp_path / "cache")
    assert any(re.fullmatch(r"fetching .*a.tar: [1-9]\d* of 20 bytes", text) for text in caplog.messages)


def test_a_small_file_that_drips_comes_to_an_end(
    server: Stalling, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that comes byte by byte is given up after the seconds for a whole file; nobody says that nothing moved."""
    monkeypatch.setattr("dlth.data.waiting.FIRST_WORD", 0.25)  # a byte comes every 0.05 seconds, five times as often
    (tmp_path / "served/_info.json").write_bytes(bytes(1_000))
    server.stalls["/_info.json"] = "drip"
    wanted = r"_info\.json: the server stalls: only \d+ bytes came within 0.3 seconds"
    with caplog.at_level(logging.WARNING, "dlth"), pytest.raises(TransferError, match=wanted):
        resolve(server.url)


@pytest.mark.parametrize("point", ["head", "body", "drip"])
def test_a_signature_never_holds_up_a_whole_file(server: Stalling, tmp_path: Path, point: str) -> None:
    """The ticket file is there; a signature that stalls or drips is given up soon, and said."""
    write_store = runpy.run_path(str(Path(__file__).parents[1] / "tickets" / "conftest.py"))["write_store"]
    store = TicketStore(write_store(tmp_path / "t.zarr"))
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
