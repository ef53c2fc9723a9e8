"""Remote shards: read through a bounded cache that hands out whole files or errors, never pieces."""

import hashlib
import json
import multiprocessing
import os
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from dlth.data.remote.cache import holding, open_shard
from dlth.data.remote.storage import Facts, facts
from dlth.data.shards.index import ShardIndex, check_shards, open_index
from dlth.data.shards.tar import pread
from dlth.tickets.errors import DamageError, InputError, LimitError, MissingFileError, UnsafeError
from dlth.tickets.store.locks import locked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shards(make_shards: Callable[..., Any]) -> Any:
    return make_shards(3, 4)


def all_images(index: ShardIndex) -> list[bytes]:
    return index.read_many(range(index.num_samples))


def cached(cache: Path) -> list[Path]:
    return sorted((cache / "shards").iterdir())


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_behind_http_equal_local_ones(ranges: bool, shards: Any, serve: Any, cache: Path) -> None:
    """Keys, labels, images and fingerprint are the local ones', with byte ranges and without; nothing comes twice."""
    server = serve(shards.folder, ranges)
    remote = open_index(server.url + "/train-{000000..000002}.tar")
    local = open_index(shards.spec)
    assert all_images(remote) == all_images(local)
    assert [remote.keys(s) for s in range(3)] == [list(keys) for keys in shards.keys]
    assert remote.label.tolist() == local.label.tolist()
    assert (remote.fingerprint, [s.name for s in remote.shards]) == (local.fingerprint, [s.name for s in local.shards])
    fetched = [path for method, path in server.requests if method == "GET"]
    assert len(fetched) == 3
    assert all_images(open_index(server.url + "/train-{000000..000002}.tar")) == all_images(local)
    assert [path for method, path in server.requests if method == "GET"] == fetched


def test_info_json_behind_http(shards: Any, serve: Any, cache: Path) -> None:
    """A folder behind http is read by its `_info.json`; its counts and digests hold there too."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in shards.paths]
    entry = {"filenames": [p.name for p in shards.paths], "shard_lengths": [4, 4, 4], "shard_sha256": digests}
    (shards.folder / "_info.json").write_text(json.dumps({"splits": {"train": entry}}))
    server = serve(shards.folder)
    assert open_index(server.url, "train").num_samples == 12
    entry["shard_sha256"] = [*digests[:2], "0" * 64]
    (shards.folder / "_info.json").write_text(json.dumps({"splits": {"train": entry}}))
    [error] = check_shards(f"{server.url}/_info.json", "train")
    assert "train-000002.tar: sha256 is " + digests[2] in str(error)
    (shards.folder / "_info.json").unlink()
    with pytest.raises(InputError, match="a folder behind http cannot be listed"):
        open_index(server.url)


def test_a_digest_is_compared_before_a_shard_is_kept(shards: Any, serve: Any, cache: Path) -> None:
    """A shard whose bytes are not the declared ones never gets its name in the cache."""
    url = serve(shards.folder).url + "/train-000000.tar"
    with pytest.raises(DamageError, match=r"sha256 [0-9a-f]{64}, declared is 00ff"):
        open_shard(url, facts(url), cache, "00ff")
    assert cached(cache) == []


@pytest.mark.parametrize("num_cuts", [1, 2])
def test_cut_connections_are_tried_again(num_cuts: int, shards: Any, serve: Any, cache: Path) -> None:
    """Answers that break off half-way are asked for again; the images are whole."""
    server = serve(shards.folder)
    server.num_cuts = num_cuts
    assert len(all_images(open_index(server.url + "/train-000000.tar"))) == 4


def test_a_connection_that_always_breaks_is_named(shards: Any, serve: Any, cache: Path) -> None:
    """After the last try: address, byte range, number of tries and cause; nothing half stays in the cache."""
    server = serve(shards.folder)
    url = server.url + "/train-000000.tar"
    server.num_cuts = 100
    with pytest.raises(DamageError, match=r"train-000000.tar: bytes 0 to \d+ of \d+ did not come in 4 tries: "):
        open_index(url)
    assert cached(cache) == []


def test_what_is_not_there_is_named(shards: Any, serve: Any, cache: Path) -> None:
    """A 404 and a server that does not answer are errors of the family, with the address."""
    server = serve(shards.folder)
    with pytest.raises(MissingFileError, match=r"none.tar is missing"):
        open_index(server.url + "/none.tar")
    server.shutdown()
    server.server_close()
    with pytest.raises(MissingFileError, match=r"train-000000.tar (is missing|cannot be reached)"):
        open_index(server.url + "/train-000000.tar")


def test_a_changed_remote_shard_makes_a_new_index(shards: Any, serve: Any, cache: Path, make_shards: Any) -> None:
    """Another ETag: an open index refuses to read on, a new one reads the new shard."""
    server = serve(shards.folder)
    url = server.url + "/train-000000.tar"
    before = open_index(url)
    for path in cached(cache):
        path.unlink()
    other = make_shards(1, 4, seed=5, folder=shards.folder / "other")
    shards.paths[0].write_bytes(other.paths[0].read_bytes())
    with pytest.raises(DamageError, match=r"train-000000.tar changed after its index was made"):
        before.read(0)
    assert open_index(url).keys(0) == list(other.keys[0])


def relabelled(path: Path) -> bytes:
    """The same tar with every label 0: as many bytes, another content."""
    raw = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        for info in tar:
            if info.name.endswith(".cls"):
                raw[info.offset_data] = ord("0")
    return bytes(raw)


@pytest.mark.parametrize("declared", [False, True], ids=["content", "digest"])
def test_without_an_etag_the_content_decides(
    declared: bool, shards: Any, serve: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that tells size alone: other labels in as many bytes are seen at the next opening, and readers refuse.

    A declared sha256 stands in for the ETag, and nothing comes twice; without one every opening fetches, and says so.
    """
    server, path = serve(shards.folder), shards.paths[0]
    server.stamps = False

    def declare() -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"filenames": [path.name], "shard_sha256": [digest]}
        (shards.folder / "_info.json").write_text(json.dumps({"splits": {"train": entry}}))

    def gets() -> int:
        return sum(method == "GET" and asked.endswith(".tar") for method, asked in server.requests)

    if declared:
        declare()
    spec = f"{server.url}/_info.json" if declared else f"{server.url}/{path.name}"
    before = open_index(spec)
    assert open_index(spec).label.tolist() == before.label.tolist() == [0, 1, 2, 3]
    assert gets() == (1 if declared else 2)
    assert any("tells neither an ETag nor a date" in message for message in caplog.messages) is not declared
    path.write_bytes(relabelled(path))
    if declared:
        declare()
    assert open_index(spec).label.tolist() == [0, 0, 0, 0]
    assert len(before.read_many(range(4))) == 4  # of the copy that has its digest
    for copy in cached(cache):
        copy.unlink()
    with pytest.raises(DamageError, match=r"changed after its index was made|declared is"):
        pickle.loads(pickle.dumps(before)).read(0)


