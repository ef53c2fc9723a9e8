"""Shard specs: every spelling in use finds the same shards, and no spelling runs, reads or escapes anything else."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dlth.data.shards.sources import MAX_SHARDS, expand, expand_braces, resolve
from dlth.tickets.errors import DlthError, InputError, LimitError, MissingFileError, SchemaError, UnsafeError


def names(spec: object, split: str | None = None) -> list[str]:
    return [Path(address).name for address in expand(str(spec), split)]


@pytest.fixture
def folder(make_shards: Callable[..., Any]) -> Path:
    """Three train shards of two images."""
    return make_shards(3, 2).folder


TRAIN = [f"train-{number:06d}.tar" for number in range(3)]


@pytest.mark.parametrize(
    "spec",
    [
        "{}",
        "{}/",
        "{}/*.tar",
        "{}/train-{{000000..000002}}.tar",
        "{}/train-00000{{2,0..1}}.tar",
        "{}/train-000002.tar,{}/train-00000[01].tar",
        "file://{}/train-{{000000..000002}}.tar",
    ],
)
def test_every_spelling_finds_the_same_shards_in_the_same_order(spec: str, folder: Path) -> None:
    """Folder, glob, brace range, list and file URL give the same sorted absolute paths, names and folder."""
    listing = resolve(spec.replace("{}", str(folder)).replace("{{", "{").replace("}}", "}"))
    assert [source.url for source in listing.sources] == [str(folder / name) for name in TRAIN]
    assert (listing.names, listing.folder, listing.name) == (tuple(TRAIN), str(folder), "train")


def test_relative_paths_become_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader process that changes its folder still finds the shards."""
    monkeypatch.chdir(folder.parent)
    assert expand("train") == [str(folder / name) for name in TRAIN]


def test_a_name_with_commas_and_braces_that_exists_is_taken_as_it_is(folder: Path) -> None:
    """What lies on the disk under exactly that name is what is meant."""
    odd = folder.rename(folder.parent / "a,{b}[c]*")
    assert names(odd) == TRAIN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a{0..2}b", ["a0b", "a1b", "a2b"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{x,y}{1,2}", ["x1", "x2", "y1", "y2"]),
        ("{000..001,005}", ["000", "001", "005"]),
        ("plain", ["plain"]),
        ("{only}", ["only"]),
    ],
)
def test_braces(text: str, expected: list[str]) -> None:
    """As a shell spells them: padded numbers stay padded, several braces multiply, items may be ranges."""
    assert expand_braces(text) == expected


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{0..9999999999}.tar", LimitError, f"is longer than {MAX_SHARDS} shards"),
        ("{0..999}{0..999}.tar", LimitError, f"means more than {MAX_SHARDS} shards"),
        ("{0..60000,0..60000,%s}.tar" % ("0..99999," * 10**5), LimitError, f"means more than {MAX_SHARDS} shards"),
        ("{5..2}.tar", InputError, r"the range 5..2 goes backwards"),
        ("{a,{b,c}}.tar", InputError, "unbalanced or nested"),
        ("a-{0..3.tar", InputError, "unbalanced or nested"),
        ("a-0..3}.tar", InputError, "unbalanced or nested"),
    ],
)
def test_braces_are_bounded(text: str, error: type[DlthError], message: str) -> None:
    """A range that would fill the memory, runs backwards or is left open is refused before it is expanded."""
    with pytest.raises(error, match=message):
        expand_braces(text)


UNSAFE = [
    "pipe:cat x.tar",
    "pipe:rm -rf {0..3}",
    "PIPE:cat x.tar",
    "pipe://cat",
    "x.tar::pipe:cat",
    "simplecache::https://h/x.tar",
    "zip://a.tar::https://h/b.zip",
    "reference::file:x.json",
    "ftp://h/x.tar",
    "ssh://h/x.tar",
    "sftp://h/x.tar",
    "github://u:r@/x.tar",
    "jar://x",
    "data:;base64,AAAA",
    "local:///etc/passwd",
    "http:x.tar",
    "dir::x.tar",
    "cmd:ls",
]


@pytest.mark.parametrize("spec", UNSAFE)
def test_commands_chains_and_foreign_schemes_are_refused(spec: str) -> None:
    """Nothing that runs a command, chains file systems or uses a scheme outside the list is ever opened."""
    with pytest.raises(UnsafeError, match=r"is no place to read shards from|chained addresses"):
        expand(spec)


@pytest.mark.parametrize(
    "name", ["../x.tar", "/etc/x.tar", "a/../../x.tar", "pipe:cat x", "https://h/x.tar", "a\\b.tar"]
)
def test_info_json_names_only_what_lies_beside_it(name: str, folder: Path) -> None:
    """A JSON file from outside cannot point anywhere else."""
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": {"filenames": [name]}}}))
    with pytest.raises(UnsafeError, match="a JSON file may only name shards under its own folder"):
        expand(str(folder))


