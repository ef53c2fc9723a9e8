"""Accuracy over what was spent: curves over epochs, tokens, operations and hours; arms worth their cost."""

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.judging.curves import AXES, Axis, mean_curve, run_curve, total_spent
from dlth.pipeline.judging.pareto import cost_points, pareto_front
from dlth.pipeline.pages.charts import Line, bands, front
from dlth.pipeline.pages.report import Choice, Picture, Section, Table
from dlth.pipeline.reports.arms import KEY_COLUMNS, MOST_GROUPS, arm_label, group_name, groups, key_cells, looks

SPENT: dict[Axis, tuple[str, str]] = {
    "epochs": ("epoch", "epochs"),
    "tokens": ("token", "tokens computed in training"),
    "flops": ("FLOP", "operations of training (FLOP)"),
    "hours": ("hour", "hours of training"),
}
"""The word by which a reader chooses an axis, and its label."""
ACCURACY = "top-1 accuracy, %"


def curves_section(evidence: Evidence) -> Section | None:
    """Validation accuracy over epochs, tokens, operations or hours, as the reader chooses."""
    choices = []
    unpruned = [key for key in evidence.runs if not key.pruned]
    for number, (group, keys) in enumerate(list(groups(unpruned).items())[:MOST_GROUPS]):
        options = []
        for axis in AXES:
            if lines := _lines(evidence, keys, axis):
                word, label = SPENT[axis]
                options.append((word, _picture(lines, f"curves-{number}-{axis}", label, ACCURACY, group_name(group))))
        if options:
            named = f", {group_name(group)}," if group_name(group) else ""
            choices.append(Choice(f"Accuracy{named} per", tuple(options)))
    if not choices:
        return None
    text = (
        "Each line is the mean over an arm's seeds, the band reaches from the least to the most of its runs. Arms are"
        " judged on their own tokens. Where a selector is in the loop its operations count; what cached tickets cost"
        " counts from the start where the study charges it."
    )
    if len(unpruned) < len(evidence.runs):
        text += " Pruned models are not drawn: they have a table by remaining weights."
    return Section("Curves", texts=(text,), choices=tuple(choices))


def pareto_section(evidence: Evidence) -> Section | None:
    """Accuracy at the end against the operations of training."""
    runs = {
        key: [
            (spent + evidence.charged_flops.get(run.folder, 0.0), run.top1(run.judged_on))
            for run in by_seed.values()
            if run.images and (spent := total_spent(run.epochs, "flops")) is not None
        ]
        for key, by_seed in evidence.runs.items()
        if not key.pruned  # masked weights are multiplied all the same: the same operations
    }
    points = cost_points(runs)
    if len(points) < 2:
        return None
    drawn, best = looks(evidence.runs), pareto_front(points)
    rows = [
        Line(arm_label(at.arm) + _variant(at.arm), drawn[at.arm], (at.cost,), (at.top1,), (at.low,), (at.high,))
        for at in points
    ]
    edge = [(point.cost, point.top1) for point in best]
    names = ", ".join(arm_label(point.arm) + _variant(point.arm) for point in best)
    caption = (
        "Accuracy at the end of training against its operations, mean and range over seeds. On the line: arms that no"
        f" other beats in both ({names})."
    )
    if any(key.pruned for key in evidence.runs):
        caption += " Pruned models, whose masked weights are computed all the same, are left out."
    table = Table(
        (*KEY_COLUMNS, "FLOP", "top-1", "on the front"),
        tuple((*key_cells(at.arm), at.cost, at.top1, "yes" if at in best else "no") for at in points),
        "pareto",
        {"FLOP": ".4g", "top-1": ".2f"},
        KEY_COLUMNS,
    )
    picture = Picture("pareto", front(rows, edge, SPENT["flops"][1], ACCURACY), caption)
    return Section("Accuracy and computation", tables=(table,), pictures=(picture,))


def _lines(evidence: Evidence, keys: list[ArmKey], axis: Axis) -> list[Line]:
    """A line for each arm of which every run has a curve."""
    drawn, lines = looks(evidence.runs), []
    for key in keys:
        charged = evidence.charged_flops if axis == "flops" else {}
        runs = evidence.runs[key].values()
        curves = [run_curve(run.epochs, axis, run.judged_on, charged.get(run.folder, 0.0)) for run in runs]
        mean = mean_curve([each for each in curves if each is not None]) if None not in curves else None
        if mean is not None:
            lines.append(Line(arm_label(key), drawn[key], mean.spent, mean.mean, mean.low, mean.high))
    return lines


def _picture(lines: list[Line], name: str, x_label: str, y_label: str, group: str) -> Picture:
    ends = "; ".join(f"{line.label} ends at {line.mean[-1]:.4g}" for line in lines)
    caption = f"{y_label.partition(',')[0].capitalize()} over {x_label}{', ' + group if group else ''}."
    return Picture(name, bands(lines, x_label, y_label), caption, f"{caption} {ends}.")


def _variant(key: ArmKey) -> str:
    return f" {group_name((key.mode, key.variant))}" if key.variant else ""
