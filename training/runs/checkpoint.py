"""Checkpoints that a kill at any moment cannot tear, and that hold no code.

    checkpoints/step-00000120/model.safetensors   weights under timm's names; ema, optimizer in files of their own
    checkpoints/step-00000120/state.json          everything else, the size and digest of each file, and its own digest
    checkpoints/latest                            the name of the newest whole one, and a check of it

So one digest covers all that a resumed run reads: what a run must have alike, where it was, and by their digests the
tensors and the log up to there. Version 1 had no digest of its own; it is read, and its fields have to agree.

Each is a new folder, written under another name, synced and renamed; the pointer is renamed into place last, and only
then are older ones removed. So `latest` always names a whole checkpoint. `torch.save` was rejected because it pickles;
so nested state (an optimizer's) is taken apart into named tensors and a JSON tree. Randomness is not in the list: the
loop draws it anew for each (seed, step, rank), so nothing of it has to be carried over.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dlth.tickets.errors import DamageError, DlthError, InputError, MissingFileError, shown
from dlth.tickets.store.disk import read_file, refuse_linked, sync
from dlth.training.run_files import published, write_errors, write_text
from dlth.training.runs.sealed_json import SEAL, read_sealed, sealed

FORMAT = "dlth-checkpoint"
VERSION, FIRST_VERSION = 2, 1
STATE, LATEST, SUFFIX = "state.json", "latest", ".safetensors"

Tensors = Mapping[str, torch.Tensor]
MAX_STATE_BYTES = 32 << 20
"""An optimizer's tree for a thousand weights has a hundred kilobytes; a million corrupt images add ten megabytes. What
JSON of this size unpacks to at worst is about 1 GB."""
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_STEP, _PART = re.compile(r"step-[0-9]{8,18}"), re.compile(r"[a-z_]{1,32}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: `parts` by name (tensors on the CPU), `state` as it was given, where it was, version."""

    parts: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    path: Path
    version: int = VERSION


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
        InputError, MachineError: nothing can be written there, or the state is beyond what would be read again
    """
    name = f"step-{step:08d}"
    final, partial = folder / name, folder / f"{name}.partial"
    if newest(folder) == final:  # a run stopped right after it was resumed
        return final
    try:
        with write_errors(partial):
            _write(folder, final, partial, parts, state, note)
    except DlthError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in sorted(filter(_is_ours, folder.iterdir()))[:-keep]:
        if old.name != name:
            shutil.rmtree(old)
    return final


def _is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint, or what a kill left of one: a link is not, whatever its name."""
    return bool(_STEP.fullmatch(path.name.removesuffix(".partial"))) and path.is_dir() and not path.is_symlink()