@pytest.mark.parametrize("url", ["pipe:cat x", "../x.tar", "/etc/x.tar", "http://10.0.0.1/x.tar", "file:///x.tar"])
def test_wids_json_names_no_command_and_no_local_file_elsewhere(url: str, folder: Path) -> None:
    """A wids list may hold https and object-store URLs beside names of its own folder, nothing else."""
    index = folder / "index.json"
    index.write_text(json.dumps({"wids_version": 1, "shardlist": [{"url": url, "nsamples": 2}]}))
    with pytest.raises(UnsafeError, match="may only name shards under its own folder"):
        expand(str(index))
    index.write_text(json.dumps({"shardlist": [{"url": "https://example.org/a.tar"}]}))
    assert expand(str(index)) == ["https://example.org/a.tar"]


def info(folder: Path, **entries: Any) -> None:
    (folder / "_info.json").write_text(json.dumps({"splits": entries}))


def test_timm_info_json_tells_splits_counts_and_digests(folder: Path) -> None:
    """`_info.json` chooses the split's shards and declares what they must hold; braces in its names are expanded."""
    lengths = {"shard_lengths": [2, 2], "shard_sizes": [10, 11], "shard_sha256": ["AB", "cd"], "num_samples": 4}
    info(folder, train={"filenames": ["train-{000000..000001}.tar"], **lengths}, val={"filenames": [TRAIN[2]]})
    sources = resolve(str(folder), "train").sources
    assert [(Path(s.url).name, s.rows, s.size, s.sha256) for s in sources] == [
        (TRAIN[0], 2, 10, "ab"),
        (TRAIN[1], 2, 11, "cd"),
    ]
    assert names(folder, "val") == [TRAIN[2]]
    assert names(folder / "_info.json", "val") == [TRAIN[2]]
    with pytest.raises(InputError, match=r"several splits; its splits are: train, val. Say which one"):
        expand(str(folder))
    with pytest.raises(InputError, match="no split 'test'; its splits are: train, val"):
        expand(str(folder), "test")


def test_what_lies_beside_the_shards_counts_however_they_were_named(folder: Path) -> None:
    """A glob over packed shards is held to the counts of the `_info.json` beside them."""
    info(folder, train={"filenames": TRAIN, "shard_lengths": [2, 2, 2]})
    assert [source.rows for source in resolve(f"{folder}/*.tar").sources] == [2, 2, 2]
    (folder / "_info.json").write_text("{broken")
    assert [source.rows for source in resolve(f"{folder}/*.tar").sources] == [None] * 3


def test_wids_json_declares_counts(folder: Path) -> None:
    """url, nsamples and filesize of a wids list are taken over; names are relative to the list."""
    shardlist = [{"url": name, "nsamples": 2, "filesize": 7} for name in TRAIN]
    (folder / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": shardlist}))
    sources = resolve(str(folder / "index.json")).sources
    assert [(source.url, source.rows, source.size) for source in sources] == [(str(folder / n), 2, 7) for n in TRAIN]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"splits": {"train": {"filenames": TRAIN, "shard_lengths": [2]}}}, "one entry for each of 3 shards"),
        ({"splits": {"train": {"filenames": [TRAIN[0]], "shard_lengths": [-1]}}}, "must be a count, got -1"),
        ({"splits": {"train": {"filenames": [TRAIN[0]], "shard_lengths": [True]}}}, "must be a count, got True"),
        (
            {"splits": {"train": {"filenames": TRAIN, "shard_lengths": [2, 2, 2], "num_samples": 7}}},
            "num_samples is 7, but shard_lengths sum to 6",
        ),
        ({"splits": {"train": {"filenames": "a.tar"}}}, "'filenames' must be a list"),
        ({"splits": [1]}, "'splits' must map"),
        ({"shardlist": [{"nsamples": 2}]}, "every entry of 'shardlist' needs a 'url'"),
        ({"other": 1}, "neither timm's _info.json"),
        ([], "neither timm's _info.json"),
    ],
)
def test_malformed_json_indexes_are_named(value: Any, message: str, folder: Path) -> None:
    """What does not follow its layout is refused with the file's name and the offending field."""
    path = folder / "index.json"
    path.write_text(json.dumps(value))
    with pytest.raises(SchemaError, match=message):
        expand(str(path), "train")


def test_splits_of_a_folder_without_info(folder: Path, make_shards: Callable[..., Any]) -> None:
    """A subfolder or a word in the shards' names is a split; a folder of several splits asks which."""
    make_shards(1, 2, split="val")
    assert names(folder.parent, "train") == TRAIN
    assert names(folder, "train") == TRAIN
    for path in (folder.parent / "val").iterdir():
        path.rename(folder / path.name)
    assert names(folder, "val") == ["val-000000.tar"]
    with pytest.raises(InputError, match=r"holds several splits \(train, val\): say which one"):
        expand(str(folder))


