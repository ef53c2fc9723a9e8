"""Whether bundles are as they were made, and what their images say: every number of the table, computed anew.

First the files: those of the manifest, no others, each of its size and sha256. Then what they say of each other: the
accuracies of result.json and of the log's last epoch are those of the single images, as are the images' number, keys
and labels; the settings are those that the result was made with, length, patches kept and hours those of the log, the
tickets those of the header, the runs those of the plan, and none is there twice. Neither images nor weights are needed.
Bundles come from strangers: nothing is read before its size is known, and no link is followed.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dlth.data.shards.identity import keys_digest, labels_digest
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.evidence.study_plan import RUNS, STUDY, PlannedRun, read_study
from dlth.pipeline.judging.curves import Axis, total_spent
from dlth.pipeline.reproduction.bundle import (
    MANIFEST,
    TICKETS,
    Manifest,
    bundled_tickets,
    limit_of,
    paths,
)
from dlth.pipeline.reproduction.checked_bundle import CheckedBundle, CheckedRun
from dlth.pipeline.reproduction.experiment import WHOLE, Experiment
from dlth.pipeline.reproduction.experiments import EXPERIMENTS
from dlth.pipeline.reproduction.pruned_rows import levels_unlike
from dlth.pipeline.reproduction.row_settings import THE_RUNS_OWN, online_unlike, ranked_unlike, unlike
from dlth.tickets.errors import DamageError, DlthError, LimitError, MissingFileError, UnsafeError, shown
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.store.disk import read_file
from dlth.training.evaluation.measure import ImageResults
from dlth.training.models.registry import resolve
from dlth.training.models.weights_metadata import EMA_FILE, MODEL_FILE
from dlth.training.runs.result import RunResult, versions
from dlth.training.runs.runlog import newest_records
from dlth.training.settings.comparable import comparable
from dlth.training.settings.fields import NO_SCHEDULE, settings_digest
from dlth.training.settings.layering import checked
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.toml_text import CONFIG, parse_toml
from dlth.training.settings.train_config import TrainConfig

MAX_BUNDLES = 1_000
FREE = (*THE_RUNS_OWN, "data_order", "val_order", "left_out")
"""In what runs of one bundle may differ: what a row leaves open, and how images are packed."""


def check_bundles(folder: Path, experiments: Mapping[str, Experiment] = EXPERIMENTS) -> tuple[CheckedBundle, ...]:
    """Check the bundle that a folder is, or every one that lies in it, or in its ``bundles``, by name.

    Raises:
        MissingFileError: there is none
        LimitError: more than `MAX_BUNDLES`
    """
    if (folder / MANIFEST).exists():
        return (check_bundle(folder, experiments),)
    home = folder / "bundles" if (folder / "bundles").is_dir() else folder
    entries = [path for path in home.iterdir() if path.is_dir() or path.is_symlink()] if home.is_dir() else []
    names = sorted(path.name for path in entries if not path.name.startswith("."))
    if not any(os.path.lexists(home / name / MANIFEST) for name in names):
        raise MissingFileError(f"{shown(folder)} holds no bundle: name a folder of `dlth reproduce`, or a bundle")
    if len(names) > MAX_BUNDLES:
        raise LimitError(f"{shown(home)} holds {len(names)} entries; at most {MAX_BUNDLES} bundles are checked")
    return tuple(
        CheckedBundle(home / name, name, damage=(UnsafeError(f"{shown(home / name)} is a link, and not followed"),))
        if (home / name).is_symlink()
        else check_bundle(home / name, experiments)
        for name in names
    )


def check_bundle(folder: Path, experiments: Mapping[str, Experiment] = EXPERIMENTS) -> CheckedBundle:
    """Check one bundle; what is wrong with it is its `damage`, and nothing is raised."""
    about: dict[str, Any] = {"row": folder.name}
    try:
        manifest = Manifest.read(folder)
        about = {"row": manifest.row, "mode": manifest.mode, "scale": manifest.scale}
        if damage := [*_files_damage(folder, manifest)]:
            return CheckedBundle(folder, **about, damage=tuple(damage))
        finished = [FinishedRun.load(folder / RUNS / name) for name in manifest.runs]
        tickets = bundled_tickets(read_file(folder / TICKETS, limit_of(TICKETS), TICKETS))
        planned = _planned(folder, manifest)
        damage = [*_contradictions(folder, manifest, finished, tickets, planned)]
        runs = () if damage else tuple(_checked_run(run, planned.get(run.folder.name)) for run in finished)
    except (DlthError, OSError) as error:
        return CheckedBundle(folder, **about, damage=(_as_damage(error),))
    other = _unlike(manifest, finished, tickets, experiments, planned)
    return CheckedBundle(folder, **about, runs=runs, damage=tuple(damage), unlike=other)


def _files_damage(folder: Path, manifest: Manifest) -> Iterator[DlthError]:
    """Files that are missing, too many, no files, or not those of the manifest."""
    wanted, found = manifest.files, _found(folder, 2 * len(manifest.files) + 100)
    expected = set(paths(manifest.runs, STUDY in wanted))
    if set(wanted) != expected:
        odd = shown(", ".join(sorted(set(wanted) ^ expected)))
        yield DamageError(f"{shown(folder)}: its manifest does not list a bundle's files: {odd}", file=MANIFEST)
        return
    for name in sorted({*wanted, MANIFEST} - found):
        yield DamageError(f"{shown(folder)}: {shown(name)} is missing", file=name)
    for name in sorted(found - {*wanted, MANIFEST}):
        yield DamageError(f"{shown(folder)}: {shown(name)} was added: the manifest does not know it", file=name)
    for name in sorted(found & set(wanted)):
        try:
            raw = read_file(folder / name, limit_of(Path(name).name), shown(folder / name))
        except DlthError as error:
            yield error
            continue
        if (len(raw), hashlib.sha256(raw).hexdigest()) != (wanted[name].size, wanted[name].sha256):
            yield DamageError(f"{shown(folder)}: {shown(name)} is not as it was written", file=name)


def _found(folder: Path, most: int) -> set[str]:
    """Every file below a folder by its path with slashes, and every entry that is neither file nor folder, or is a
    folder without an entry. Raises LimitError for `most` files and folders, or more.
    """
    found: set[str] = set()
    folders = [""]
    for prefix in folders:
        with os.scandir(folder / prefix) as entries:
            listed = list(islice(entries, most))
        for entry in listed:
            deeper = entry.is_dir(follow_symlinks=False) and prefix.count("/") < 2
            (folders.append if deeper else found.add)(f"{prefix}{entry.name}{'/' if deeper else ''}")
        if not listed:
            found.add(prefix)
        if len(found) + len(folders) >= most:
            raise LimitError(f"{shown(folder)} holds more files than a bundle has")
    return found


def _planned(folder: Path, manifest: Manifest) -> dict[str, PlannedRun]:
    """The runs of a bundle's plan by name; none of a selector's, which has no plan."""
    return {run.name: run for run in read_study(folder).runs} if STUDY in manifest.files else {}


def _contradictions(
    folder: Path,
    manifest: Manifest,
    runs: list[FinishedRun],
    tickets: Mapping[str, tuple[str, TicketHeader]],
    planned: Mapping[str, PlannedRun],
) -> Iterator[DamageError]:
    """What the files of a bundle, each as it was written, do not say alike."""
    identities = {name: identity for name, (identity, _) in tickets.items()}
    said = {name: run.seed for name, run in planned.items()}
    if STUDY in manifest.files and said != {run.folder.name: run.seed for run in runs}:
        yield DamageError(f"{shown(folder)}: its runs are not those of {STUDY}", file=STUDY)
    for problem in _repeated(manifest, runs):
        yield DamageError(f"{shown(folder)}: {problem}", file=MANIFEST)
    for run in runs:
        for problem in _run_contradictions(run, manifest, identities):
            yield DamageError(f"{shown(folder)}: run {shown(run.folder.name)}: {problem}", file=run.folder.name)


def _repeated(manifest: Manifest, runs: list[FinishedRun]) -> Iterator[str]:
    """What no two trainings have alike: a run under two names would count twice in every mean."""
    if manifest.weights.keys() != set(manifest.runs):
        yield "its manifest does not name the weights of its runs"
        return
    unique: dict[str, list[Any]] = {
        "a seed": [(run.seed, run.result.mask, run.result.config.get("init_seed")) for run in runs],
        "their weights": [run.result.weights_sha256 for run in runs],
        "the file of their weights": [manifest.weights[run.folder.name].get(MODEL_FILE) for run in runs],
        "every image's loss": [run.images["dense_loss"].tobytes() for run in runs if run.images],
    }
    for what, values in unique.items():
        if len(set(values)) < len(values):
            yield f"two of its runs have {what} in common"


def _run_contradictions(run: FinishedRun, manifest: Manifest, tickets: Mapping[str, str]) -> Iterator[str]:
    result, kind = run.result, SelectorTrainConfig if run.result.arm == "selector" else TrainConfig
    text = read_file(run.folder / CONFIG, limit_of(CONFIG), CONFIG).decode("utf-8", "replace")
    config = checked(kind, parse_toml(text, CONFIG))
    if settings_digest(config) != result.config_sha256 or config.model_dump(mode="json") != result.config:
        yield f"its result was made with other settings{_older(result, config, manifest.versions.get('dlth', ''))}"
    weights, told = {MODEL_FILE, *([EMA_FILE] if config.model_ema else [])}, manifest.weights.get(run.folder.name, {})
    if told.keys() != weights or not re.fullmatch("[0-9a-f]{64}", result.weights_sha256):
        yield "the digests of its weights are missing"
    if not run.images:
        yield "it was not evaluated"
        return
    facts = _of_settings(run, config, manifest.mode) | _of_tickets(run, config, tickets) | _of_tokens(run, config)
    for what, (said, true) in (facts | _of_log(run) | _of_images(run)).items():
        if not (_same(true, said) if isinstance(true, float) else type(said) is type(true) and said == true):
            yield f"{what} is {shown(said)}, by the rest {shown(true)}"
    yield from _numbers_unlike(run)


def _older(result: RunResult, config: TrainConfig, maker: str) -> str:
    """What to do about a result of another version, where all that sets it apart are settings that this one has more;
    empty where there is more to it.
    """
    said, ours = result.config, config.model_dump(mode="json")
    more = ", ".join(sorted(ours.keys() - said.keys()))
    if not more or not said.items() <= ours.items() or maker == versions()["dlth"]:
        return ""
    return f": by dlth {shown(maker)}, whose settings lack {more}; check it with that version"


Facts = dict[str, tuple[Any, Any]]
"""By name: what a result says, and what the rest of its bundle does."""


def _of_settings(run: FinishedRun, config: TrainConfig, mode: str) -> Facts:
    """What a result repeats of its settings; the bundle's mode is that of its arms that drop patches."""
    result, arm = run.result, config.arm
    ranked = config.mode if arm == "ticket" or (arm == "random" and mode) else ""
    facts: Facts = {name: (getattr(result, name), getattr(config, name)) for name in ("arm", "seed", "epochs")}
    facts |= {
        "model": (result.model, resolve(config.student)),
        "mode": (result.mode, config.told_mode),
        "the bundle's mode": (mode, ranked),
    }
    share = "1" if arm == "dense" else config.share
    return facts | ({"keep": (result.keep, str(share))} if share is not None else {})


