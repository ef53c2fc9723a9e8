"""Servers that answer what was not asked: every answer is bounded by the question and ends in one clear error."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from makers.campaign import run_script
from makers.servers import Headers, Player
from makers.tickets import make_store

from dlth.data.remote.cache import open_shard
from dlth.data.remote.fetch import blocks
from dlth.data.remote.storage import Facts, facts, read_small
from dlth.data.shards.sources import resolve
from dlth.data.sharing.transfer import BLOCK, download
from dlth.tickets import TicketStore
from dlth.tickets.errors import DlthError, LimitError, MissingFileError, SpaceError, TransferError
from dlth.tickets.exchange.archive import pack

SIZE = 100_000
CONTENT = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)
ENDLESS = 64 * 2**20  # what an endless body stops at, so that a test that fails ends


@pytest.fixture
def player() -> Iterator[Callable[..., Player]]:
    """``player(play)`` -> a running `Player`."""
    with ExitStack() as running:

        def start(play: Any) -> Player:
            server = Player(play)
            running.enter_context(server.running())
            return server

        yield start


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another try comes at once."""
    monkeypatch.setattr("dlth.data.remote.retry.WAITS", (0.0, 0.0, 0.0))


def said(start: int, stop: int, total: object = SIZE) -> str:
    return f"bytes {start}-{stop - 1}/{total}"


