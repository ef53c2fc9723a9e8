"""Which shards a spec means: brace ranges, globs, folders, timm's ``_info.json``, wids JSON; local or remote.

A spec is what the user typed; the JSON files it may lead to were written by others. So the user may name any local path
or any URL of a few data schemes, but a JSON file may only name shards under its own folder (a wids list also https, s3,
gs and hf URLs), and nobody may name a command: webdataset's ``pipe:`` and fsspec's ``::`` chains, which can run or read
anything, are refused. Shards are sorted by address, so that one data set has one order however it was spelled.

Rejected: webdataset's own expansion (it runs ``pipe:``, rewrites names by an environment variable, and expands braces
without a bound).
"""

import fnmatch
import glob
import html
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin

from dlth.data.remote.addresses import SCHEMES, filesystem, is_http, is_remote
from dlth.data.remote.storage import reaching, read_small
from dlth.tickets.errors import DlthError, InputError, LimitError, MissingFileError, SchemaError, UnsafeError, shown
from dlth.tickets.format.jsontext import parse
from dlth.tickets.store.disk import user_path

MAX_SHARDS = 100_000
_MAX_SPELLED = 2**25  # characters of all names that a range or an index means: 335 for each of `MAX_SHARDS`
INFO_NAME = "_info.json"
MAX_JSON = 64 * 1024 * 1024  # bytes
_MAX_PAGE = 64 * 1024 * 1024  # bytes of a web server's list of a folder: `MAX_SHARDS` names with their dates
_MAX_LINKS = 4 * MAX_SHARDS  # in such a list: a link for each shard, some for other files and for sorting
_LINK = re.compile(r"""href\s{0,3}=\s{0,3}["']?([^"'\s<>]{1,2000})""", re.IGNORECASE)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "test", "dev"))


@dataclass(frozen=True)
class Source:
    """One shard: where it lies and, where a JSON file beside it says so, what it should be.

    rows: number of samples declared; size: bytes declared; sha256: digest declared, hexadecimal, empty if none.
    """

    url: str
    rows: int | None = None
    size: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Listing:
    """The shards of a data set in order; `names` are relative to `folder`, the deepest that holds them all."""

    name: str
    folder: str
    sources: tuple[Source, ...]
    names: tuple[str, ...]


def expand(spec: str, split: str | None = None) -> list[str]:
    """Addresses of the shards that `spec` means, sorted: absolute local paths or URLs. See `resolve`."""
    return [source.url for source in resolve(spec, split).sources]


def resolve(spec: str, split: str | None = None) -> Listing:
    """The shards that `spec` means, with what is declared about them.

    `spec`: one or several (with commas between) of a tar, a brace range, a glob, a folder, an ``_info.json`` or a wids
    JSON file, local or remote. `split` chooses among the splits of an ``_info.json``, a folder's subfolders or shards
    with that word in their names. Raises InputError, MissingFileError, SchemaError, LimitError, and UnsafeError for
    commands, foreign schemes and JSON files that point elsewhere.
    """
    exists = os.path.exists(spec)  # then its commas, braces and stars are just its name
    named: list[Source] = []
    for part in [spec] if exists else _split_commas(spec):
        check_address(part)
        for address in [part] if exists else expand_braces(part):
            named += _expand_one(address if is_remote(address) else _local(address), split)
            if len(named) > MAX_SHARDS:
                raise LimitError(f"{shown(spec)!r} means more than {MAX_SHARDS} shards. Name them in parts.")
    sources = sorted(_declared_beside(named), key=lambda source: source.url)
    for first, second in itertools.pairwise(sources):
        if first.url == second.url:
            raise InputError(f"{shown(first.url)} is named twice in {shown(spec)!r}")
    if not sources:
        raise InputError("no shards are named: give a folder, a glob, a brace range or a JSON index")
    folder = _common_folder(sources[0].url, sources[-1].url)  # sorted: what these share, all share
    names = tuple(_plain(source.url)[len(folder) :].lstrip("/") for source in sources)
    if len(set(names)) < len(names):
        raise InputError(f"two shards of {shown(spec)!r} have the same name")
    title = posixpath.basename(folder) or "data"
    return Listing(title if split in (None, title) else f"{title}/{split}", folder, tuple(sources), names)