def _of_tickets(run: FinishedRun, config: TrainConfig, tickets: Mapping[str, str]) -> Facts:
    """Whose tickets a run has, and that there are some wherever its settings name a file."""
    result, online = run.result, config.mode == "online"
    train, val = ("" if online else tickets.get("tickets", "")), tickets.get("val_tickets", "")
    named = sorted(name for name in ("tickets", "val_tickets") if getattr(config, name) is not None)
    return {
        f"what {TICKETS} tells of": (sorted(tickets), named),
        "tickets": (result.tickets, train if config.arm == "ticket" else ""),
        "val_tickets": (result.val_tickets, val),
        "tickets of its images": (result.data.get("tickets"), train),
        "val_tickets of its images": (result.data.get("val_tickets"), val),
    }


def _of_tokens(run: FinishedRun, config: TrainConfig) -> Facts:
    """How many patches are kept: in training, in its last step, in each evaluation."""
    result, evaluated = run.result, run.result.evaluation.get("model", {})
    given, steps = result.data.get("k"), (row for row in newest_records(run.folder) if row["kind"] == "train")
    kept = {"dense": result.num_patches, "dropping": result.k}
    facts: Facts = {
        f"tokens of the evaluation on {tokens}": (row.get("tokens"), kept.get(tokens, given))
        for tokens, row in evaluated.items()
    }
    facts["k of its last step"] = result.k_last, next(steps, {"k": None}).get("k")
    if config.arm == "dense":
        return facts | {"k": (result.k, result.num_patches)}
    if config.arm == "selector":
        return facts
    final = {"k of a run without a schedule": (result.k, result.k_last)} if config.keep_schedule == NO_SCHEDULE else {}
    return facts | {"k": (result.k, given)} | final


