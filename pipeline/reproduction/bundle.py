"""A bundle: all that shows a row of the paper's table, in one folder that others can check without GPU or images.

    bundle.json                what it is of, and size and sha256 of every other file; sealed, in one canonical form
    study.json                 the plan of the row's runs, so that `dlth report` takes a bundle for the study that it is
    tickets.json               identity and header of the ticket files, of training and of validation images
    runs/NAME/config.toml      every setting of a run
    runs/NAME/metrics.jsonl    its log
    runs/NAME/eval.npz         what became of every validation image
    runs/NAME/result.json      its result: versions, machine, digests of images, tickets and weights

It is written beside its place and renamed when it is whole, so half a bundle is none. Weights stay with the run: they
are a hundred times the rest, and their digests are here. Digests are no signature: whoever may write all files may
write another bundle. What they find is a bundle that is not as it was made.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dlth.data.sharing.ticket_cache import local_tickets
from dlth.pipeline.evidence.study_plan import MAX_STUDY_BYTES, RUNS, STUDY, StudyPlan, write_study
from dlth.pipeline.reproduction.experiment import WHOLE
from dlth.tickets.errors import DamageError, IncompleteError, MismatchError, SchemaError, shown
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.jsontext import parse
from dlth.tickets.store.disk import fresh, read_file, sync, unforeseen
from dlth.tickets.store.ticket_store import TicketStore
from dlth.training.models.weights_metadata import EMA_FILE, MODEL_FILE
from dlth.training.run_files import write_errors, write_text
from dlth.training.runs.result import MAX_RESULT_BYTES, RunResult, read_result, versions
from dlth.training.runs.resume import VAL_RESULTS
from dlth.training.runs.runlog import METRICS, RESULT
from dlth.training.runs.sealed_json import read_sealed, sealed
from dlth.training.settings.toml_text import CONFIG

MANIFEST, TICKETS = "bundle.json", "tickets.json"
OF_A_RUN = (CONFIG, METRICS, VAL_RESULTS, RESULT)
MAX_MANIFEST, MAX_TICKETS, MAX_FILE = 4 << 20, 4 << 20, 256 << 20
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
Word = Annotated[str, Field(max_length=100)]


@dataclass(frozen=True)
class FileRecord:
    """What a file of a bundle must be."""

    size: Annotated[int, Field(ge=0, le=MAX_FILE)]
    sha256: Digest


@dataclass(frozen=True)
class Manifest:
    """What a bundle is of.

    row: the experiment; mode: of its tickets; scale: "1", or the share of images and epochs that it was tried with
    runs: names of its runs, each once; weights: of each run, sha256 of its weights' files
    versions: of what made the bundle; files: every other file of the bundle, by its path with slashes

    Raises ValueError where a run is named twice: it would count twice in every mean.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    row: Word
    mode: Word
    scale: Word
    runs: Annotated[list[Name], Field(min_length=1, max_length=1_000)]
    weights: dict[Name, dict[Name, Digest]]
    versions: dict[Word, Word]
    files: dict[Annotated[str, Field(max_length=500)], FileRecord]
    format: Literal["dlth bundle, version 1"] = "dlth bundle, version 1"

    def __post_init__(self) -> None:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("a run is named twice")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a bundle. Raises DamageError where it is none, or not byte for byte as it was written."""
        path = folder / MANIFEST
        content, has_seal = read_sealed(path, MAX_MANIFEST)
        try:
            made = _MANIFEST.validate_json(json.dumps(content))
        except ValidationError as error:
            raise DamageError(f"{shown(path)} is no manifest of a bundle: {shown(error)}", file=MANIFEST) from error
        if not has_seal or made.text().encode() != read_file(path, MAX_MANIFEST, shown(path)):
            raise DamageError(f"{shown(path)} is not as it was written", file=MANIFEST)
        return made  # type: ignore[return-value]

    def text(self) -> str:
        """The manifest as its file holds it."""
        return json.dumps(sealed(asdict(self)), indent=1, sort_keys=True) + "\n"


_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)


@dataclass(frozen=True)
class BundleOf:
    """What a bundle is made of: finished runs by name, their folders, and the plan that holds them.

    plan: None for a selector's runs, which are no study's
    """

    row: str
    mode: str
    scale: str
    runs: Mapping[str, Path]
    plan: StudyPlan | None = None

    @property
    def name(self) -> str:
        """The folder's name: that of the row, and what tells it from the paper's (``deit-s_lt_0.9+projected``)."""
        scale = f"scale{self.scale}" if self.scale != WHOLE else ""
        return "+".join(filter(None, (self.row.replace("/", "_"), self.mode, scale)))


def write_bundle(parent: Path, of: BundleOf) -> Path:
    """Make the bundle of a row, in `parent`; gives its folder.

    A bundle of the same runs that is there already stays as it is; one of fewer seeds is replaced.

    Raises:
        IncompleteError: a run is not finished, or has no results of single images
        MismatchError: a bundle of other runs stands there
        DamageError: what stands there is no whole bundle
        SpaceError, InputError: it cannot be written
    """
    folder, names = parent / of.name, list(of.runs)
    if folder.exists():
        there = Manifest.read(folder)
        if not set(there.runs) <= set(names):
            raise MismatchError(
                f"{shown(folder)} is a bundle of other runs ({shown(', '.join(there.runs))}): it is kept; take another"
                " --out, or move it away"
            )
        if set(there.runs) == set(names):
            return folder
    results = [_finished(of.row, run) for run in of.runs.values()]
    making = parent / unforeseen(of.name)
    try:
        with write_errors(folder):
            making.mkdir(parents=True)
            for name, run in of.runs.items():
                _copy_run(run, making / RUNS / name)
        if of.plan is not None:
            write_study(making, of.plan)
        write_text(making / TICKETS, json.dumps(_tickets(results[0]), indent=1, sort_keys=True) + "\n")
        weights = {name: _weights(run) for name, run in of.runs.items()}
        files = {path: _record(making / path) for path in paths(names, of.plan is not None)}
        manifest = Manifest(of.row, of.mode, of.scale, names, weights, versions(), files)
        write_text(making / MANIFEST, manifest.text())
        _put(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def paths(runs: Sequence[str], has_study: bool) -> list[str]:
    """Every file of a bundle but the manifest, by its path with slashes."""
    of_runs = [f"{RUNS}/{name}/{file}" for name in runs for file in OF_A_RUN]
    return [*([STUDY] if has_study else []), TICKETS, *of_runs]


def _finished(row: str, run: Path) -> RunResult:
    result = read_result(run / RESULT)
    lacking = [name for name in (VAL_RESULTS, MODEL_FILE) if not (run / name).is_file()]
    if result is None or result.status != "finished" or lacking:
        without = f", or lacks {' and '.join(lacking)}" if lacking else ""
        raise IncompleteError(f"{shown(row)}: {shown(run)} is not finished{without}: it has no bundle")
    return result


def _put(made: Path, folder: Path) -> None:
    """Give a whole bundle its name; one of fewer runs that stood there goes."""
    with write_errors(folder):
        old = folder.with_name(unforeseen(folder.name))
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def _copy_run(run: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in OF_A_RUN:
        with fresh(target / name) as file:
            file.write(read_file(run / name, limit_of(name), shown(run / name)))


def limit_of(name: str) -> int:
    """The most bytes of a bundle's file."""
    return {STUDY: MAX_STUDY_BYTES, TICKETS: MAX_TICKETS, RESULT: MAX_RESULT_BYTES}.get(name, MAX_FILE)


