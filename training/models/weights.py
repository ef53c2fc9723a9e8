"""Weights from files: safetensors, or .pth without running the code in it; and the digest of a model's weights.

A .pth is a pickle, and a pickle is a program. It is read by torch's restricted reader alone (`weights_only=True`, given
explicitly so that no environment variable switches it off); the one foreign type that DeiT's and EViT's releases need,
`argparse.Namespace`, is replaced by an empty stand-in. Loading is strict: every missing, unexpected or misshapen entry
is named, since a model with half of its weights still runs and still gives tickets. Not timm's `load_checkpoint`
and its filters, which resample position embeddings and drop heads without a word.
"""

import hashlib
import io
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dlth.tickets.errors import InputError, LimitError, MismatchError, MissingFileError, UnsafeError, shown
from dlth.tickets.store.disk import reading

WEIGHTS = ("state_dict", "model", "model_state_dict")
EMA_WEIGHTS = ("state_dict_ema", "model_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What data parallel training, torch.compile and wrapping models put before every name."""

_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_FILE_BYTES = 64 * 2**30
MAX_HEADER_BYTES = 100 * 2**20
_LEGACY_PICKLES = 5
"""Magic number, version, machine, content and names of storages; a zip has one, the content."""
NAMED = 6
"""How many entries of a kind a message names."""


class LoadedWeights(NamedTuple):
    """What was loaded: `weights_digest` of the model with the weights in it, and the file's name without folders."""

    sha256: str
    source: str


class _Namespace:
    """Stands in for `argparse.Namespace`, the options that DeiT and EViT store beside their weights; never read."""


def load_weights(vit: nn.Module, path: str | Path, use_ema: bool = False) -> LoadedWeights:
    """Load a checkpoint into a model, strictly.

    Args:
        vit: the model; its dtypes and device are kept
        path: safetensors, or a .pth of timm's, DeiT's or EViT's form (weights alone, or under "model" or "state_dict")
        use_ema: take the averaged weights that timm and DeiT store beside the others
    Raises:
        MissingFileError: no such file
        UnsafeError: a .pth that holds more than tensors and plain values
        LimitError: a file beyond any model's size
        InputError: no checkpoint, or none with the weights asked for
        MismatchError: missing, unexpected or misshapen entries, all named
    """
    path = Path(path)
    vit.load_state_dict(check_fits(vit, read_weights(path, use_ema), path.name), strict=True)
    return LoadedWeights(weights_digest(vit), path.name)


def check_fits(vit: nn.Module, weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of the file `name` under the model's own names; the model may be on the meta device.

    Raises:
        MismatchError: missing, unexpected or misshapen entries, all named
    """
    own = vit.state_dict()
    renamed = {_timm_name(name, own): tensor for name, tensor in weights.items()}
    if problems := _differences(own, renamed):
        raise MismatchError(f"{name} does not fit this {type(vit).__name__}: {' '.join(problems)}")
    return renamed


def read_weights(path: str | Path, use_ema: bool = False) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, on the CPU, without wrappers' prefixes. Raises as `load_weights`."""
    path = Path(path)
    with reading(path):
        if not path.is_file():
            raise MissingFileError(f"there is no weights file {shown(path)}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise LimitError(f"{path.name} has {path.stat().st_size} bytes; weights files end at {MAX_FILE_BYTES}")
        content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    return _without_prefixes(_tensors(content, path, use_ema))


def stored_weights(path: Path) -> dict[str, Tensor]:
    """The same of a safetensors file without its numbers, on the meta device: the header alone is read.

    Raises:
        InputError: no whole safetensors file
    """
    try:
        with reading(path), safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{shown(path)} is no whole safetensors file: {shown(error)}") from error


def check_own(path: Path) -> None:
    """Raises UnsafeError for a link, a folder or a device in the place of a run's weights; it may be missing."""
    if path.is_symlink():
        raise UnsafeError(f"{shown(path)} is a link; weights of a run are read from its own folder alone")
    if path.exists() and not path.is_file():
        raise UnsafeError(f"{shown(path)} is no file, and a run's weights should be there: move it away")


def read_tensor(path: Path, limit: int) -> Tensor:
    """The one tensor of plain numbers that a .pt file of at most `limit` bytes holds, on the CPU. Raises as
    `load_weights`.
    """
    with reading(path):
        if not path.is_file():
            raise MissingFileError(f"there is no file {shown(path)}")
        if path.stat().st_size > limit:
            raise LimitError(f"{shown(path.name)} has {path.stat().st_size} bytes, the bound is {limit}")
        content = _read_pickle(path)
    if not isinstance(content, Tensor) or not _is_plain(content):
        raise InputError(f"{shown(path.name)} holds a {type(content).__name__}, not one tensor of plain numbers")
    return content


def head_classes(weights: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the head among named weights; None if they have no linear head."""
    head = weights.get("head.weight")
    return head.shape[0] if head is not None and head.ndim == 2 else None


def weights_digest(vit: nn.Module) -> str:
    """sha256, in hex, of a model's weights (names in order, dtypes, shapes, bytes), wherever they were stored."""
    return tensors_digest(vit.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The same of named weights that are in no model."""
    return _digest(sorted(tensors.items()))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored_digest(path: Path) -> str:
    """The same of a safetensors file, one tensor of it in memory at a time. Raises as `read_weights`.

    A file with holes is of any size and takes no room, so none may be larger than the machine's memory either.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (size := path.stat().st_size) > min(there, MAX_FILE_BYTES):
        raise LimitError(f"{shown(path)} has {size} bytes; this machine has {there} bytes of memory")
    try:
        with reading(path), safe_open(path, framework="pt") as file:
            return _digest((name, file.get_tensor(name)) for name in sorted(file.keys()))
    except SafetensorError as error:
        raise InputError(f"{shown(path)} is no whole safetensors file: {shown(error)}") from error


def _is_safetensors(path: Path) -> bool:
    """By name, or by content: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name} is no whole safetensors file: {shown(error)}") from error


def _read_pickle(path: Path) -> object:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"  # as torch decides: `zipfile.is_zipfile` looks at the file's other end
    if is_zip:
        _check_zip(path)
    elif tarfile.is_tarfile(path):  # torch would unpack its members, links and all, and read what they lead to
        raise UnsafeError(f"{path.name} is a tar, a form that torch left before 2017; have it saved again")
    else:
        with path.open("rb") as file:
            _check_calls(file.read(MAX_HEADER_BYTES), path.name)
    try:
        with torch.serialization.safe_globals([(_Namespace, "argparse.Namespace")]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise UnsafeError(
            f"{path.name} holds more than tensors and plain values and was not opened: {_cause(error)} "
            "If you trust who made it, have its weights saved again alone, best as safetensors."
        ) from error
    except Exception as error:  # a damaged file meets assertions, struct.error and more in torch's reader
        raise InputError(
            f"{path.name} is no checkpoint that can be read: {type(error).__name__}: {_cause(error)}"
        ) from error


def _check_zip(path: Path) -> None:
    """Only stored members within the file: a compressed one could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        one_directory = _has_one_directory(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise InputError(f"{path.name} is no checkpoint that can be read: {shown(error)}") from error
    if not one_directory:
        raise UnsafeError(f"{path.name} does not end as torch.save ends a file: its readers would find other members")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UnsafeError(f"{path.name} holds compressed members; torch.save writes none")
    if any(member.file_size > MAX_HEADER_BYTES for member in members if member.filename.endswith("data.pkl")):
        raise LimitError(f"{path.name} has a pickle above {MAX_HEADER_BYTES} bytes beside its tensors")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [archive.read(member) for member in members if member.filename.endswith("data.pkl")]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, RuntimeError, EOFError) as error:
        raise InputError(f"{path.name} is no checkpoint that can be read: {shown(error)}") from error
    for content in pickles:
        _check_calls(content, path.name)


def _check_calls(content: bytes, name: str) -> None:
    """Raises UnsafeError for pickles that call bytearray: torch's reader lets a few bytes make gigabytes so.

    `content` begins with a pickle, or with those that a file of torch's form before zips is made of.
    """
    stream = io.BytesIO(content)
    try:
        for _ in range(_LEGACY_PICKLES):
            for code, argument, _ in pickletools.genops(stream):
                if code.name == "GLOBAL" and str(argument).endswith(" bytearray"):  # Python 2's is a __builtin__
                    raise UnsafeError(
                        f"{name} holds more than tensors and plain values and was not opened: it calls"
                        f" {shown(argument)}, which takes memory of any size. Have its weights saved again alone, best"
                        " as safetensors."
                    )
            if stream.tell() == len(content):
                return
    except ValueError as error:
        raise InputError(f"{name} is no checkpoint that can be read: {shown(error)}") from error


def _has_one_directory(path: Path) -> bool:
    """Whether a zip's list of members ends where its end records begin, as they say; nothing follows them.

    zipfile takes the list that stands before the end records, torch's reader the one at the offset that they state.
    """
    with path.open("rb") as file:
        begin = file.seek(-22, 2)
        mark, size, offset, comment = struct.unpack("<4s8xIIH", file.read(22))
        file.seek(max(0, begin - 76))
        record = file.read(76)  # the zip64 record and the locator that states its offset, where they are
    if record[-20:-16] == b"PK\6\7":
        begin -= 76
        stated = struct.unpack("<Q", record[-12:-4])[0]
        if stated != begin or record[:4] != b"PK\6\6":
            return False
        size, offset = struct.unpack("<QQ", record[40:56])
    return bool(mark == b"PK\5\6" and comment == 0 and offset + size == begin)


def _cause(error: Exception) -> str:
    """The line of torch's long advice that says what was wrong (never its advice to switch the safe reader off)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("WeightsUnpickler error", "Unsupported", "Trying"))]
    return shown((telling or lines or [type(error).__name__])[0])


def _tensors(content: object, path: Path, use_ema: bool) -> dict[str, Tensor]:
    """The weights among what a checkpoint holds."""
    if not isinstance(content, Mapping):
        raise InputError(f"{path.name} holds a {type(content).__name__}, not named weights")
    names = EMA_WEIGHTS if use_ema else WEIGHTS
    inner = next((content[name] for name in names if isinstance(content.get(name), Mapping)), None)
    if inner is None and use_ema:
        raise InputError(f"{path.name} holds no averaged weights ({', '.join(names)}); it holds {_named(content)}")
    weights = {str(name): value for name, value in (content if inner is None else inner).items()}
    others = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if others or not weights:
        raise InputError(
            f"{path.name} holds no weights under {', '.join(names)} and is none itself; it holds {_named(weights)}"
        )
    odd = [name for name, value in weights.items() if not _is_plain(value)]
    if odd:
        raise InputError(
            f"{path.name} holds tensors that are no plain numbers (sparse, quantised, complex, nested, expanded or"
            f" without content): {_named(odd)}. Have the weights saved again as dense floats, best as safetensors"
        )
    return weights


def _is_plain(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are there, and real: torch fails on others anywhere.

    An expanded tensor (stride 0) has more numbers than bytes: a file of 2 kB could ask for a head of 8,000,000 classes.
    """
    strided = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized)
    real = strided and (tensor.is_floating_point() or tensor.dtype in _WHOLE)
    return real and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _timm_name(name: str, own: Mapping[str, Tensor]) -> str:
    """DeiT III's releases call layer scale gamma_1 and gamma_2, timm's models ls1.gamma and ls2.gamma."""
    other = name.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma")
    return other if name not in own and other in own else name


def _differences(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    """Sentences on what does not agree; none if all does."""
    missing = [name for name in own if name not in loaded]
    unexpected = [name for name in loaded if name not in own]
    misshapen = [name for name in own if name in loaded and own[name].shape != loaded[name].shape]
    problems = []
    if missing:
        problems.append(f"missing in the file: {_named(missing)}.")
    if unexpected:
        problems.append(f"not in the model: {_named(unexpected)}.")
    if misshapen:
        shapes = [f"{name} (file {_shape(loaded[name])}, model {_shape(own[name])})" for name in misshapen]
        problems.append(f"of another shape: {_named(shapes)}.")
    if "pos_embed" in misshapen:
        problems.append("Position embeddings of another size: build the model with the file's img_size and patch_size.")
    if "head.weight" in misshapen and (classes := head_classes(loaded)):
        problems.append(f"Another head: build the model with num_classes={classes}.")
    return problems


def _named(names: Iterable[object]) -> str:
    every = [shown(name, 80) for name in names]
    return ", ".join(every[:NAMED]) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