def _write(
    folder: Path, final: Path, partial: Path, parts: Mapping[str, Tensors], state: Mapping[str, Any], note: Any
) -> None:
    refuse_linked(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (partial, final):  # of a run that was killed before `latest` named it
        if left_over.exists():
            shutil.rmtree(left_over)
    partial.mkdir()
    for part, tensors in parts.items():
        write_tensors(partial / f"{part}{SUFFIX}", tensors, note)
    files = {part: _entry(partial / f"{part}{SUFFIX}") for part in parts}
    head = sealed({"format": FORMAT, "version": VERSION, "files": files, "state": state})
    text = json.dumps(head, indent=1)
    if len(text) > MAX_STATE_BYTES:
        raise InputError(f"this run's state has {len(text)} bytes of JSON; a checkpoint's ends at {MAX_STATE_BYTES}")
    write_text(partial / STATE, text)
    sync(partial)
    partial.rename(final)
    sync(folder)
    write_text(folder / LATEST, f"{final.name} {_check(final.name)}\n")


def newest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names, or None when there is none yet.

    Raises:
        DamageError: the pointer names nothing that is there
        UnsafeError, LimitError: the pointer is no file, or none of ours
    """
    pointer = folder / LATEST
    if not os.path.lexists(pointer):
        return None
    name, *check = read_file(pointer, 100, shown(pointer)).decode("utf-8", "replace").split() or [""]
    path = folder / name
    if not _STEP.fullmatch(name) or not path.is_dir() or check not in ([], [_check(name)]):  # version 1 has no check
        raise DamageError(f"{pointer} names {shown(name)!r}, which is no checkpoint in {folder}", file=str(pointer))
    return path


def _check(name: str) -> str:
    """By which a name is known from another that stands one flipped bit away."""
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:16]


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and check it against its digests.

    Raises:
        MissingFileError: there is no checkpoint at `path`, or a file of it is missing
        DamageError: its bytes are not those that were written
        InputError: another program or a newer dlth wrote it
        UnsafeError, LimitError: a link or a device in a file's place, or one beyond any checkpoint's size
    """
    if not os.path.lexists(path / STATE):
        raise MissingFileError(f"{shown(path)} is no checkpoint of dlth: it has no {STATE}")
    head, is_sealed = read_sealed(path / STATE, MAX_STATE_BYTES)
    kind, version = head.get("format"), head.get("version")
    if kind != FORMAT or version not in (FIRST_VERSION, VERSION):
        raise InputError(
            f"{path} is {shown((kind, version))}; this dlth reads {FORMAT} versions {FIRST_VERSION} to {VERSION}"
        )
    files, state = head.get("files"), head.get("state")
    if not isinstance(files, dict) or not isinstance(state, dict) or (version == VERSION and not is_sealed):
        raise DamageError(f"{path / STATE} cannot be read: files, state or its {SEAL} are missing", file=STATE)
    return Checkpoint({part: _part(path, part, entry) for part, entry in files.items()}, state, path, version)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _part(path: Path, part: str, entry: Any) -> dict[str, torch.Tensor]:
    """A part's tensors; `entry` is its size and digest, in version 1 the digest alone."""
    file = path / f"{part}{SUFFIX}"
    if not _PART.fullmatch(part):
        raise DamageError(f"{path / STATE} names a part {shown(part)!r}, which no checkpoint has", file=STATE)
    if not file.is_file():
        raise MissingFileError(f"{file}, a part of the checkpoint, is missing")
    recorded = entry if isinstance(entry, dict) else {"sha256": entry}
    same_size = recorded.get("bytes", file.stat().st_size) == file.stat().st_size  # before what may be endless is read
    if not same_size or _entry(file)["sha256"] != recorded.get("sha256"):
        raise DamageError(f"{file} is damaged: its sha256 is not the one in {STATE}", file=file.name)
    return read_tensors(file)


def take_apart(value: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A nested state as a JSON tree; its tensors go into `tensors` under names that begin with `prefix`.
    Raises InputError for what is neither a tensor, a container, a dtype, a number, text nor None.
    """
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach()
        return {"tensor": prefix}
    if isinstance(value, Mapping):
        return {"dict": [[key, take_apart(item, f"{prefix}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [take_apart(item, f"{prefix}.{at}", tensors) for at, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, torch.dtype):  # of a group, which says in what its momentum is kept
        return {"dtype": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise InputError(f"this optimizer's state cannot be saved: {prefix} is a {type(value).__name__}")


def put_together(tree: Any, tensors: Tensors) -> Any:
    """The nested state that `take_apart` took apart. Raises DamageError for no such tree, or a missing tensor."""
    try:
        return _put_together(tree, tensors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{STATE} holds no state of an optimizer: {shown(error)}", file=STATE) from error


def _put_together(tree: Any, tensors: Tensors) -> Any:
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: _put_together(item, tensors) for key, item in content}
        case "list" | "tuple":
            return (tuple if kind == "tuple" else list)(_put_together(item, tensors) for item in content)
        case "float":
            return float(content)
        case "dtype":
            return _DTYPES[content]
        case "value" if not isinstance(content, dict | list):
            return content
    raise ValueError(f"there is no value of the kind {kind!r}")


def write_tensors(path: Path, tensors: Tensors, note: Any = None) -> None:
    """Write tensors as safetensors, whole or not at all; `note` is kept as JSON in the file's metadata.

    The note is one entry, as safetensors writes several in an order that changes from run to run.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with published(path) as file:
        partial = Path(file.name)
        save_file(contiguous, partial, metadata={"dlth": json.dumps(note)} if note is not None else None)
        partial.chmod(0o666 & ~_umask())  # safetensors lets the owner alone read; whoever reads results may read it


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, on the CPU. Raises DamageError where the file is none."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamageError(f"{shown(path)} is no whole safetensors file: {error}", file=str(path)) from error