def _common_folder(first: str, last: str) -> str:
    pairs = zip(first.split("/")[:-1], last.split("/")[:-1], strict=False)
    return "/".join(part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def check_address(address: str) -> None:
    """Raise UnsafeError unless `address` is a local path or a single URL of an allowed scheme."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)", address)
    if "::" in address or "\0" in address:
        raise UnsafeError(f"{shown(address)!r}: chained addresses ('::') are refused. Name the shards themselves.")
    if scheme and (scheme[0] not in SCHEMES or not address.startswith(f"{scheme[0]}://")):
        raise UnsafeError(
            f"{shown(address)!r}: {scheme[0]}: is no place to read shards from (allowed: {', '.join(SCHEMES)}). "
            "Commands are never run; write ./ before a local name that has a colon."
        )


def expand_braces(text: str) -> list[str]:
    """All spellings of ``a-{000..012}.tar`` and ``{train,val}.tar`` (items may be ranges); at most `MAX_SHARDS`.

    Numbers keep the width of a zero-padded end. Raises InputError for unbalanced or nested braces and LimitError.
    """
    pieces = re.split(r"\{([^{}]*)\}", text)
    if any("{" in piece or "}" in piece for piece in pieces[::2]):
        raise InputError(f"{shown(text)!r}: braces are unbalanced or nested. Write {{000..012}} or {{a,b}}.")
    choices = [_choices(piece, text) if i % 2 else [_Range(piece)] for i, piece in enumerate(pieces)]
    count = 1
    for choice in choices:  # counted before anything is spelled out
        count *= sum(map(len, choice))
        if count > MAX_SHARDS:
            raise LimitError(f"{shown(text)!r} means more than {MAX_SHARDS} shards. Name them in parts.")
    if count * sum(max(len(item.text) for item in choice) for choice in choices) > _MAX_SPELLED:
        raise LimitError(f"{shown(text)!r} means more than {_MAX_SPELLED} characters of names. Name them in parts.")
    spelled = [[text for item in choice for text in item.spelled()] for choice in choices]
    return ["".join(combination) for combination in itertools.product(*spelled)]


@dataclass(frozen=True)
class _Range:
    """Numbers from `first` to `last`, padded to `zeros` digits; without them the text itself."""

    text: str
    first: int = 0
    last: int = 0
    zeros: int | None = None

    def __len__(self) -> int:
        return self.last - self.first + 1

    def spelled(self) -> Iterator[str]:
        """Every spelling in order."""
        if self.zeros is None:
            return iter((self.text,))
        return (f"{number:0{self.zeros}d}" for number in range(self.first, self.last + 1))


def _choices(inside: str, text: str) -> list[_Range]:
    result: list[_Range] = []
    for item in inside.split(","):
        ends = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", item)
        if not ends:
            result.append(_Range(item))
            continue
        first, last = int(ends[1]), int(ends[2])
        if last < first:
            raise InputError(f"{shown(text)!r}: the range {item} goes backwards")
        if last - first >= MAX_SHARDS:
            raise LimitError(f"{shown(text)!r}: the range {item} is longer than {MAX_SHARDS} shards")
        padded = any(end.startswith("0") and len(end) > 1 for end in ends.groups())
        result.append(_Range(item, first, last, max(map(len, ends.groups())) if padded else 0))
        if len(result) > MAX_SHARDS:
            raise LimitError(f"{shown(text)!r} means more than {MAX_SHARDS} shards. Name them in parts.")
    return result


def _split_commas(spec: str) -> list[str]:
    """Cut at commas outside braces."""
    parts = re.findall(r"(?:\{[^{}]*\}|[^,])+", spec)
    return [part.strip() for part in parts if part.strip()]


def _local(address: str) -> str:
    return os.fspath(user_path(address.removeprefix("file://")))


def _plain(address: str) -> str:
    """An address without a URL's query."""
    return address.partition("?")[0] if address.startswith("http") else address


def _expand_one(address: str, split: str | None) -> list[Source]:
    """The shards of one address without braces."""
    plain = _plain(address)
    if plain.endswith(_COMPRESSED):
        raise InputError(f"{shown(address)}: a compressed tar cannot be read by position. Unpack it to a plain .tar.")
    if plain.endswith(".json"):
        return _from_json(address, split)
    if any(mark in address for mark in ("*[" if is_remote(address) else "*?[")) and not os.path.exists(address):
        matches = [match for match in _glob(address) if match.endswith(".tar")]
        if not matches:
            raise MissingFileError(f"{shown(address)!r} matches no .tar file")
        return [Source(match) for match in matches]
    if plain.endswith(".tar") and not os.path.isdir(address):
        return [Source(address)]
    return _from_folder(address.rstrip("/"), split)


def _glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return glob.glob(pattern)
    if is_http(pattern):
        return _listed(pattern)
    with reaching(pattern):
        system, path = filesystem(pattern)
        return [system.unstrip_protocol(match) for match in system.glob(path)]


def _listed(pattern: str) -> list[str]:
    """Addresses in a web server's own list of a folder whose last part is as `pattern` says.

    Read by hand: fsspec takes a page of any size, and walks into every folder that it names.
    """
    folder, _, last = pattern.rpartition("/")
    if any(mark in folder for mark in "*["):
        raise InputError(f"{shown(pattern)}: behind http, only the last part of an address may hold * or [")
    page = (read_small(f"{folder}/", _MAX_PAGE) or b"").decode("utf-8", "replace")
    matches = list(itertools.islice(_LINK.finditer(page), _MAX_LINKS + 1))
    if len(matches) > _MAX_LINKS:
        raise LimitError(f"{shown(folder)}/ lists more than {_MAX_LINKS} links. Name the shards in a brace range.")
    links = {_joined(f"{folder}/", html.unescape(match[1])) for match in matches}
    inside = {link for link in links if link.rpartition("/")[0] == folder}
    return sorted(link for link in inside if fnmatch.fnmatchcase(link.rpartition("/")[2], last.replace("?", "[?]")))


def _joined(base: str, link: str) -> str:
    """Where a link of a page at `base` leads; nowhere if it is no address (``http://[``)."""
    try:
        return urljoin(base, link)
    except ValueError:
        return ""


def _from_folder(folder: str, split: str | None) -> list[Source]:
    """A folder's ``_info.json``, else the subfolder `split`, else its tars (with that word in their names)."""
    if not is_remote(folder) and not os.path.isdir(folder):
        raise MissingFileError(f"{shown(folder)} is neither a folder, nor a .tar, nor a .json index")
    if (raw := read_small(f"{folder}/{INFO_NAME}", MAX_JSON)) is not None:
        return _of_split(_read_info(raw, folder), split, folder, f"{folder}/{INFO_NAME}")
    if folder.startswith("http"):
        raise InputError(f"{shown(folder)}: a folder behind http cannot be listed: name its tars or its _info.json")
    if split and (inside := _glob(f"{_escaped(folder)}/{_escaped(split)}/*.tar")):
        return [Source(match) for match in inside]
    tars = _glob(f"{_escaped(folder)}/*.tar")
    words = {match: set(re.split(r"[^a-z]+", posixpath.basename(match).lower())) for match in tars}
    if split:
        chosen = [match for match in tars if split.lower() in words[match]]
        if not chosen and tars and posixpath.basename(folder) == split:
            chosen = tars
    else:
        chosen = tars
        if len(mixed := set().union(*words.values()) & _SPLIT_WORDS) > 1:
            raise InputError(f"{shown(folder)} holds several splits ({', '.join(sorted(mixed))}): say which one")
    if not chosen:
        wanted = f"shards of split {shown(split)!r}" if split else ".tar files"
        raise MissingFileError(f"{shown(folder)} holds no {wanted} (and no {INFO_NAME})")
    return [Source(match) for match in chosen]


def _escaped(path: str) -> str:
    return path if is_remote(path) else glob.escape(path)


def _from_json(address: str, split: str | None) -> list[Source]:
    raw = read_small(address, MAX_JSON)
    if raw is None:
        raise MissingFileError(f"{shown(address)} is missing")
    folder = posixpath.dirname(address)
    value = parse(raw, shown(address))
    if isinstance(value, dict) and "splits" in value:
        return _of_split(_splits(value, folder), split, folder, address)
    if not isinstance(value, dict) or not isinstance(value.get("shardlist"), list):
        raise SchemaError(f"{shown(address)} is neither timm's _info.json ('splits') nor a wids index ('shardlist')")
    if len(value["shardlist"]) > MAX_SHARDS:
        raise LimitError(f"{shown(address)}: more than {MAX_SHARDS} shards are named")
    return [_wids_entry(entry, folder, address) for entry in value["shardlist"]]


def _wids_entry(entry: Any, folder: str, where: str) -> Source:
    if not isinstance(entry, dict) or not isinstance(entry.get("url"), str):
        raise SchemaError(f"{shown(where)}: every entry of 'shardlist' needs a 'url'")
    url = entry["url"]
    if url.startswith(("https://", "s3://", "gs://", "hf://")):
        check_address(url)
    else:
        url = _inside(url, folder, where)
    return Source(url, _count(entry, "nsamples", where), _count(entry, "filesize", where))


def _count(entry: dict[str, Any], field: str, where: str) -> int | None:
    value = entry.get(field)
    if value is not None and (type(value) is not int or value < 0):
        raise SchemaError(f"{shown(where)}: {field} must be a count, got {shown(value)}")
    return value


def _inside(name: Any, folder: str, where: str) -> str:
    """A name from a JSON file, which must stay in the file's own folder."""
    if not isinstance(name, str) or not name or re.search("[\ud800-\udfff]", name):  # half a character has no bytes
        raise SchemaError(f"{shown(where)}: a shard's name must be text, got {shown(name)}")
    parts = name.removeprefix("./").split("/")
    if ":" in name or "\\" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(parts):
        raise UnsafeError(
            f"{shown(where)} names {shown(name)!r}: a JSON file may only name shards under its own folder. "
            "Name such shards yourself if you trust them."
        )
    return f"{folder}/{'/'.join(parts)}"


def _read_info(raw: bytes, folder: str) -> dict[str, Any]:
    """Splits of timm's ``_info.json`` as they stand there: `_info_split` reads the one that is asked for."""
    return _splits(parse(raw, shown(f"{folder}/{INFO_NAME}")), folder)


def _splits(value: Any, folder: str) -> dict[str, Any]:
    splits = value.get("splits") if isinstance(value, dict) else None
    if not isinstance(splits, dict):
        raise SchemaError(f"{shown(f'{folder}/{INFO_NAME}')}: 'splits' must map the splits' names to objects")
    return splits


def _info_split(name: str, entry: Any, folder: str) -> list[Source]:
    """One split's shards; the lists of lengths, sizes and digests are optional but must fit."""
    where = f"{folder}/{INFO_NAME}, split {name}"
    if not isinstance(entry, dict) or not isinstance(entry.get("filenames"), list):
        raise SchemaError(f"{shown(where)}: 'filenames' must be a list")
    names: list[str] = []
    num_characters = 0
    for spelling in entry["filenames"]:
        names += (spelled := expand_braces(str(spelling)))
        num_characters += sum(map(len, spelled))
        if len(names) > MAX_SHARDS:
            raise LimitError(f"{shown(where)}: more than {MAX_SHARDS} shards are named")
        if num_characters > _MAX_SPELLED:
            raise LimitError(f"{shown(where)}: the names of its shards have more than {_MAX_SPELLED} characters")
    columns: list[list[Any]] = []
    for field in ("shard_lengths", "shard_sizes", "shard_sha256"):
        column = entry.get(field) or [None] * len(names)
        if not isinstance(column, list) or len(column) != len(names):
            raise SchemaError(f"{shown(where)}: '{field}' must have one entry for each of {len(names)} shards")
        columns.append(column)
    sources = []
    for name, rows, size, digest in zip(names, *columns, strict=True):
        counts = {"shard_lengths": rows, "shard_sizes": size}
        url = _inside(name, folder, where)
        rows, size = (_count(counts, field, f"{where}, {name}") for field in counts)
        sources.append(Source(url, rows, size, str(digest or "").lower()))
    total, lengths = _count(entry, "num_samples", where), [source.rows for source in sources if source.rows is not None]
    if total is not None and len(lengths) == len(sources) and sum(lengths) != total:
        raise SchemaError(f"{shown(where)}: num_samples is {total}, but shard_lengths sum to {sum(lengths)}")
    return sources


def _of_split(splits: dict[str, Any], split: str | None, folder: str, where: str) -> list[Source]:
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split is None or split not in splits:
        asked = f"no split {shown(split)!r}" if split else "several splits"
        raise InputError(
            f"{shown(where)} has {asked}; its splits are: {shown(', '.join(splits))}. Say which one:"
            " --split, or --val-split for validation images."
        )
    return _info_split(split, splits[split], folder)


def _declared_beside(sources: Iterable[Source]) -> list[Source]:
    """Add what an ``_info.json`` in local shards' own folders declares; an unusable one is passed over here."""
    known: dict[str, dict[str, Source]] = {}
    result = []
    for source in sources:
        folder = posixpath.dirname(source.url)
        if source.rows is None and folder not in known and not is_remote(folder):
            try:
                known[folder] = _declared_in(folder)
            except DlthError:
                known[folder] = {}
        declared = known.get(folder, {}).get(source.url)
        result.append(replace(declared, url=source.url) if declared and source.rows is None else source)
    return result


def _declared_in(folder: str) -> dict[str, Source]:
    """All shards that a folder's ``_info.json`` names, by address. Raises LimitError above `MAX_SHARDS` together."""
    raw = read_small(f"{folder}/{INFO_NAME}", MAX_JSON)
    declared: dict[str, Source] = {}
    num_named = 0
    for name, entry in (_read_info(raw, folder) if raw else {}).items():
        sources = _info_split(name, entry, folder)
        num_named += len(sources)
        if num_named > MAX_SHARDS:
            raise LimitError(f"{shown(folder)}/{INFO_NAME} names more than {MAX_SHARDS} shards")
        declared.update((source.url, source) for source in sources)
    return declared
