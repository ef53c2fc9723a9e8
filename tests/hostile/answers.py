"""Answers of a web server to questions of dlth's, put together at random from right and wrong parts.

    python answers.py [--count 5000] [--first 0]

Answer n is a function of n. Whatever comes, a question must end in bytes of the number asked for, or in an error of
dlth's family; within seconds, without memory, and with little more taken from the server than was asked for. Prints one
JSON object with counts and findings; exit code 1 when there are any.
"""

import gzip
import os
import random
import resource
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.campaign import Tally, numbered
from makers.servers import Headers, Player

import dlth.data.remote.fetch
import dlth.data.remote.retry
from dlth.data.remote.cache import open_shard
from dlth.data.remote.storage import Facts, facts, read_small
from dlth.data.sharing.transfer import download
from dlth.tickets.errors import DlthError

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
        return "whole" if found == facts(f"{url}/{number}").size else f"FINDING: {found} bytes"
    if way == 1:
        raw = read_small(f"{url}/{number}", LIMIT)
        return "none" if raw is None else "whole" if len(raw) <= LIMIT else f"FINDING: {len(raw)} bytes"
    if way == 2:
        descriptor = open_shard(f"{url}/{number}", Facts(SIZE, '"a"' if number % 8 == 2 else "a"), folder)
        found = os.fstat(descriptor).st_size
        os.close(descriptor)
        return "whole" if found == SIZE else f"FINDING: {found} bytes"
    return "whole" if facts(f"{url}/{number}").size >= 0 else "FINDING: a size below 0"


def main() -> int:
    arguments = numbered(__doc__, 5_000).parse_args()
    os.environ["DLTH_TIMEOUT"] = "0.5"
    dlth.data.remote.fetch.WAITS = dlth.data.remote.retry.WAITS = (0.0, 0.0)
    server = Player(lambda method, path, wanted: answer(int(path.strip("/") or 0), method, wanted))
    tally, before = Tally(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder, server.running():

        def asked(number: int) -> str:
            server.sent = 0
            try:
                outcome = ask(server.url, number, Path(folder))
            except DlthError as error:
                outcome = f"refused {error.code}"
                if not str(error).isprintable() or len(str(error)) > 2_000:
                    outcome = f"FINDING: its text: {str(error)[:200]!r}"
            return f"FINDING: {server.sent} bytes were taken" if server.sent > TAKEN else outcome

        for number in range(arguments.first, arguments.first + arguments.count):
            tally.judge(number, partial(asked, number))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    tally.findings += [f"{grown} bytes of memory"] if grown > 256 * 2**20 else []
    return tally.tell(answers=arguments.count, grown=grown)


if __name__ == "__main__":
    sys.exit(main())