def _tickets(result: RunResult) -> dict[str, Any]:
    """Identity and header of the ticket files of a run, by the setting that names them."""
    named = {name: result.config.get(name) for name in ("tickets", "val_tickets")}
    stores = {name: TicketStore(local_tickets(path)) for name, path in named.items() if path is not None}
    return {name: {"identity": store.identity, "header": store.header.to_json()} for name, store in stores.items()}


def bundled_tickets(raw: bytes) -> dict[str, tuple[str, TicketHeader]]:
    """Identity and header by setting, of a bundle's tickets.json. Raises SchemaError where it, or a header, is none."""
    content = parse(raw, TICKETS)
    tickets: dict[str, tuple[str, TicketHeader]] = {}
    for name, entry in content.items() if isinstance(content, dict) else [("", content)]:
        if not (isinstance(entry, dict) and entry.keys() == {"identity", "header"}):
            raise SchemaError(f"{TICKETS}: {shown(name)} is no identity with its header")
        tickets[name] = str(entry["identity"]), TicketHeader.from_json(entry["header"])
    return tickets


def _weights(run: Path) -> dict[str, str]:
    return {name: file_digest(run / name) for name in (MODEL_FILE, EMA_FILE) if (run / name).is_file()}


def _record(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, file_digest(path))


def file_digest(path: Path) -> str:
    """sha256 of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
