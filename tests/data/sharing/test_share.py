"""Sending and fetching, against a real HTTP server that cuts connections and a real S3 server, both on loopback."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.servers import FolderServer
from makers.tampering import flipped
from makers.tickets import tree_bytes

from dlth.data.shards.index import open_index
from dlth.data.sharing.share import pull, push
from dlth.data.sharing.transfer import BLOCK, download, note_of, upload
from dlth.tickets import TicketStore
from dlth.tickets.errors import DamageError, DlthError, InputError, MismatchError, TransferError, UnsafeError
from dlth.tickets.exchange.archive import pack


@pytest.fixture
def http(tmp_path: Path, serve: Callable[..., FolderServer]) -> FolderServer:
    """A server of `tmp_path / "served"`."""
    (tmp_path / "served").mkdir()
    return serve(tmp_path / "served")


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """A bucket on a real S3 server on loopback."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="lab")
        yield "s3://lab"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def store(make_shards: Callable[..., Any], make_tickets: Callable[..., TicketStore]) -> TicketStore:
    return make_tickets(open_index(make_shards().spec))


def no_note(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def random_file(path: Path, size: int) -> Path:
    path.write_bytes(np.random.default_rng(size).bytes(size))
    return path


def test_a_broken_transfer_goes_on_where_it_was(http: FolderServer, tmp_path: Path) -> None:
    """Cut in the third block, the first two are kept; the second call asks for the rest alone, the bytes are right."""
    size = 2 * BLOCK + 1_000
    whole = random_file(tmp_path / "served/big.bin", size)
    part, told = tmp_path / "part", []
    http.budget = 2 * BLOCK + 100
    with pytest.raises(TransferError, match=rf"broke off after {2 * BLOCK:,} of {size:,} bytes, which are kept: run"):
        download(f"{http.url}/big.bin", part)
    assert part.stat().st_size == 2 * BLOCK
    http.budget, http.sent = float("inf"), []
    download(f"{http.url}/big.bin", part, lambda done, total: told.append((done, total)))
    assert http.sent == [(2 * BLOCK, size)]
    assert told[0] == (2 * BLOCK, size)
    assert told[-1] == (size, size)
    assert part.read_bytes() == whole.read_bytes()


def test_one_cut_connection_is_tried_again(http: FolderServer, tmp_path: Path) -> None:
    """A single cut costs the user nothing."""
    whole = random_file(tmp_path / "served/a.bin", 50_000)
    http.num_cuts = 1
    download(f"{http.url}/a.bin", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == whole.read_bytes()


def test_a_part_of_another_object_is_not_gone_on_with(tmp_path: Path, serve: Callable[..., Any]) -> None:
    """The object changed between two tries (another ETag): it is fetched from the beginning, nothing is mixed."""
    (tmp_path / "served").mkdir()
    random_file(tmp_path / "served/a.bin", 5_000)
    server = serve(tmp_path / "served")
    download(f"{server.url}/a.bin", tmp_path / "part")
    (tmp_path / "part").write_bytes((tmp_path / "part").read_bytes()[:1_000])
    (tmp_path / "served/a.bin").write_bytes(bytes(5_000))
    download(f"{server.url}/a.bin", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == bytes(5_000)


def test_what_changes_while_it_is_fetched_is_refused(tmp_path: Path) -> None:
    """The stamp after the last block is not that of before: nothing stays of the mixture."""
    source = random_file(tmp_path / "a.bin", 5_000)

    def change(done: int, total: int) -> None:
        if done == total:
            source.write_bytes(bytes(5_000))

    with pytest.raises(DamageError, match="changed while it was fetched"):
        download(str(source), tmp_path / "part", change)
    assert not (tmp_path / "part").exists()
    assert not note_of(tmp_path / "part").exists()


@pytest.mark.parametrize("place", ["folder", "memory://lab/tickets", "s3"])
def test_push_and_pull_give_back_every_byte(
    store: TicketStore, tmp_path: Path, s3_url: str, place: str, request: pytest.FixtureRequest
) -> None:
    """Through a folder, fsspec's memory and S3: card and zip arrive, the pulled folder is the pushed one."""
    (tmp_path / "lab").mkdir()
    target = {"folder": str(tmp_path / "lab"), "s3": f"{s3_url}/{request.node.name}"}.get(place, place)
    told: list[tuple[int, int]] = []
    sent = push(store.path, target, no_note, lambda done, total: told.append((done, total)))
    assert sent.url == f"{target}/tickets.zarr.zip"
    assert sent.identity == store.identity
    assert sent.beside == (f"{target}/README.md",)
    assert told[-1] == (sent.num_bytes, sent.num_bytes)
    assert pull(sent.pinned, tmp_path / "mine.zarr") == store.identity
    assert tree_bytes(tmp_path / "mine.zarr") == tree_bytes(store.path)
    assert pull(sent.url, tmp_path / "mine.zip") == store.identity
    pack(store, tmp_path / "packed.zip")
    assert (tmp_path / "mine.zip").read_bytes() == (tmp_path / "packed.zip").read_bytes()
    with pytest.raises(InputError, match=r"tickets\.zarr\.zip exists and is not overwritten"):
        push(store.path, target, no_note)
    assert not list(tmp_path.glob("mine*download*"))


def _die_within(local: Path, target: str) -> None:
    upload(local, target, lambda done, total: os._exit(9) if 0 < done < total else None)


def test_a_killed_upload_to_s3_leaves_nothing_under_the_name(tmp_path: Path, s3_url: str) -> None:
    """Of a file that goes in parts, killed after the first; sent again, it is whole."""
    import boto3

    client = boto3.client("s3")
    local = random_file(tmp_path / "a.zip", 101 * 2**20)
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds for its imports
    sender = fork.Process(target=_die_within, args=(local, f"{s3_url}/a.zip"))
    sender.start()
    sender.join(60)
    assert sender.exitcode == 9
    assert "Contents" not in client.list_objects_v2(Bucket="lab", Prefix="a.zip")
    seen: list[tuple[int, int]] = []
    upload(local, f"{s3_url}/a.zip", lambda done, total: seen.append((done, total)))
    raw = local.read_bytes()
    assert client.get_object(Bucket="lab", Key="a.zip")["Body"].read() == raw
    assert seen[-1] == (len(raw), len(raw))


def test_a_server_that_is_gone_keeps_what_came(http: FolderServer, store: TicketStore, tmp_path: Path) -> None:
    """A pull that breaks off leaves its part beside the name, nothing under it; the next pull finishes."""
    pack(store, tmp_path / "served/t.zip")
    http.budget = 100
    with pytest.raises(TransferError, match="run the same command again"):
        pull(f"{http.url}/t.zip", tmp_path / "mine.zarr")
    assert not (tmp_path / "mine.zarr").exists()
    assert (tmp_path / "mine.zarr.download").exists()
    http.budget = float("inf")
    assert pull(f"{http.url}/t.zip", tmp_path / "mine.zarr") == store.identity
    assert sorted(path.name for path in tmp_path.glob("mine*")) == ["mine.zarr"]


def test_only_the_file_asked_for_gets_its_name(http: FolderServer, store: TicketStore, tmp_path: Path) -> None:
    """Another identity, a flipped bit and a file that is no ticket file leave nothing behind."""
    pack(store, tmp_path / "served/t.zip")
    asked = "ab" * 32
    with pytest.raises(MismatchError, match=f"identity {store.identity}, asked {asked}"):
        pull(f"{http.url}/t.zip#identity={asked}", tmp_path / "mine.zarr")
    raw = (tmp_path / "served/t.zip").read_bytes()
    (tmp_path / "served/bad.zip").write_bytes(flipped(raw, 8 * (len(raw) // 3)))
    for out in ("mine.zarr", "mine.zip"):
        with pytest.raises(DlthError, match="damaged"):
            pull(f"{http.url}/bad.zip", tmp_path / out)
    (tmp_path / "served/no.zip").write_bytes(b"hello")
    with pytest.raises(UnsafeError, match="is no packed ticket file"):
        pull(f"{http.url}/no.zip", tmp_path / "mine.zarr")
    assert list(tmp_path.glob("mine*")) == []


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("https://host/tickets.zarr", InputError, "is a packed ticket file"),
        ("ftp://host/t.zip", UnsafeError, "ftp: is no place"),
        ("simplecache::https://host/t.zip", UnsafeError, "chained addresses"),
        ("https://host/t.zip#identity=12ab", InputError, "an identity is the 64 hexadecimal digits"),
    ],
)
def test_addresses_that_cannot_be_fetched(tmp_path: Path, spec: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        pull(spec, tmp_path / "mine.zarr")


def test_nothing_is_overwritten(store: TicketStore, tmp_path: Path) -> None:
    """Neither what stands under the name to pull to, nor a README.md that says something else."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/README.md").write_text("mine")
    said: list[str] = []
    sent = push(store.path, str(tmp_path / "lab/other.zip"), said.append)
    assert sent.beside == ()
    assert (tmp_path / "lab/README.md").read_text() == "mine"
    assert said == [f"{tmp_path}/lab/README.md says something else and was left as it is"]
    with pytest.raises(InputError, match="exists and is not overwritten"):
        pull(sent.url, store.path)
    with pytest.raises(InputError, match="nothing can be sent to an https address"):
        push(store.path, "https://host/folder", no_note)
