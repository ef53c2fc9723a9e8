"""The folder in which an unfinished ticket file is built: `<name>.partial`.

    plan.json            header, shards and key width; written last at creation, so its presence means 'ready'
    store/               the Zarr group that will be renamed into place
    commits/000012.json  shard 12 is wholly there: rows, skipped rows, size and sha256 of each chunk
    locks/000012         flock of whoever works on shard 12; locks/create and locks/finish likewise
    temp/                files before their rename

All bookkeeping stands outside `store`, so the finished file holds nothing but the Zarr hierarchy.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from dlth.tickets.errors import DamageError, DlthError, InputError, shown
from dlth.tickets.format.jsontext import Json, canonical, parse
from dlth.tickets.format.layout import MAX_MANIFEST_BYTES, partial_path
from dlth.tickets.format.manifest import FileDigest, ShardEntry
from dlth.tickets.store.disk import read_file, refuse_linked, space_errors, sync, write_files
from dlth.tickets.store.locks import locked

_COMMIT = re.compile(r"([0-9]{6,9})\.json")
_FOLDERS = ("store", "commits", "locks", "temp")


class Partial:
    """Names and small operations of the folder beside `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = partial_path(path)
        self.store = self.root / "store"

    def create(self, plan: Json, static: dict[str, bytes]) -> None:
        """Make the folder with its plan and the store's `static` files, unless it is there.

        Several processes may call this at once: one makes it, the others wait. Killed at any point, the next call
        redoes it. Raises UnsafeError where one of its folders is a link.
        """
        folders = {*_FOLDERS, *(f"store/{Path(name).parent}" for name in static), "store/manifest"}
        for name in ("", *folders):
            refuse_linked(self.root / name)
        if self._plan_file.exists():
            return
        with space_errors(self.root, 65_536):
            for name in ("locks", "temp"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with locked(self.root / "locks" / "create", wait=True) as mine:
                if not mine or self._plan_file.exists():
                    return
                for name in sorted(folders):
                    (self.root / name).mkdir(parents=True, exist_ok=True)
                self.publish({self.store / name: raw for name, raw in static.items()}, "create")
                for name in sorted(folders):
                    sync(self.root / name)
                self.publish({self._plan_file: canonical(plan)}, "create")
                sync(self.root.parent)

    def plan(self) -> Json:
        """The plan as it was written."""
        return parse(read_file(self._plan_file, MAX_MANIFEST_BYTES, "plan.json"), "plan.json")

    def publish(self, files: dict[Path, bytes], owner: str) -> None:
        """Put files in place atomically; `owner` (a lock that the caller holds) names the temporary files."""
        write_files(files, self.root / "temp" / owner)

    def lock(self, name: str) -> Path:
        """The lock file of a shard or an operation."""
        return self.root / "locks" / name

    def committed(self) -> set[int]:
        """Indices of the shards that are wholly there. Raises DamageError where the records cannot be read."""
        try:
            matches = map(_COMMIT.fullmatch, os.listdir(self.root / "commits"))
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise DamageError(f"commits is no folder that can be read ({error.strerror})", file="commits") from error
        return {int(name[1]) for name in matches if name}  # other names stand for no shard

    def is_committed(self, shard_index: int) -> bool:
        """Whether one shard is wholly there."""
        return self._commit_file(shard_index).exists()

    def commit(self, shard_index: int, entry: ShardEntry, files: dict[str, FileDigest]) -> None:
        """Record, after all its chunks are on disk, that a shard is wholly there."""
        record = {"name": entry.name, "rows": entry.rows, "skipped": entry.skipped, "files": files}
        self.publish({self._commit_file(shard_index): canonical(record)}, _number(shard_index))

    def read_commit(self, shard_index: int) -> tuple[ShardEntry, dict[str, FileDigest]]:
        """The record of one shard; raises DamageError when it is not what `commit` wrote."""
        name = f"commits/{_number(shard_index)}.json"
        try:
            record = parse(read_file(self._commit_file(shard_index), 65_536, name), name)
            entry = ShardEntry(record["name"], record["rows"], record["skipped"])
            return entry, {path: (size, sha256) for path, (size, sha256) in record["files"].items()}
        except (DlthError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamageError(f"{name} is damaged: {shown(error)}", file=name) from error

    def retract(self, shard_index: int) -> None:
        """Take back a record whose chunks turned out damaged, so that the shard is done again."""
        self._commit_file(shard_index).unlink(missing_ok=True)

    def progress(self) -> str:
        """How far the folder has come, for a message."""
        try:
            total = str(len(self.plan()["shards"]))
        except (DlthError, KeyError, TypeError):
            total = "an unknown number of"
        return f"{len(self.committed())} of {total} shards are done"

    def clear(self) -> None:
        """Remove the folder; the caller holds the lock 'finish' and the finished file stands under its name."""
        shutil.rmtree(self.root, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """`clear` what a kill between rename and removal left, unless somebody else does or the place is read-only."""
        if self.root.exists():
            with suppress(OSError, InputError):
                (self.root / "locks").mkdir(exist_ok=True)  # a kill within `clear` may have taken it
                with locked(self.lock("finish")) as mine:
                    if mine:
                        self.clear()

    @property
    def _plan_file(self) -> Path:
        return self.root / "plan.json"

    def _commit_file(self, shard_index: int) -> Path:
        return self.root / "commits" / f"{_number(shard_index)}.json"


def _number(shard_index: int) -> str:
    return f"{shard_index:06d}"