def _of_log(run: FinishedRun) -> Facts:
    """Length and costs, which the log has epoch by epoch."""
    result, rows = run.result, run.epochs
    steps = result.steps // result.epochs
    ends = [(epoch, (epoch + 1) * steps) for epoch in range(result.epochs)]
    facts: Facts = {
        "the log's epochs": ([(row["epoch"], row["step"]) for row in rows], ends),
        "steps": (result.steps, steps * result.epochs),
        "images of training": (result.train_images, sum(row.get("images") or 0 for row in rows)),
        "train_loss": (result.train_loss, rows[-1].get("train_loss") if rows else None),
    }
    seconds = [result.throughput.get(name, math.nan) for name in ("data_seconds", "compute_seconds")]
    said: dict[Axis, float | None] = {"tokens": result.train_tokens, "flops": result.train_flops}
    for axis, value in (said | {"hours": sum(seconds) / 3600}).items():
        spent = total_spent(rows, axis)
        facts[f"{axis} of training"] = value, None if spent is None else float(spent)
    return facts


def _of_images(run: FinishedRun) -> Facts:
    """The validation images: their number, keys and labels."""
    keys, data = [key.encode("utf-8", "surrogatepass") for key in run.images["keys"].tolist()], run.result.data
    return {
        "validation images": (data.get("validation_images"), len(keys)),
        "keys of the validation images": (data.get("val"), keys_digest(keys)),
        "labels of the validation images": (
            data.get("val_labels"),
            labels_digest(keys, run.images["labels"].astype(np.int64)),
        ),
    }