def test_check_and_rebuild_fetch_whatever_the_cache_holds(shards: Any, serve: Any, cache: Path) -> None:
    """A server tells the same ETag and size for other bytes: opening believes it, --check and --rebuild do not."""
    server, path = serve(shards.folder), shards.paths[0]
    url = f"{server.url}/{path.name}"
    server.stamp = '"always the same"'
    assert open_index(url).label.tolist() == [0, 1, 2, 3]
    path.write_bytes(relabelled(path))
    assert open_index(url).label.tolist() == [0, 1, 2, 3]
    assert open_index(url, rebuild=True).label.tolist() == [0, 0, 0, 0]
    assert open_index(url).label.tolist() == [0, 0, 0, 0]
    path.write_bytes(b"\0" * 512 + path.read_bytes()[512:])
    [damage] = check_shards(url)
    assert "train-000000.tar" in str(damage)


def test_the_cache_stays_under_its_bound(shards: Any, serve: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used shard goes when a new one needs the room; every image can still be read."""
    server, size = serve(shards.folder), shards.paths[0].stat().st_size
    monkeypatch.setenv("DLTH_CACHE_GB", str(2.5 * max(path.stat().st_size for path in shards.paths) / 1e9))
    index = open_index(server.url + "/train-{000000..000002}.tar")
    assert len(cached(cache)) == 2
    assert all_images(index) == all_images(open_index(shards.spec))
    assert sum(path.stat().st_size for path in cached(cache)) <= 2.5 * size
    monkeypatch.setenv("DLTH_CACHE_GB", "0.000001")
    with pytest.raises(LimitError, match=r"bytes, the cache may hold 1000. Set DLTH_CACHE_GB higher"):
        open_index(server.url + "/train-000000.tar?again", rebuild=True)
    monkeypatch.setenv("DLTH_CACHE_GB", "much")
    with pytest.raises(InputError, match="DLTH_CACHE_GB must be a number of gigabytes, got 'much'"):
        open_index(server.url + "/train-000000.tar?again", rebuild=True)


def test_what_a_killed_download_left_is_cleared(shards: Any, serve: Any, cache: Path) -> None:
    """A temporary file without an owner goes with the next download; one that is being written stays."""
    server = serve(shards.folder)
    open_index(server.url + "/train-000000.tar")
    for name in ("dead", "alive"):
        (cache / "shards" / f"{name}.part").write_bytes(b"half")
    with holding(cache / "shards" / "alive.part"):
        open_index(server.url + "/train-000001.tar")
    assert [path.name for path in cached(cache) if path.suffix == ".part"] == ["alive.part"]


def test_an_entry_of_the_wrong_length_is_fetched_again(shards: Any, serve: Any, cache: Path) -> None:
    """A cached shard that was cut (a full disk, a stranger's hand) is not used."""
    url = serve(shards.folder).url + "/train-000000.tar"
    index = open_index(url)
    with open(cached(cache)[0], "r+b") as file:
        file.truncate(1000)
    assert all_images(index) == all_images(open_index(shards.spec))[:4]


def test_a_shard_cleared_from_the_cache_can_be_read_on(shards: Any, serve: Any, cache: Path) -> None:
    """What a process has open stays readable when another makes room."""
    url = serve(shards.folder).url + "/train-000000.tar"
    descriptor = open_shard(url, facts(url), cache)
    cached(cache)[0].unlink()
    assert pread(descriptor, 0, 10**6) == shards.paths[0].read_bytes()
    os.close(descriptor)


def _read_all(url: str, cache: str) -> None:
    index = open_index(url, cache_dir=cache)
    os._exit(0 if len(all_images(index)) == 12 else 1)


def test_many_processes_fetch_a_shard_once(shards: Any, serve: Any, cache: Path) -> None:
    """The ranks of a machine start together: each shard comes over the wire once, and every rank reads all images."""
    server = serve(shards.folder)
    context = multiprocessing.get_context("fork")
    url = server.url + "/train-{000000..000002}.tar"
    ranks = [context.Process(target=_read_all, args=(url, str(cache))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert sorted(path for method, path in server.requests if method == "GET") == [
        f"/train-{number:06d}.tar" for number in range(3)
    ]


class _Lengths(torch.utils.data.Dataset[int]):
    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def __len__(self) -> int:
        return self.index.num_samples

    def __getitem__(self, sample: int) -> int:
        return len(self.index.read(sample))


def test_forked_loader_workers_fetch_for_themselves(shards: Any, serve: Any, cache: Path) -> None:
    """fsspec's event loop does not survive a fork; workers that must fetch start their own."""
    index = open_index(serve(shards.folder).url + "/train-{000000..000002}.tar")
    for path in cached(cache):
        path.unlink()
    loader = torch.utils.data.DataLoader(
        _Lengths(index), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert list(loader) == index.image_size.tolist()


def test_any_fsspec_place_can_hold_shards(shards: Any, cache: Path) -> None:
    """memory:// stands for s3, gs and hf: sizes, stamps, globs and blocks come through the same interface."""
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/lab/{path.name}": path.read_bytes() for path in shards.paths})
    index = open_index("memory:///lab/*.tar")
    assert all_images(index) == all_images(open_index(shards.spec))
    memory.rm("/lab", recursive=True)


def test_only_regular_local_files_are_opened(tmp_path: Path, cache: Path) -> None:
    """A FIFO would block for ever and a folder cannot be read by position; a link to a shard is fine."""
    os.mkfifo(tmp_path / "fifo.tar")
    with pytest.raises(UnsafeError, match=r"fifo.tar is not a regular file"):
        open_index(str(tmp_path / "fifo.tar"))
    with pytest.raises(UnsafeError, match=r"fifo.tar is not a regular file"):
        open_shard(str(tmp_path / "fifo.tar"), Facts(0, ""), cache)
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"gone.tar is missing"):
        open_index(str(tmp_path / "gone.tar"))


def test_a_lock_of_another_member_of_the_group_is_held_all_the_same() -> None:
    """Locks of a shared cache are made by the umask; one that may only be read can be held as well."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        theirs, before = Path(folder) / "theirs", os.umask(0o002)
        try:
            with locked(theirs):
                assert theirs.stat().st_mode & 0o777 == 0o664
            theirs.chmod(0o444)
            child = os.fork()
            if child == 0:
                held = False
                try:
                    if os.geteuid() == 0:
                        os.setuid(65_534)
                    with locked(theirs) as mine, locked(theirs) as again:
                        held = mine and not again
                finally:
                    os._exit(0 if held else 1)
        finally:
            os.umask(before)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