def test_names_are_relative_to_the_common_folder(folder: Path, make_shards: Callable[..., Any]) -> None:
    """Shards of equal base name in two folders keep apart by their folder."""
    make_shards(1, 2, split="val").paths[0].rename(folder.parent / "val" / TRAIN[0])
    listing = resolve(f"{folder},{folder.parent}/val")
    assert listing.names == (*(f"train/{name}" for name in TRAIN), f"val/{TRAIN[0]}")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("", InputError, "no shards are named"),
        (",", InputError, "no shards are named"),
        ("{folder}/none", MissingFileError, "is neither a folder, nor a .tar, nor a .json index"),
        ("{folder}/none-*.tar", MissingFileError, "matches no .tar file"),
        ("{folder}/none.json", MissingFileError, "none.json is missing"),
        ("{folder}/train-000000.tar.gz", InputError, "a compressed tar cannot be read by position"),
        ("{folder},{folder}/train-000001.tar", InputError, "train-000001.tar is named twice"),
    ],
)
def test_specs_that_find_nothing_or_too_much(spec: str, error: type[DlthError], message: str, folder: Path) -> None:
    """What is missing or doubled is said with the name that was given."""
    with pytest.raises(error, match=message):
        expand(spec.replace("{folder}", str(folder)))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    """No tars at all is an error, not an empty data set."""
    with pytest.raises(MissingFileError, match=r"holds no .tar files \(and no _info.json\)"):
        expand(str(tmp_path))


def test_remote_folders_globs_and_json(folder: Path) -> None:
    """The same spellings work on any fsspec place that can list."""
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/lab/{name}": (folder / name).read_bytes() for name in TRAIN})
    expected = [f"memory:///lab/{name}" for name in TRAIN]
    for spec in ("memory:///lab", "memory:///lab/*.tar", "memory:///lab/train-{000000..000002}.tar"):
        assert [url.replace("memory://lab", "memory:///lab") for url in expand(spec)] == expected, spec
    memory.pipe("/lab/_info.json", json.dumps({"splits": {"train": {"filenames": TRAIN[:2]}}}).encode())
    assert names("memory:///lab") == TRAIN[:2]
    memory.rm("/lab", recursive=True)


def test_a_json_index_is_bounded(folder: Path) -> None:
    """A JSON file of hundreds of megabytes is not read."""
    with open(folder / "_info.json", "wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(LimitError, match=r"_info.json is larger than 67108864 bytes"):
        expand(str(folder))


def test_a_json_index_of_many_ranges_is_bounded(folder: Path) -> None:
    """Names in an index may be ranges, and a thousand ranges in ten kilobytes are not spelled out."""
    ranges = ["a-{00000..99999}.tar"] * 10**4
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": {"filenames": ranges}}}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimitError, match="split train: more than 100000 shards are named"):
        expand(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def test_only_what_is_asked_for_is_spelled_out(folder: Path) -> None:
    """Ranges are counted, in shards and characters, before one is spelled; other splits are left as they stand."""
    long, wide = "a" * 10**6 + "{0..9999}.tar", "{0..99999}" * 100 + ".tar"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    info(folder, train={"filenames": TRAIN, "shard_lengths": [2, 2, 2]}, val={"filenames": [long]})
    assert names(folder, "train") == TRAIN
    with pytest.raises(LimitError, match="means more than 33554432 characters of names"):
        expand(str(folder), "val")
    info(folder, train={"filenames": ["a" * 10**3 + "{0..19999}.tar"] * 2})
    with pytest.raises(LimitError, match="the names of its shards have more than 33554432 characters"):
        expand(str(folder))
    with pytest.raises(LimitError, match="means more than 100000 shards"):
        expand_braces(wide)
    info(folder, **{f"split{i}": {"filenames": [f"{i}-{{0..99999}}.tar"]} for i in range(150)})
    assert [source.rows for source in resolve(f"{folder}/*.tar").sources] == [None] * 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_a_list_of_too_many_or_of_half_a_character_is_refused(folder: Path) -> None:
    """A wids list is counted before it is read, and a name that no file can have is told as such."""
    (folder / "index.json").write_text(json.dumps({"shardlist": [0] * (MAX_SHARDS + 1)}))
    with pytest.raises(LimitError, match=r"index\.json: more than 100000 shards are named"):
        expand(str(folder / "index.json"))
    info(folder, train={"filenames": ["a\ud800.tar"]})
    with pytest.raises(SchemaError, match="a shard's name must be text, got a"):
        expand(str(folder))