def _numbers_unlike(run: FinishedRun) -> Iterator[str]:
    """Accuracies, losses and numbers of images that the single images contradict."""
    numbers, said = recomputed(run.images), run.result.evaluation.get("model", {})
    last = run.epochs[-1] if run.epochs else {}
    if numbers.keys() != said.keys():
        yield f"its images were measured on {_words(numbers)}, its result says {_words(said)}"
        return
    for tokens, row in numbers.items():
        logged = {name: last.get(f"eval_{tokens}_{name}") for name in ("top1", "top5", "loss")}
        for source, values in (("result", said[tokens]), ("log", logged | {"images": row["images"]})):
            for name, value in row.items():
                if not _same(value, values.get(name)):
                    theirs = shown(values.get(name))
                    yield f"{name} on {tokens} tokens is {value:g} by its images, {theirs} by its {source}"


def recomputed(images: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Accuracies in percent, mean loss and number of the images that were seen, by kind of tokens, from per-image
    results (`EvalResult.save`).
    """
    kinds = [name.removesuffix("_seen") for name in images if name.endswith("_seen")]
    columns = ("top1", "top5", "loss", "seen")
    return {kind: ImageResults(*(images[f"{kind}_{name}"] for name in columns)).summary() for kind in kinds}


def _same(computed: float, said: Any) -> bool:
    """Equal but for the order of a sum; a loss that is no number was written as none."""
    if said is None:
        return not math.isfinite(computed)
    return isinstance(said, int | float) and math.isclose(computed, said, rel_tol=1e-9)


def _checked_run(run: FinishedRun, planned: PlannedRun | None) -> CheckedRun:
    result, arm = run.result, planned.arm if planned is not None else ArmKey("")
    hours = total_spent(run.epochs, "hours") or 0.0
    device = f"{result.world_size} x {result.device}"
    numbers = recomputed(run.images)
    return CheckedRun(
        run.folder.name, result.seed, result.k, result.epochs, numbers, hours, device, arm.pruned, arm.weights
    )


def _unlike(
    manifest: Manifest,
    runs: list[FinishedRun],
    tickets: Mapping[str, tuple[str, TicketHeader]],
    experiments: Mapping[str, Experiment],
    planned: Mapping[str, PlannedRun],
) -> tuple[str, ...]:
    """Why a whole bundle does not stand in the table."""
    if manifest.row not in experiments:
        return ("no experiment of this version has its name",)
    if manifest.scale != WHOLE:
        return (f"tried with {manifest.scale} of its images and epochs",)
    row = experiments[manifest.row]
    found = [text for run in runs for text in unlike(row, run.result)]
    found += levels_unlike(row, runs, planned)
    for remaining in {run.result.remaining_weights for run in runs}:  # each level beside the unpruned runs
        level = [run.result.to_json() for run in runs if run.result.remaining_weights in (None, remaining)]
        found += comparable(level, besides=FREE)
    if bool(manifest.mode) != bool(row.selector):
        found.append(f"its mode is {shown(manifest.mode) or 'none'}")
    if row.selector:
        selector = experiments[row.selector]
        found += [text for _, header in tickets.values() for text in ranked_unlike(row, selector, header)]
        for result in (run.result for run in runs):
            if result.config.get("mode") == "online":
                found += online_unlike(row, selector, result.selector)
            elif result.arm == "ticket" and not result.tickets:
                found.append("nothing says who ranked its patches")
    return tuple(dict.fromkeys(found))


def _as_damage(error: Exception) -> DlthError:
    """The error itself, where it says what of the bundle cannot be read."""
    if isinstance(error, DamageError | LimitError | UnsafeError | MissingFileError):
        return error
    return DamageError(f"the bundle cannot be read: {shown(error)}")


def _words(names: Mapping[str, Any]) -> str:
    return shown(", ".join(sorted(names)) or "nothing")
