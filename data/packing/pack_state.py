"""What an earlier `pack` left in a folder, and who may write there now.

While a split is being packed, ``.pack-SPLIT/`` holds the settings (``plan.json``) and one record for each finished
shard; when all are there, `_info.json` takes them over and the folder goes. Either one tells a second run whether it
continues the first. Rejected: believing a shard because its file is there, which a file system that was cut off between
data and name can make a lie.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from dlth.data.shards.split_info import INFO, Json, ShardRecord, read_info, shard_record, shard_records
from dlth.tickets.errors import InputError, LockedError, MismatchError, SchemaError, shown
from dlth.tickets.format.jsontext import parse
from dlth.tickets.store.disk import make_folder, read_file, refuse_linked, write_files
from dlth.tickets.store.locks import locked, refuse_gone

_PLAN, _RECORD = "plan.json", ".tar.json"
_MAX_BYTES = 64 * 1024


@contextmanager
def work_folder(out: Path, split: str) -> Iterator[Path]:
    """Where this split's unfinished work is kept, while no other `pack` writes to `out` (`LockedError`)."""
    lock = out / ".pack.lock"
    before, was_locked = os.path.lexists(out), os.path.lexists(lock)
    make_folder(out)
    with locked(lock) as mine:
        if not mine:
            refuse_gone(out)
            raise LockedError(f"another dlth pack writes to {shown(out)}: wait, or give another folder")
        try:
            refuse_linked(out / f".pack-{split}")
            yield out / f".pack-{split}"
        except BaseException:
            if not was_locked and not any(out.glob(".pack-*")):  # nothing was begun: nothing stays
                lock.unlink(missing_ok=True)
                with suppress(OSError):
                    if not before:
                        out.rmdir()
            raise


def finished_shards(out: Path, work: Path, split: str, settings: Json, resume: bool) -> dict[str, ShardRecord]:
    """The shards that an earlier run with the same settings recorded, by name; `work` belongs to these settings now.

    Raises `MismatchError` where the settings differ, naming each difference, `InputError` where shards of that name are
    not `pack`'s. With `resume` False, what an earlier `pack` wrote of the split is removed, whatever its settings.
    """
    entry = read_info(out)["splits"].get(split)
    before = entry.get("pack") if entry is not None else _json(work / _PLAN)
    if before is not None and not isinstance(before, dict):
        raise SchemaError(f"{shown(out / INFO)}, split {split}: 'pack' must be an object, found {shown(before)}")
    there = [path for path in out.glob(f"{split}-*.tar") if re.fullmatch(r"[0-9]{6}", path.stem[len(split) + 1 :])]
    if before is None and (there or entry is not None):
        raise InputError(f"{shown(out)} holds a split {split} that dlth pack did not write: give another folder")
    if before is not None and not resume:
        _forget(out, work, split, there)
        entry = None
    elif before is not None and before != settings:
        names = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        differences = "; ".join(f"{name}: there {shown(before.get(name))}, now {settings.get(name)}" for name in names)
        raise MismatchError(
            f"{shown(out)} holds the split {split} from other settings or images. {differences}. Give another folder, "
            "use the same settings, or write the split anew (--restart, or resume=False)."
        )
    work.mkdir(exist_ok=True)
    write_files({work / _PLAN: json.dumps(settings).encode()})
    if entry is not None:
        return {record.name: record for record in shard_records(entry, str(out / INFO))}
    values = {path: _json(path) for path in sorted(work.glob(f"*{_RECORD}"))}
    records = [shard_record(value, str(path)) for path, value in values.items() if value is not None]
    return {record.name: record for record in records}


def has_records(work: Path) -> bool:
    """Whether a shard was finished and the split is not."""
    return any(work.glob(f"*{_RECORD}"))


def record_shard(work: Path, record: ShardRecord) -> None:
    """Remember a finished shard."""
    path = work / (record.name.removesuffix(".tar") + _RECORD)
    write_files({path: json.dumps(asdict(record)).encode()})


def _forget(out: Path, work: Path, split: str, shards: list[Path]) -> None:
    """Remove a split, its settings last: a run that is killed on the way leaves nothing that looks like another's."""
    for path in [*work.glob(f"*{_RECORD}"), *shards]:
        path.unlink()
    info = read_info(out)
    if info["splits"].pop(split, None) is not None:
        work.mkdir(exist_ok=True)
        write_files({out / INFO: json.dumps(info, indent=1).encode()}, work / f"{INFO}.partial")


def _json(path: Path) -> Json | None:
    if not path.exists():
        return None
    value = parse(read_file(path, _MAX_BYTES, shown(path)), shown(path))
    if not isinstance(value, dict):
        raise SchemaError(f"{shown(path)}: an object is expected: remove {shown(path.parent)} and pack again")
    return value
