"""Settings that nobody gave, worked out from what lies in the working folder: shards, weights, the twin of a file.

Each function takes a command's layers and gives them back with one more at the bottom, so that whatever a user wrote
wins, and with a sentence on everything that was taken: a command must not do what it does not say. Only the command
line derives; the library's settings stay explicit.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlth.data.remote.addresses import is_remote
from dlth.data.shards.splits import EVALUATION, TRAINING, VALIDATION, first_of, splits_in, words
from dlth.data.sharing.ticket_cache import local_tickets
from dlth.pipeline.project.file import ProjectFile
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.label_config import LabelConfig
from dlth.tickets import TicketHeader, TicketStore
from dlth.tickets.errors import DlthError, InputError, shown
from dlth.tickets.format.provenance import ranker_of
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.layering import Layers, TrainT

FOLDERS = (Path("shards"), Path("data"))
"""Where shards are looked for when nothing names them, in the working folder."""

DERIVED = "derived"
Values = dict[str, Any]


def for_select(layers: Layers[SelectConfig], file: ProjectFile | None) -> tuple[Layers[SelectConfig], list[str]]:
    """Shards, split, view, weights and name of the ticket file.

    Raises:
        InputError: validation tickets are asked for, and the file of settings names training shards alone
    """
    values, notes = Values(), list[str]()
    split = str(layers.get("split") or "")
    if layers.get("data") is None and (shards := shards_here(file)):
        folder, training, _ = shards
        values["data"], split = str(folder), split or training
        notes.append(f"data: {shown(folder)}, the shards found here" + (f" (split {split})" if split else ""))
    data = str(values.get("data") or layers.get("data") or "")
    if split.lower() in VALIDATION and file is not None and data == file.top.get("data") and data.endswith(".tar"):
        raise InputError(
            f"{shown(file.path)} does not say where the shards of split {shown(split)} are: add val = … to it, or give"
            " --data"
        )
    if not split and data.endswith(".tar"):  # named one by one, so the split is a name for the header alone
        split = first_of(TRAINING, words(data.rpartition("/")[2])) or ""
    values |= {"split": split} if split else {}
    if split.lower() in EVALUATION and not layers.is_given("view"):
        values["view"] = "center"
        notes.append(f"view: center, the evaluation's, as the split is {shown(split)}")
    if not any(layers.get(name) or layers.is_given(name) for name in ("pretrained", "checkpoint", "random_weights")):
        values["pretrained"] = True
        notes.append("weights: timm's pretrained ones, as neither --checkpoint nor --random-weights is given")
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", split)
    values["out"] = "tickets.zarr" if split.lower() in ("", *TRAINING) else f"tickets-{plain}.zarr"
    return layers.under(DERIVED, values), notes


def for_label(layers: Layers[LabelConfig], file: ProjectFile | None) -> tuple[Layers[LabelConfig], list[str]]:
    """Shards, split and name of the token label file; of a folder of several splits, the training images."""
    values, notes = Values(out="labels.zarr"), list[str]()
    split = str(layers.get("split") or "")
    if layers.get("data") is None and (shards := shards_here(file)):
        folder, training, _ = shards
        values["data"], split = str(folder), split or training
        notes.append(f"data: {shown(folder)}, the shards found here" + (f" (split {split})" if split else ""))
    elif not split and (data := str(layers.get("data") or "")):
        if data.endswith(".tar"):  # named one by one, so the split is a name for the header alone
            split = first_of(TRAINING, words(data.rpartition("/")[2])) or ""
        elif split := first_of(TRAINING, () if is_remote(data) else splits_in(Path(data))) or "":
            notes.append(f"split: {shown(split)}, the training images of {shown(data)}")
    return layers.under(DERIVED, values | ({"split": split} if split else {})), notes


def for_train(layers: Layers[TrainT], file: ProjectFile | None) -> tuple[Layers[TrainT], list[str]]:
    """Training and validation shards, and the validation images' tickets."""
    values, notes = Values(), list[str]()
    if layers.get("data") is None and (shards := shards_here(file)):
        folder, training, validation = shards
        values |= {"data": str(folder)} | ({"split": training} if training else {})
        if validation and layers.get("val") is None:
            values |= {"val": str(folder), "val_split": validation}
        which = [text for text in (training, validation) if text]
        notes.append(
            f"data: {shown(folder)}, the shards found here" + (f" (split {' and '.join(which)})" if which else "")
        )
    layers = layers.under(DERIVED, values)
    tickets = layers.get("tickets")
    if tickets and layers.get("val") and layers.get("val_tickets") is None:
        twin, about = twin_of(str(tickets))
        notes += about
        if twin is not None:
            layers = layers.under(DERIVED, {"val_tickets": str(twin)})
    return layers, notes


