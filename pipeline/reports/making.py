"""How the runs were made: commands to make them again, settings, what they were made from, versions and machines."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.pages.report import Section, Table
from dlth.pipeline.reports.arms import PRUNED_COLUMNS, key_cells
from dlth.tickets.errors import shown
from dlth.training.settings.toml_text import CONFIG
from dlth.training.settings.train_config import TrainConfig

FACTS = {
    "model": "student",
    "parameters": "its parameters",
    "num_patches": "patches of an image",
    "device": "device",
    "world_size": "processes",
    "val_view": "how validation images are seen",
    "tickets_are": "training tickets",
    "tickets": "their identity",
    "val_tickets_are": "validation tickets",
    "val_tickets": "their identity, validation",
}
"""Fields of results, and what they are called here."""
DATA = {
    "images": "training images",
    "data_content": "their bytes",
    "validation_images": "validation images",
    "val_content": "their bytes, validation",
}
_DEFAULTS = TrainConfig.model_construct(data="", out="").model_dump(mode="json")
_OF_EACH_RUN = ("arm", "keep", "mode", "seed", "out", "resume", "mask", "start_step", "rewind_step", "init_seed")
MOST_COMMANDS, MOST_VALUES, LONGEST = 60, 6, 120


def making_section(evidence: Evidence) -> Section | None:
    """Commands, facts, and the settings that are not alike in all runs."""
    runs = evidence.all_runs
    if not runs:
        return None
    results = [vars(run.result) for run in runs]
    facts = [(word, _values(result[name] for result in results)) for name, word in FACTS.items()]
    facts += [(word, _values(result["data"].get(name, "") for result in results)) for name, word in DATA.items()]
    packages = dict.fromkeys(name for run in runs for name in run.result.versions)
    facts += [(shown(name, 40), _values(run.result.versions.get(name, "") for run in runs)) for name in packages]
    tables = [Table(("what", "is"), tuple(fact for fact in facts if fact[1]), "facts", words=("is",))]
    if evidence.studies:
        tables.append(_study_settings(evidence))
    tables.append(_settings(evidence))
    texts = (f"{shown(note[:1].upper() + note[1:], 600)}." for plan in evidence.studies.values() for note in plan.notes)
    return Section("How it was made", tuple(dict.fromkeys(texts)), tuple(tables), commands=_commands(evidence))


def _commands(evidence: Evidence) -> tuple[str, ...]:
    """What makes the same runs again."""
    commands = [f"dlth {_command(plan)} --out {_quoted(folder)}" for folder, plan in evidence.studies.items()]
    planned = {plan.folder(study, run) for study, plan in evidence.studies.items() for run in plan.runs}
    loose = [run.folder for run in evidence.all_runs if run.folder not in planned]
    commands += [f"dlth train --config {_quoted(folder / CONFIG)}" for folder in loose[:MOST_COMMANDS]]
    more = len(loose) - MOST_COMMANDS
    return (*commands, *([f"# and {more} more"] if more > 0 else []))


def _command(plan: StudyPlan) -> str:
    return "prune" if "rounds" in plan.settings else "compare"


def _study_settings(evidence: Evidence) -> Table:
    names = dict.fromkeys(name for plan in evidence.studies.values() for name in plan.settings)
    rows = [
        (shown(name, 60), _values(plan.settings.get(name, "") for plan in evidence.studies.values())) for name in names
    ]
    return Table(("setting", "is"), tuple(rows), "study", words=("is",), caption="Settings of the study", folded=True)


def _settings(evidence: Evidence) -> Table:
    """Settings of the runs that are not train's defaults; where arms differ, the value of each."""
    configs = {arm: [run.result.config for run in runs.values()] for arm, runs in evidence.runs.items()}
    names = dict.fromkeys(name for of in configs.values() for config in of for name in config)
    rows = []
    for name in names:
        own = [arm for arm in configs if not (arm.pruned and name == "init_from")]  # the rewinding point of each run
        told = {arm: _values(config.get(name) for config in configs[arm]) for arm in own}
        if name in _OF_EACH_RUN or set(told.values()) <= {"", _values([_DEFAULTS.get(name)])}:
            continue
        alike = len(set(told.values())) == 1
        by_arm = (
            f"{' '.join(filter(None, key_cells(arm, PRUNED_COLUMNS[:-1])))}: {value or 'none'}"
            for arm, value in told.items()
        )
        rows.append((shown(name, 60), next(iter(told.values())) if alike else "; ".join(by_arm)))
    caption = "Settings of the runs, where they are not the defaults of dlth train"
    return Table(("setting", "is"), tuple(rows), "settings", words=("is",), caption=caption, folded=True)


def _values(values: Iterable[object]) -> str:
    """The different values of several runs, each once."""
    texts = list(dict.fromkeys(shown(value, LONGEST) for value in values if value not in ("", None)))
    more = [f"and {len(texts) - MOST_VALUES} more"] if len(texts) > MOST_VALUES else []
    return ", ".join(texts[:MOST_VALUES] + more)


def _quoted(path: Path) -> str:
    return shlex.quote(shown(path, 400))
