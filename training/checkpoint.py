"""Checkpoints that a kill at any moment cannot tear, and that hold no code.

    checkpoints/step-00000120/model.safetensors   weights under timm's names; ema, optimizer in files of their own
    checkpoints/step-00000120/state.json          everything else, and the digest of each file
    checkpoints/latest                            the name of the newest whole one

Each is a new folder, written under another name, synced and renamed; the pointer is renamed into place last, and only
then are older ones removed. So `latest` always names a whole checkpoint. `torch.save` was rejected because it pickles;
so nested state (an optimizer's) is taken apart into named tensors and a JSON tree. Randomness is not in the list: the
loop draws it anew for each (seed, step, rank), so nothing of it has to be carried over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dlth.tickets.errors import DamageError, InputError, MissingFileError, SpaceError, shown

FORMAT = "dlth-checkpoint"
VERSION = 1
STATE, LATEST, SUFFIX = "state.json", "latest", ".safetensors"

Tensors = Mapping[str, torch.Tensor]
MAX_STATE_BYTES = 256 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: `parts` by name (tensors on the CPU), `state` as it was given, and where it was."""

    parts: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    path: Path


def save(
    folder: Path, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any], keep: int, note: Any = None
) -> Path:
    """Write a checkpoint of `step`, point `latest` at it, and remove all but the newest `keep`.

    Args:
        folder: where the run's checkpoints are
        step: steps done
        parts: tensors by name, for each part (model, optimizer, …) a file
        state: what goes into JSON
        keep: how many checkpoints stay
        note: what each tensor file says of itself (`write_tensors`)
    Raises:
        SpaceError: the disk is full; the checkpoints before this one are untouched
    """
    name = f"step-{step:08d}"
    final, partial = folder / name, folder / f"{name}.partial"
    if newest(folder) == final:  # a run stopped right after it was resumed
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in (partial, final):  # of a run that was killed before `latest` named it
            if left_over.exists():
                shutil.rmtree(left_over)
        partial.mkdir()
        for part, tensors in parts.items():
            write_tensors(partial / f"{part}{SUFFIX}", tensors, note)
        files = {part: _digest(partial / f"{part}{SUFFIX}") for part in parts}
        head = {"format": FORMAT, "version": VERSION, "files": files, "state": state}
        write_text(partial / STATE, json.dumps(head, indent=1))
        sync(partial)
        partial.rename(final)
        sync(folder)
        write_text(folder / LATEST, name + "\n")
    except (OSError, SafetensorError) as error:
        raise _no_room(error, partial) from error
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old.name != name:
            shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names, or None when there is none yet.

    Raises:
        DamageError: the pointer names nothing that is there
    """
    pointer = folder / LATEST
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    path = folder / name
    if not name.startswith("step-") or "/" in name or not path.is_dir():
        raise DamageError(f"{pointer} names {shown(name)!r}, which is no checkpoint in {folder}", file=str(pointer))
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and check it against its digests.

    Raises:
        MissingFileError: there is no checkpoint at `path`, or a file of it is missing
        DamageError: its bytes are not those that were written
        InputError: another program or a newer dlth wrote it
    """
    if not (path / STATE).is_file():
        raise MissingFileError(f"{shown(path)} is no checkpoint of dlth: it has no {STATE}")
    if (path / STATE).stat().st_size > MAX_STATE_BYTES:
        raise DamageError(f"{path / STATE} is larger than {MAX_STATE_BYTES} bytes", file=STATE)
    try:
        head = json.loads((path / STATE).read_text(encoding="utf-8"))
        found = head["format"], head["version"]
        files, state = dict(head["files"]), head["state"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path / STATE} cannot be read: {error}", file=STATE) from error
    if found != (FORMAT, VERSION):
        raise InputError(f"{path} is {shown(found)}; this dlth reads {FORMAT} version {VERSION}")
    return Checkpoint({part: _part(path, part, digest) for part, digest in files.items()}, state, path)


def _part(path: Path, part: str, digest: str) -> dict[str, torch.Tensor]:
    file = path / f"{Path(part).name}{SUFFIX}"
    if not file.is_file():
        raise MissingFileError(f"{file}, a part of the checkpoint, is missing")
    if _digest(file) != digest:
        raise DamageError(f"{file} is damaged: its sha256 is not the one in {STATE}", file=file.name)
    return read_tensors(file)


def take_apart(value: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A nested state as a JSON tree; its tensors go into `tensors` under names that begin with `prefix`.

    Raises:
        InputError: the state holds something that is neither a tensor, a container, a number, text nor None
    """
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach()
        return {"tensor": prefix}
    if isinstance(value, Mapping):
        return {"dict": [[key, take_apart(item, f"{prefix}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [take_apart(item, f"{prefix}.{at}", tensors) for at, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise InputError(f"this optimizer's state cannot be saved: {prefix} is a {type(value).__name__}")


def put_together(tree: Any, tensors: Tensors) -> Any:
    """The nested state that `take_apart` took apart."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: put_together(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        return (tuple if kind == "tuple" else list)(put_together(item, tensors) for item in content)
    return content


def write_tensors(path: Path, tensors: Tensors, note: Any = None) -> None:
    """Write tensors as safetensors, whole or not at all; `note` is kept as JSON in the file's metadata.

    The note is one entry, as safetensors writes several in an order that changes from run to run.
    """
    partial = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata={"dlth": json.dumps(note)} if note is not None else None)
    partial.chmod(0o666 & ~_umask())  # safetensors lets nobody but the owner read; whoever reads the result may read it
    _publish(partial, path)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, on the CPU.

    Raises:
        DamageError: the file is no safetensors file
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamageError(f"{shown(path)} is no whole safetensors file: {error}", file=str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _publish(partial, path)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(partial: Path, path: Path) -> None:
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_room(error: Exception, partial: Path) -> Exception:
    shutil.rmtree(partial, ignore_errors=True)
    return SpaceError(
        f"the checkpoint {partial.stem} could not be written: {error}. Earlier checkpoints are whole;"
        " make room and run again with --resume auto."
    )
