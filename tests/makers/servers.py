"""HTTP servers on loopback: of a folder, with byte ranges, that cuts, stalls and lies when told to; of any answers."""

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Headers = dict[str, str]


class Handler(BaseHTTPRequestHandler):
    """Answers without a log."""

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server on a free port, which needs no client to be patient."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer from a thread until the end of the block."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield
        finally:
            self.ended.set()
            self.shutdown()
            self.server_close()

    def handle_error(self, *args: object) -> None:
        pass  # a client that gave up


class FolderServer(Server):
    """A folder with byte ranges, which can be told to fail."""

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        super().__init__(_FolderHandler)
        self.folder, self.ranges = folder, ranges
        self.stamps = True  # whether answers carry an ETag
        self.stamp = ""  # which; empty: the content's digest
        self.num_cuts = 0  # so many answers will break off half-way
        self.budget = float("inf")  # so many bytes of content, then every connection is cut
        self.stalls: dict[str, str] = {}  # path -> where its answer stalls: facts, head, body or drip
        self.requests: list[tuple[str, str]] = []  # (method, path) of what was asked
        self.sent: list[tuple[int, int]] = []  # (start, stop) of each body


class _FolderHandler(Handler):
    server: FolderServer

    def do_HEAD(self) -> None:
        if self.server.stalls.get(self.path) == "facts":
            self.server.ended.wait()
        self._answer(with_body=False)

    def do_GET(self) -> None:
        if self.server.stalls.get(self.path) == "head":
            self.server.ended.wait()
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path))
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = 0, size
        if wanted and self.server.ranges and with_body:
            start, stop = int(wanted[1]), min(size, int(wanted[2] or size) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        if self.server.stamps:
            self.send_header("ETag", self.server.stamp or f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        self.end_headers()
        if with_body:
            self.server.sent.append((start, stop))
            with open(path, "rb") as file:
                file.seek(start)
                self._send(file.read(stop - start), stop == size)

    def _send(self, body: bytes, is_last: bool) -> None:
        stall = self.server.stalls.get(self.path, "")
        if stall == "drip":
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                if self.server.ended.wait(0.05):
                    return
            return
        size = len(body)
        if stall == "body" and is_last:
            size = min(size, 100)
        elif size and self.server.num_cuts > 0:
            self.server.num_cuts -= 1
            size //= 2
        size = int(min(size, self.server.budget))
        self.server.budget -= size
        self.wfile.write(body[:size])
        if stall == "body" and is_last:
            self.server.ended.wait()
        elif size < len(body):
            self.connection.shutdown(socket.SHUT_RDWR)


class Player(Server):
    """A server whose answers, (status, headers, body), are what `play` makes of method, path and range."""

    def __init__(self, play: Callable[[str, str, str], tuple[int, Headers, bytes | int]]) -> None:
        super().__init__(_PlayerHandler)
        self.play, self.sent = play, 0
        self.asked: list[tuple[str, str, Headers]] = []


class _PlayerHandler(Handler):
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
