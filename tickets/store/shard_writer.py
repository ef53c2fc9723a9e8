"""Writing a file of any kind: any number of processes, one shard at a time, killed at any moment.

The algorithm: whoever claims a shard writes its chunks (each: temporary name, fsync, rename, fsync of the folder),
then its record; when no shard is missing, one process checks every byte again, writes the manifest and renames the
whole to its name. So an unfinished file never stands under the name of a finished one, and the bytes depend on
header, shards and rows alone.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Generic, NoReturn, TypeVar

from dlth.tickets.arguments import listed, whole_number
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, DlthError, InputError, LockedError, MismatchError, MissingFileError, shown
from dlth.tickets.format.chunks import decode, encode, padded
from dlth.tickets.format.fields import VERSION, StoredHeader, checked, differences
from dlth.tickets.format.jsontext import Json
from dlth.tickets.format.layout import (
    MANIFEST_FILE,
    MANIFEST_META_FILE,
    MAX_CHUNK_BYTES,
    Array,
    ArraySpec,
    StoredLayout,
    manifest_meta_text,
)
from dlth.tickets.format.manifest import Manifest, ShardEntry, ShardSpec, check_shard_specs, content_id, digest_of
from dlth.tickets.format.rows import RuleError, StoredRows, encoded_keys
from dlth.tickets.store.disk import read_file, reading, refuse_inside, space_errors, sync, user_path
from dlth.tickets.store.locks import locked
from dlth.tickets.store.partial import Partial
from dlth.tickets.store.stored_file import StoredFile

Header = TypeVar("Header", bound=StoredHeader)
Rows = TypeVar("Rows", bound=StoredRows)


class ShardWriter(ABC, Generic[Header, Rows]):
    """Writes `path`, resuming what other processes or earlier runs began; a kind of file says what its rows are.

    `shards` in order (those of an open store will do); `key_width` the bytes kept for a key. Raises MismatchError,
    naming every difference, when `path` or its unfinished form belongs to another header or shard list; InputError
    when something else stands at `path`; SpaceError.
    """

    HEADER: type[Header]
    NOUN: ClassVar[str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        shards: Sequence[ShardSpec | ShardEntry],
        key_width: int,
    ) -> None:
        self.path = user_path(path)
        width = whole_number(key_width, "the width of keys", 0)
        self.header = checked(header, self.HEADER)
        self.shards = _specs(shards)
        check_shard_specs((shard.name, shard.rows) for shard in self.shards)
        self.layout = self._layout(max(shard.rows for shard in self.shards), width)
        self._partial = Partial(self.path)
        self._claimed: set[int] = set()
        with reading(self.path):
            refuse_inside(self.path)
            finished = self.complete
        if not finished:
            self._open_partial()
        if self.complete:
            self._compare_finished()
            self._partial.clear_leftovers()

    @property
    def complete(self) -> bool:
        """Whether the finished file stands under its name."""
        return (self.path / MANIFEST_FILE).exists()

    def finished(self) -> StoredFile:
        """The finished file, opened; raises what its store raises."""
        return self._open(self.path)

    def missing(self) -> list[int]:
        """Indices of the shards that are not wholly there yet."""
        done = self._partial.committed()
        return [] if self.complete else [index for index in range(len(self.shards)) if index not in done]

    @contextmanager
    def claim(self, shard_index: int) -> Iterator[bool]:
        """Own one shard for the block; yields False when it is done or another process owns it."""
        if self._done(shard_index):
            yield False
            return
        with locked(self._partial.lock(f"{shard_index:06d}")) as mine:
            if not mine or self._done(shard_index):
                yield False
                return
            self._claimed.add(shard_index)
            try:
                yield True
            finally:
                self._claimed.discard(shard_index)

    def write(self, shard_index: int, rows: Rows) -> None:
        """Write one claimed shard: wholly there when this returns, else not at all.

        Raises InputError naming shard and row when a rule is broken, LockedError when the shard was not claimed,
        SpaceError.
        """
        shard = self.shards[shard_index]
        if shard_index not in self._claimed:
            raise LockedError(
                f"shard {shown(shard.name)} must be claimed before it is written: with writer.claim(index)"
            )
        try:
            chunks = self._encoded(shard_index, rows)
        except RuleError as error:
            raise InputError(f"shard {shown(shard.name)}: {error}") from error
        store = self._partial.store
        self._partial.publish({store / name: raw for name, raw in chunks.items()}, f"{shard_index:06d}")
        entry = ShardEntry(shard.name, shard.rows, int(rows.skipped.sum()))
        self._partial.commit(shard_index, entry, {name: digest_of(raw) for name, raw in chunks.items()})

    def fill(self, rows: Callable[[int], Rows], progress: Progress | None = None) -> None:
        """Write what is missing, each shard's rows by its index, and finish; `progress(done, total)` counts shards.

        Raises LockedError when another process is writing the same file, and what `write` and `finish` raise.
        """
        todo = self.missing()
        for done, shard_index in enumerate(todo, len(self.shards) - len(todo) + 1):
            with self.claim(shard_index) as mine:
                if mine:
                    self.write(shard_index, rows(shard_index))
            if progress is not None:
                progress(done, len(self.shards))
        if not self.finish():
            raise LockedError(f"{shown(self.path)}: another process is writing the same file and will finish it")

    def finish(self) -> bool:
        """Put the finished file under its name; True when it stands there, False while shards are missing or another
        process is finishing. May be called by every process, any number of times.

        Every byte is read back and compared first. Raises DamageError (the shard is taken back and done again on the
        next run) or InputError when a key stands in two shards.
        """
        if not self.complete:
            with locked(self._partial.lock("finish")) as mine:
                if not self.complete and (not mine or self.missing()):
                    self._refuse_removed()
                    return False
                if mine and not self.complete:
                    with space_errors(self._partial.root, 0):
                        self._publish()
                    self._partial.clear()
        self._partial.clear_leftovers()
        return True

    def wait(self) -> None:
        """Return once nobody works on the shards that are missing now, nor on finishing: done, or its process died.

        Raises MissingFileError where the unfinished file was taken away meanwhile.
        """
        for name in (*(f"{shard_index:06d}" for shard_index in self.missing()), "finish"):
            with locked(self._partial.lock(name), wait=True):
                pass
        self._refuse_removed()

    def _refuse_removed(self) -> None:
        """Raises MissingFileError where somebody took the unfinished file away: nobody will finish it."""
        if not self._partial.root.exists() and not self.complete:
            raise MissingFileError(f"{shown(self._partial.root)} was removed before the file was finished: run again")

    def _done(self, shard_index: int) -> bool:
        return self._partial.is_committed(shard_index) or self.complete

    def _open_partial(self) -> None:
        if os.path.lexists(self.path):
            raise InputError(f"{shown(self.path)} exists and is not a finished {self.NOUN} file; choose another name")
        try:
            self._partial.create(self._plan(), self.layout.meta_files(self.header))
            plan = self._partial.plan()
        except FileNotFoundError:
            if not self.complete:  # else another process finished and cleaned up meanwhile
                raise
            return
        try:
            header = self.HEADER.from_json(plan["header"])
            shards = [ShardSpec(name, rows) for name, rows in plan["shards"]]
            key_width = plan["key_width"]
        except (KeyError, TypeError, ValueError) as error:
            raise DamageError(
                f"{shown(self._partial.root)}: plan.json is damaged; remove the folder to begin again", file="plan.json"
            ) from error
        self._compare(header, shards, key_width)

    def _plan(self) -> Json:
        return {
            "header": self.header.to_json(),
            "shards": [[shard.name, shard.rows] for shard in self.shards],
            "key_width": self.layout.key_width,
        }

    def _compare_finished(self) -> None:
        store = self._open(self.path)
        shards = [ShardSpec(entry.name, entry.rows) for entry in store.shards]
        self._compare(store.header, shards, store.layout.key_width)

    def _compare(self, header: StoredHeader, shards: Sequence[ShardSpec], key_width: int) -> None:
        differing = differences(header, self.header)
        if len(shards) != len(self.shards):
            differing.append(f"number of shards: file has {len(shards)}, asked {len(self.shards)}")
        for index, (theirs, ours) in enumerate(zip(shards, self.shards, strict=False)):
            if theirs != ours:
                sides = (f"{shown(side.name, 80)} with {side.rows} rows" for side in (theirs, ours))
                differing.append("shard {}: file has {}, asked {}".format(index, *sides))
                break
        if key_width != self.layout.key_width:
            differing.append(f"key width: file has {key_width}, asked {self.layout.key_width}")
        if differing:
            raise MismatchError(
                f"{shown(self.path)} was begun with other settings; use them, or another name for this run:\n  "
                + "\n  ".join(differing)
            )

    def _encoded(self, shard_index: int, rows: Rows) -> dict[str, bytes]:
        """Each chunk of a shard by its path. Raises RuleError."""
        values = [*self._content(rows, self.shards[shard_index].rows)]
        values += [
            (self.layout.keys, encoded_keys(rows.keys, self.layout.key_width)),
            (self.layout.images, rows.images),
        ]
        return {spec.chunk_file(shard_index): encode(spec, padded(spec, array)) for spec, array in values}

    @abstractmethod
    def _layout(self, max_rows: int, key_width: int) -> StoredLayout:
        """The arrays that the header asks for."""

    @abstractmethod
    def _content(self, rows: Rows, num_rows: int) -> list[tuple[ArraySpec, Array]]:
        """What a shard knows of its images, as it is stored; raises RuleError where a rule is broken."""

    @abstractmethod
    def _open(self, path: Path) -> StoredFile:
        """The finished file at a path."""

    def _publish(self) -> None:
        """Manifest, a full check of everything by the reader itself, then the name."""
        store = self._partial.store
        text = self._manifest().text()
        (store / MANIFEST_FILE).unlink(missing_ok=True)
        files = {store / MANIFEST_META_FILE: manifest_meta_text(text), store / MANIFEST_FILE: text}
        self._partial.publish(files, "finish")
        damages = self._open(store).verify()
        if damages:
            (store / MANIFEST_FILE).unlink()
            self._refuse(damages)
        os.rename(store, self.path)
        sync(self.path.parent)

    def _manifest(self) -> Manifest:
        files = {name: digest_of(raw) for name, raw in self.layout.meta_files(self.header).items()}
        entries: list[ShardEntry] = []
        images: list[Array] = []
        spec = self.layout.images
        for index, shard in enumerate(self.shards):
            name = spec.chunk_file(index)
            try:
                entry, digests = self._partial.read_commit(index)
                raw = read_file(self._partial.store / name, MAX_CHUNK_BYTES, name)
            except (DlthError, KeyError) as error:
                self._refuse([DamageError(str(error), shard=shard.name, file=name)])
            entries.append(entry)
            files.update(digests)
            images.append(decode(spec, raw, name)[: entry.rows].copy())
        return Manifest(VERSION, tuple(entries), content_id(images), files, self.header.kind)

    def _refuse(self, damages: Sequence[DamageError]) -> NoReturn:
        """Take damaged shards back, so that the next run does them again, and say so."""
        names = {damage.shard for damage in damages}
        for index, shard in enumerate(self.shards):
            if shard.name in names:
                self._partial.retract(index)
        if not names - {""}:
            raise InputError(str(damages[0]))
        raise DamageError(
            f"{damages[0]} ({len(damages)} findings); the damaged shards were taken back: run the same command again",
            shard=damages[0].shard,
            file=damages[0].file,
        )


def _specs(shards: Sequence[ShardSpec | ShardEntry]) -> tuple[ShardSpec, ...]:
    shards = listed(shards, "shards")
    for shard in shards:
        if not isinstance(shard, ShardSpec | ShardEntry):
            raise InputError(f"a shard is ShardSpec(name, rows), found {shown(shard)!r}")
    return tuple(ShardSpec(shard.name, shard.rows) for shard in shards)
