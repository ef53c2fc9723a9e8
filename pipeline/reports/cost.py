"""What training cost: what is counted, the same on every machine; and what was measured, in a table of its own."""

from collections.abc import Sequence

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.evidence import DENSE, Evidence
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.judging.curves import Axis, total_spent
from dlth.pipeline.pages.report import Section, Table
from dlth.pipeline.reports.accuracy import mean
from dlth.pipeline.reports.arms import key_cells, key_columns

CHARGED = "charged FLOP"


def cost_section(evidence: Evidence) -> Section | None:
    """Tokens, operations and time of training, by arm."""
    if not evidence.runs:
        return None
    counted = _counted(evidence)
    text = (
        "Means over an arm's runs. Operations are those of training, forward and backward of the student, and of the"
        " selector where it is in the loop."
    )
    if CHARGED in counted.shown_columns:
        text += " Charged is what a run bears of the tickets' cost, as the study says."
    return Section("Cost", texts=(text,), tables=(counted, _measured(evidence)))


def _counted(evidence: Evidence) -> Table:
    keys, rows = key_columns(evidence.runs), []
    for key, by_seed in evidence.runs.items():
        runs = list(by_seed.values())
        dense = evidence.runs.get(ArmKey(DENSE, variant=key.variant), {})
        flops, all_flops = _mean_spent(runs, "flops"), _mean_spent(list(dense.values()), "flops")
        share = flops / all_flops if flops is not None and all_flops else None
        tokens = _mean_spent(runs, "tokens")
        charged = mean([of for run in runs if (of := evidence.charged_flops.get(run.folder))])
        rows.append((*key_cells(key, keys), runs[0].result.k, runs[0].result.epochs, tokens, flops, share, charged))
    columns = (*keys, "patches", "epochs", "tokens", "FLOP", "of dense", CHARGED)
    formats = {"tokens": ".4g", "FLOP": ".4g", "of dense": ".3f", CHARGED: ".4g"}
    return Table(columns, tuple(rows), "cost", formats, keys, "Counted, of one run")


def _measured(evidence: Evidence) -> Table:
    keys, rows = key_columns(evidence.runs), []
    for key, by_seed in evidence.runs.items():
        runs = list(by_seed.values())
        devices = ", ".join(dict.fromkeys(f"{run.result.world_size} x {run.result.device}" for run in runs))
        milliseconds = mean([1000 * value for run in runs if (value := run.result.throughput.get("step_seconds"))])
        rates = mean([value for run in runs if (value := run.result.throughput.get("images_per_second"))])
        memory = max(run.result.peak_memory_bytes for run in runs) / 2**30
        rows.append((*key_cells(key, keys), _mean_spent(runs, "hours"), milliseconds, rates, memory, devices))
    columns = (*keys, "hours", "ms of compute per step", "images per second", "peak GiB", "on")
    formats = dict.fromkeys(columns[len(keys) : -1], ".3g")
    return Table(columns, tuple(rows), "time", formats, (*keys, "on"), "Measured, on the machines at hand")


def _mean_spent(runs: Sequence[FinishedRun], axis: Axis) -> float | None:
    spent = [total_spent(run.epochs, axis) if run.epochs else None for run in runs]
    return mean([each for each in spent if each is not None]) if None not in spent else None