ANSWERS: dict[str, tuple[int, Headers, bytes | int, str]] = {
    "packed": (206, {"Content-Encoding": "gzip", "Content-Range": said(0, SIZE)}, 2**16, r"packs its answer \(gzip\)"),
    "packed in two": (200, {"Content-Encoding": "br, gzip"}, 2**16, r"packs its answer \(br, gzip\)"),
    "longer than asked": (206, {"Content-Range": said(0, SIZE), "Content-Length": str(ENDLESS)}, ENDLESS, "asked for"),
    "more than it said": (206, {"Content-Range": said(0, SIZE)}, ENDLESS, "more bytes than it said"),
    "without an end": (200, {}, ENDLESS, "more bytes than it said"),
    "a longer whole": (200, {"Content-Length": str(ENDLESS)}, ENDLESS, "no longer the 100,000 bytes"),
    "another part": (206, {"Content-Range": said(1, SIZE)}, CONTENT[1:], "bytes 0-99999 were asked for"),
    "a shorter part": (206, {"Content-Range": said(0, 10)}, CONTENT[:10], "were asked for"),
    "a part of another file": (206, {"Content-Range": said(0, SIZE, SIZE + 1)}, CONTENT, "no longer the 100,000 bytes"),
    "a part of nothing": (206, {}, CONTENT, "says it sends ''"),
    "odd numbers": (206, {"Content-Range": "bytes +0-99999/100000"}, CONTENT, "were asked for"),
    "a huge range": (206, {"Content-Range": f"bytes 0-{'9' * 4000}/*"}, CONTENT, "were asked for"),
    "no such range": (416, {"Content-Length": "0"}, b"", "no longer the 100,000 bytes"),
    "a refusal": (403, {"Content-Length": "0"}, b"", "cannot be reached: the server answers 403 Forbidden"),
    "always busy": (503, {"Content-Length": "0"}, b"", "did not come in 4 tries: the server answers 503"),
    "a loop": (302, {"Location": "/file", "Content-Length": "0"}, b"", "did not come in 4 tries"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_to_another_question_is_refused(name: str, player: Any, tmp_path: Path) -> None:
    """Packed, longer, endless, of another place, size or file: one error that says so, and little of it was taken."""
    status, headers, body, match = ANSWERS[name]
    if "Content-Length" not in headers:
        headers = headers | {"Transfer-Encoding": "chunked"}

    def play(method: str, path: str, wanted: str) -> tuple[int, Headers, bytes | int]:
        return (200, {"Content-Length": str(SIZE), "ETag": "a"}, b"") if method == "HEAD" else (status, headers, body)

    server = player(play)
    with pytest.raises(DlthError, match=match):
        download(f"{server.url}/file", tmp_path / "part")
    assert server.sent < 16 * 2**20  # what the sockets' buffers hold, and not what the body is
    assert {sent["Accept-Encoding"] for _, _, sent in server.asked} == {"identity"}


@pytest.mark.parametrize("ranges", [True, False])
def test_odd_and_right_answers_are_read(ranges: bool, player: Any, tmp_path: Path) -> None:
    """Chunked bodies, silence about the size in a range, a server that knows no ranges: also where a part is there."""
    content = CONTENT * (2 * BLOCK // SIZE + 1)

    def play(method: str, path: str, wanted: str) -> tuple[int, Headers, bytes]:
        if method == "HEAD":
            return 200, {"Content-Length": str(len(content)), "ETag": "a"}, b""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if not (ranges and match):
            return 200, {"Transfer-Encoding": "chunked"}, content
        start, stop = int(match[1]), int(match[2]) + 1
        return 206, {"Transfer-Encoding": "chunked", "Content-Range": said(start, stop, "*")}, content[start:stop]

    url, part = f"{player(play).url}/file", tmp_path / "part"
    download(url, part)
    assert part.read_bytes() == content
    part.write_bytes(content[: BLOCK + 5])
    download(url, part)
    assert part.read_bytes() == content


def test_what_a_server_says_of_sizes_is_not_believed(player: Any, tmp_path: Path) -> None:
    """A file beyond the disk is refused before its first byte, and a size that is no number counts as none."""
    huge = player(lambda method, path, wanted: (200, {"Content-Length": "9" * 17}, b""))
    with pytest.raises(SpaceError, match="99,999,999,999,999,999 bytes are needed"):
        download(f"{huge.url}/file", tmp_path / "part")
    silent = player(lambda method, path, wanted: (200, {"Transfer-Encoding": "chunked"}, ENDLESS))
    with pytest.raises(DlthError, match="the server tells no size"):
        facts(f"{silent.url}/file")
    assert silent.sent < 16 * 2**20


def test_an_answer_of_s3_is_bounded(player: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An S3 server that sends more than was asked for is read up to there and refused; a small file has its seconds."""
    import s3fs

    def play(method: str, path: str, wanted: str) -> tuple[int, Headers, bytes | int]:
        return 206, {"Transfer-Encoding": "chunked", "Content-Range": said(0, SIZE), "ETag": "a"}, ENDLESS

    server = player(play)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(TransferError, match=r"in 4 tries: the server sent 100001 bytes"):
        list(blocks("s3://lab/a.tar", 0, SIZE))
    monkeypatch.setenv("DLTH_TIMEOUT", "1e-9")  # then the first piece is late already
    with pytest.raises(TransferError, match=r"the server stalls: only [\d,]+ bytes came within 1e-09 seconds"):
        read_small("s3://lab/_info.json", SIZE)
    s3fs.S3FileSystem.clear_instance_cache()
    assert server.sent < 8 * 16 * 2**20


def test_small_files_are_bounded(player: Any) -> None:
    """A list or signature above its bound is refused by its declared size, and by its bytes where none is declared."""
    declared = player(lambda method, path, wanted: (200, {"Content-Length": str(ENDLESS)}, ENDLESS))
    endless = player(lambda method, path, wanted: (200, {"Transfer-Encoding": "chunked"}, ENDLESS))
    ranged = player(
        lambda method, path, wanted: (206, {"Transfer-Encoding": "chunked", "Content-Range": said(0, 1001)}, ENDLESS)
    )
    for server in (declared, endless, ranged):
        with pytest.raises(LimitError, match="is larger than 1000 bytes"):
            read_small(f"{server.url}/_info.json", 1000)
        assert server.sent < 16 * 2**20
    missing = player(lambda method, path, wanted: (404, {"Content-Length": "0"}, b""))
    assert read_small(f"{missing.url}/x", 1000) is None
    empty = player(lambda method, path, wanted: (416, {"Content-Range": "bytes */0", "Content-Length": "0"}, b""))
    assert read_small(f"{empty.url}/x", 1000) == b""
    refused = player(lambda method, path, wanted: (401, {"Content-Length": "0"}, b""))
    with pytest.raises(MissingFileError, match="the server answers 401"):
        read_small(f"{refused.url}/x", 1000)


def test_a_list_of_a_folder_is_bounded_and_read_by_hand(player: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a web server's list, fitting names in that folder are taken; no other folder is walked, no page is endless."""
    page = b"""<a href="a-0.tar">a</a><A HREF='/x/a-1.tar'>b</A><a href=a-2.txt>c</a><a href="../a-3.tar">d</a>
      <a href="sub/">e</a><a href="http://elsewhere/x/a-4.tar">f</a><a href="sub/a-5.tar">g</a>
      <a href="http://[::1">h</a><a href="http://[x]/x/a-6.tar">i</a>"""
    listing = player(lambda method, path, wanted: (200, {"Content-Length": str(len(page))}, page))
    found = resolve(f"{listing.url}/x/a-*.tar")
    assert [source.url for source in found.sources] == [f"{listing.url}/x/a-0.tar", f"{listing.url}/x/a-1.tar"]
    assert [path for _, path, _ in listing.asked] == ["/x/"]
    monkeypatch.setattr("dlth.data.shards.sources._MAX_LINKS", 8)
    with pytest.raises(LimitError, match="lists more than 8 links"):
        resolve(f"{listing.url}/x/a-*.tar")
    monkeypatch.setattr("dlth.data.shards.sources._MAX_PAGE", 1000)
    endless = player(lambda method, path, wanted: (200, {"Transfer-Encoding": "chunked"}, ENDLESS))
    with pytest.raises(LimitError, match="larger than 1000 bytes"):
        resolve(f"{endless.url}/x/*.tar")


def test_a_stamp_may_hold_any_bytes(player: Any, tmp_path: Path) -> None:
    """An ETag of bytes that are no UTF-8 is a stamp as others are: in the name of a copy, and in a note beside it."""

    def play(method: str, path: str, wanted: str) -> tuple[int, Headers, bytes]:
        headers = {"ETag": '"\xe9\xff\x80"', "Content-Length": str(SIZE)}  # sent as latin-1: these three bytes
        return 200, headers, CONTENT

    server = player(play)
    known = facts(f"{server.url}/a.tar")
    assert known == Facts(SIZE, r'"\udce9\udcff\udc80"')
    os.close(open_shard(f"{server.url}/a.tar", known, tmp_path))
    download(f"{server.url}/a.tar", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT


PULL = """
import json, resource, sys
from dlth.data.sharing.share import pull
from dlth.data.remote.http import http_info
from dlth.tickets.errors import DlthError
before, notes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
try:
    pull(sys.argv[1] + "/packed.zip", "packed.zarr")
except DlthError as error:
    notes.append(str(error))
identity = pull(sys.argv[1] + "/whole.zip", "mine.zarr", note=notes.append)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([identity, notes, grown * 1024]))
"""


def test_bombs_in_answers_take_no_memory(player: Any, make_shards: Any, tmp_path: Path) -> None:
    """A ticket file and a signature that unpack to half a gigabyte: the one is refused, the other told of."""
    store = TicketStore(make_store(tmp_path / "t.zarr"))
    pack(store, tmp_path / "t.zip")
    whole = (tmp_path / "t.zip").read_bytes()
    bomb = gzip.compress(bytes(2**29), 1)

    def play(method: str, path: str, wanted: str) -> tuple[int, Headers, bytes]:
        if path == "/whole.zip" or method == "HEAD":
            return 200, {"Content-Length": str(len(whole)), "ETag": "a"}, whole
        return 200, {"Content-Length": str(len(bomb)), "Content-Encoding": "gzip"}, bomb

    command = [sys.executable, "-c", PULL, player(play).url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    identity, notes, grown = json.loads(done.stdout)
    assert identity == store.identity
    assert ["packs its answer (gzip)" in note for note in notes] == [True, True]
    assert notes[1].startswith("the signature was not fetched: ")
    assert grown < 100 * 2**20


def test_answers_put_together_at_random() -> None:
    """Two hundred answers of right and wrong parts: bytes of the number asked for, or errors of ours."""
    _, told = run_script("hostile/answers.py", "--count", 200)
    assert (told["answers"], told["findings"]) == (200, [])
    assert told["outcomes"]["whole"] > 20
    assert sum(count for name, count in told["outcomes"].items() if name.startswith("refused")) > 60
