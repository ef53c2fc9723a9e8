"""Tickets by address: fetched and checked once a machine, within a bound, never pulled from under a reader."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlth.data.shards.index import open_index
from dlth.data.sharing import ticket_cache
from dlth.data.sharing.ticket_cache import local_tickets
from dlth.tickets import TicketStore
from dlth.tickets.errors import InputError, LimitError, MismatchError, MissingFileError, UnsafeError
from dlth.tickets.exchange.archive import pack


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; what this process held before is let go."""
    monkeypatch.setenv("DLTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ticket_cache, "_held", {})
    return tmp_path / "cache/tickets"


@pytest.fixture
def stores(
    make_shards: Callable[..., Any], make_tickets: Callable[..., TicketStore], tmp_path: Path
) -> list[TicketStore]:
    """Two ticket files, packed as `served/0.zip` and `served/1.zip`."""
    (tmp_path / "served").mkdir()
    made = [make_tickets(open_index(make_shards(seed=i, split=f"s{i}").spec), file=f"{i}.zarr") for i in range(2)]
    for number, store in enumerate(made):
        pack(store, tmp_path / f"served/{number}.zip")
    return made


def get_requests(server: Any) -> int:
    return sum(method == "GET" for method, _ in server.requests)


def test_a_file_is_fetched_once(
    cache: Path, stores: list[TicketStore], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """The second time only its stamp is asked for; with an identity, nothing is; other addresses share the folder."""
    server = serve(tmp_path / "served")
    path = local_tickets(f"{server.url}/0.zip")
    assert TicketStore(path).identity == stores[0].identity == path.name
    assert TicketStore(path).verify() == []
    fetched = get_requests(server)
    assert local_tickets(f"{server.url}/0.zip") == path
    assert get_requests(server) == fetched
    asked = len(server.requests)
    assert local_tickets(f"https://nowhere.invalid/x.zip#identity={stores[0].identity}") == path
    assert local_tickets(str(tmp_path / "served/0.zip")) == path
    assert len(server.requests) == asked
    assert sorted(entry.suffix for entry in cache.iterdir()) == ["", ".json"]


def test_a_changed_object_is_another_file(
    cache: Path, stores: list[TicketStore], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """The same address with another object is noticed; whoever pinned the identity is told."""
    server = serve(tmp_path / "served")
    url = f"{server.url}/0.zip"
    local_tickets(url)
    shutil.copy(tmp_path / "served/1.zip", tmp_path / "served/0.zip")
    assert local_tickets(url).name == stores[1].identity
    shutil.rmtree(cache)
    with pytest.raises(MismatchError, match=f"identity {stores[1].identity}, asked {stores[0].identity}"):
        local_tickets(f"{url}#identity={stores[0].identity}")


def test_a_damaged_entry_is_fetched_again(
    cache: Path, stores: list[TicketStore], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """A file of the cache that lost bytes (a power cut) heals itself."""
    url = f"{serve(tmp_path / 'served').url}/0.zip"
    path = local_tickets(url)
    (path / "keys/c.0.0.0").write_bytes(b"")
    assert TicketStore(local_tickets(url)).verify() == []


def test_a_local_folder_is_itself(cache: Path, stores: list[TicketStore]) -> None:
    """Paths stay what they are, with or without file://; a wanted identity is compared."""
    path, identity = stores[0].path, stores[0].identity
    assert local_tickets(str(path)) == path
    assert local_tickets(f"file://{path}#identity={identity}") == path
    with pytest.raises(MismatchError, match=r"0\.zarr is another ticket file than asked for"):
        local_tickets(f"{path}#identity={stores[1].identity}")
    assert not cache.exists()


def _hold(url: str, ready: Any, done: Any) -> None:
    local_tickets(url)
    ready.set()
    done.wait(60)


def test_the_cache_keeps_its_bound_and_what_is_in_use(
    cache: Path, stores: list[TicketStore], tmp_path: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one file, the second drives out the first, but not while another process reads it."""
    server = serve(tmp_path / "served")
    size = sum(file.stat().st_size for file in stores[0].path.rglob("*") if file.is_file())
    monkeypatch.setenv("DLTH_CACHE_GB", str(3 * size / 1e9))
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds for its imports
    ready, done = fork.Event(), fork.Event()
    reader = fork.Process(target=_hold, args=(f"{server.url}/0.zip", ready, done))
    reader.start()
    assert ready.wait(60)
    monkeypatch.setenv("DLTH_CACHE_GB", str(1.5 * size / 1e9))
    local_tickets(f"{server.url}/1.zip")
    assert {entry.name for entry in cache.iterdir() if entry.is_dir()} == {store.identity for store in stores}
    done.set()
    reader.join(60)
    ticket_cache._held.pop(stores[1].identity).close()
    os.utime(cache / stores[0].identity, (1, 1))
    pack(stores[1], tmp_path / "served/again.zip")
    shutil.rmtree(cache / stores[1].identity)
    local_tickets(f"{server.url}/again.zip")
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == [stores[1].identity]
    monkeypatch.setenv("DLTH_CACHE_GB", str(100 / 1e9))
    with pytest.raises(LimitError, match="the cache may hold 100"):
        local_tickets(f"{server.url}/0.zip")


def _fetch(url: str, results: Any) -> None:
    results.put(str(local_tickets(url)))


def test_processes_that_start_at_once_fetch_once(
    cache: Path, stores: list[TicketStore], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """Ranks of one machine share one download and one folder."""
    server = serve(tmp_path / "served")
    url = f"{server.url}/0.zip"
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds for its imports
    results = fork.Queue()
    ranks = [fork.Process(target=_fetch, args=(url, results)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    assert {results.get(timeout=120) for _ in ranks} == {str(cache / stores[0].identity)}
    for rank in ranks:
        rank.join()
    assert get_requests(server) == 1


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("/nowhere/t.zip#identity=" + "0" * 64, MissingFileError, "there is no ticket file"),
        ("https://host/t.zarr", InputError, "is a packed ticket file"),
        ("pipe:cat x", MissingFileError, "there is no ticket file"),
        ("ftp://host/t.zip", UnsafeError, "is no place"),
        ("t.zarr#identity=xyz", InputError, "64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_had(cache: Path, spec: str, error: type[Exception], match: str) -> None:
    """A spec that is no folder and no address ends as a missing file, not as a command."""
    with pytest.raises(error, match=match):
        TicketStore(local_tickets(spec))
