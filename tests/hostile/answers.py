"""Answers of a web server to questions of dlth's, put together at random from right and wrong parts.

    python answers.py [--count 5000] [--first 0]

Answer n is a function of n. Whatever comes, a question must end in bytes of the number asked for, or in an error of
dlth's family; within seconds, without memory, and with little more taken from the server than was asked for. Prints one
JSON object with counts and findings; exit code 1 when there are any.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dlth.data.fetch
import dlth.data.remote
from dlth.data.cache import open_shard
from dlth.data.remote import Facts, facts, read_small
from dlth.data.transfer import download
from dlth.tickets.errors import DlthError

Headers = dict[str, str]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's `plays` say: by method, (status, headers, body); the body bytes or a number of zeros."""

    protocol_version = "HTTP/1.1"
    server: Player

    def answer(self) -> None:
        status, headers, body = self.server.play(self.command, self.path, self.headers.get("Range", ""))
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        chunked = headers.get("Transfer-Encoding") == "chunked"
        pieces = [body] if isinstance(body, bytes) else (bytes(2**16) for _ in range(body // 2**16))
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                self.server.sent += len(piece)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = answer  # noqa: N815 (the names that BaseHTTPRequestHandler calls)

    def log_message(self, *args: object) -> None:
        pass


class Player(ThreadingHTTPServer):
    """A server on loopback whose answers are what `play` makes of method, path and range."""

    daemon_threads = True

    def __init__(self, play: Callable[[str, str, str], tuple[int, Headers, bytes | int]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.play, self.sent = play, 0
        self.asked: list[tuple[str, str, Headers]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *args: object) -> None:
        pass  # a client that has enough


SIZE, LIMIT = 50_000, 60_000
CONTENT = random.Random("content").randbytes(SIZE)
ENDLESS = 64 * 2**20
TAKEN = ENDLESS // 2  # the sockets buffers of a few tries hold some of a body without an end, and never this much
BOMB = gzip.compress(bytes(2**26), 1)


def answer(number: int, method: str, wanted: str) -> tuple[int, Headers, bytes | int]:
    """The answer to a question for all, or for a range (`wanted`, as in its header): right in most parts."""
    rng = random.Random(f"{number} {method}")

    def pick(right: object, *wrong: object, share: float = 0.2) -> object:
        return rng.choice(wrong) if rng.random() < share else right

    first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-")) if wanted else (0, SIZE - 1)
    last = min(last, SIZE - 1)
    body = CONTENT[first : last + 1]
    status = pick(206 if wanted and method == "GET" else 200, 200, 206, 204, 301, 304, 403, 404, 416, 500, 503)
    body = pick(body, b"", body[:-1], body + b"x", CONTENT, ENDLESS, BOMB, share=0.3)
    length = len(body) if isinstance(body, bytes) else body
    headers = {
        "Content-Length": pick(str(length), str(SIZE), str(length + 1), "0", "-1", "9" * 30, "ten", ""),
        "Content-Range": pick(
            f"bytes {first}-{last}/{SIZE}",
            *(f"bytes {first + 1}-{last + 1}/{SIZE}", f"bytes {first}-{last}/*", f"bytes */{SIZE}", "bytes", ""),
            *(f"bytes 0-{SIZE}/{SIZE}", f"bytes {first}-{last}/{SIZE + 1}", "\x1b[2J", f"bytes {'9' * 5000}-1/1"),
        ),
        "Content-Encoding": pick("", "gzip", "br", "identity", "GZIP", "deflate, gzip", "\x1b", share=0.1),
        "ETag": pick("a", "", "b" * 5_000, "\x85\x1b[31m", share=0.1),
        "Location": pick("", "/", "file:///etc/passwd", "http://[", share=0.1),
        "Transfer-Encoding": pick("", "chunked", "gzip, chunked", "odd", share=0.2),
    }
    if headers["Transfer-Encoding"] == "chunked" and rng.random() < 0.8:
        headers["Content-Length"] = ""
    return int(str(status)), {name: str(value) for name, value in headers.items() if value}, body  # type: ignore[return-value]


def ask(url: str, number: int, folder: Path) -> str:
    """One of the ways in which dlth asks; what came of it."""
    way = number % 4
    if way == 0:
        download(f"{url}/{number}", folder / f"{number}")
        found = (folder / f"{number}").stat().st_size
        return "whole" if found == facts(f"{url}/{number}").size else f"FINDING {found} bytes"
    if way == 1:
        raw = read_small(f"{url}/{number}", LIMIT)
        return "none" if raw is None else "whole" if len(raw) <= LIMIT else f"FINDING {len(raw)} bytes"
    if way == 2:
        descriptor = open_shard(f"{url}/{number}", Facts(SIZE, '"a"' if number % 8 == 2 else "a"), folder)
        found = os.fstat(descriptor).st_size
        os.close(descriptor)
        return "whole" if found == SIZE else f"FINDING {found} bytes"
    return "whole" if facts(f"{url}/{number}").size >= 0 else "FINDING a size below 0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["DLTH_TIMEOUT"] = "0.5"
    dlth.data.fetch.WAITS = dlth.data.remote.WAITS = (0.0, 0.0)
    server = Player(lambda method, path, wanted: answer(int(path.strip("/") or 0), method, wanted))
    outcomes, findings = Counter[str](), list[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.first, arguments.first + arguments.count):
            begun, server.sent = time.monotonic(), 0
            try:
                outcome = ask(server.url, number, Path(folder))
            except DlthError as error:
                outcome = f"refused {error.code}"
                if not str(error).isprintable() or len(str(error)) > 2_000:
                    outcome = f"FINDING its text: {str(error)[:200]!r}"
            except Exception as error:
                outcome = f"FINDING {type(error).__name__}: {error}"
            if time.monotonic() - begun > 20:
                outcome = "FINDING it took 20 s"
            if server.sent > TAKEN:
                outcome = f"FINDING {server.sent} bytes were taken"
            outcomes[outcome.partition(":")[0]] += 1
            findings += [f"{number}: {outcome}"] if outcome.startswith("FINDING") else []
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    findings += [f"{grown} bytes of memory"] if grown > 256 * 2**20 else []
    print(json.dumps({"answers": arguments.count, "outcomes": outcomes, "findings": findings[:20], "grown": grown}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