def for_evaluate(layers: Layers[EvalConfig], file: ProjectFile | None) -> tuple[Layers[EvalConfig], list[str]]:
    """Validation shards."""
    if layers.get("val") is not None or (shards := shards_here(file)) is None or not shards[2]:
        return layers, []
    folder, _, validation = shards
    note = f"val: {folder}, the shards found here (split {validation})"
    return layers.under(DERIVED, {"val": str(folder), "val_split": validation}), [note]


def shards_here(file: ProjectFile | None) -> tuple[Path, str, str] | None:
    """A folder of shards in the working folder, with the names of its training and validation splits, "" without.

    None where the file of settings says where the shards are, or where no folder has shards to train on.
    """
    if file is not None and file.top.keys() & {"data", "val"}:
        return None
    for folder in FOLDERS:
        splits = splits_in(folder)
        training, validation = first_of(TRAINING, splits), first_of(EVALUATION, splits)
        if training is not None or "" in splits:
            return folder, training or "", validation or ""
    return None


def twin_of(tickets: str) -> tuple[Path | None, list[str]]:
    """The validation tickets that stand beside training tickets and were made by the same selector.

    tickets.zarr has tickets-val.zarr, train.zarr has val.zarr; a file of such a name that does not belong is named.
    """
    header = header_of(tickets)
    for path in _twin_names(Path(tickets)) if header is not None else ():
        if header is None or not path.exists():
            continue
        if (other := header_of(str(path))) is None:
            return None, [f"{path} is not taken as --val-tickets: it cannot be opened as a ticket file"]
        if reason := _no_twin(header, other):
            return None, [f"{path} is not taken as --val-tickets: {reason}"]
        return path, [f"val tickets: {path}, the twin of {shown(tickets)}"]
    return None, []


def header_of(tickets: str) -> TicketHeader | None:
    """The header of a ticket file on this machine; None for one that cannot be opened, which the run itself refuses."""
    if is_remote(tickets):
        return None
    try:
        return TicketStore(local_tickets(tickets)).header
    except DlthError:
        return None


def _twin_names(path: Path) -> Iterator[Path]:
    suffix = next((end for end in (".zarr.zip", ".zarr", ".zip") if path.name.endswith(end)), "")
    stem = path.name.removesuffix(suffix)
    for word in EVALUATION:
        replaced = re.sub(r"(?<![A-Za-z])(training|train)(?![A-Za-z])", word, stem)
        for name in (replaced, f"{stem}-{word}"):
            if name != stem:
                yield path.with_name(name + suffix)


def _no_twin(training: TicketHeader, other: TicketHeader) -> str:
    """Why tickets are not the validation tickets of a training split's; empty if they are."""
    if other.dataset.split.lower() not in EVALUATION:
        return f"its header says split {shown(other.dataset.split)!r}"
    ours, theirs = training.selector, other.selector
    if (ours.model, ours.weights_sha256) != (theirs.model, theirs.weights_sha256):
        return f"another selector made it ({shown(theirs.model)}, weights {theirs.weights_sha256[:16] or 'unknown'})"
    if ranker_of(training) != ranker_of(other):
        return f"another ranker made it ({ranker_of(other)})"
    return ""
