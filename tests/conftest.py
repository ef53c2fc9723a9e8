"""Fixtures that several folders' tests share; what needs no fixture is a function of `makers`."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # xdist's workers share the cores; one thread each is fastest and repeatable

import pytest
from makers.pictures import Shards, write_shards
from makers.servers import FolderServer


def pytest_configure() -> None:
    """Signals are at their defaults, as at a terminal: what the parent ignores or blocks, all processes here would.

    Shells ignore SIGINT and SIGQUIT for what runs in the background, and so do runners of CI jobs. SIGHUP stays as it
    is, as nohup is a wish.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes and remote shards go to a folder of this test run; no file of settings of the user is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DLTH_CONFIG", raising=False)
        patch.setenv("DLTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def serve() -> Iterator[Callable[..., FolderServer]]:
    """``serve(folder, ranges=True)`` -> a running `FolderServer`; stopped after the test."""
    with ExitStack() as running:

        def start(folder: Path, ranges: bool = True) -> FolderServer:
            server = FolderServer(folder, ranges)
            running.enter_context(server.running())
            return server

        yield start


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Shards]:
    """``make_shards(num_shards=2, per_shard=6, ..., folder=tmp_path)`` -> `Shards`: see `write_shards`."""

    def make(*rows: Any, folder: Path = tmp_path, **options: Any) -> Shards:
        return write_shards(folder, *rows, **options)

    return make


@pytest.fixture
def dlth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``dlth("tickets", "info", path)``: the command line in this process -> exit code, standard output and error."""
    from dlth.pipeline.cli.error_handler import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlth", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run
