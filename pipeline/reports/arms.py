"""Arms as reports name and draw them: words, cells of a table, colours; and the groups that one picture shows."""

from collections.abc import Collection, Iterable

from dlth.pipeline.evidence.arm_key import CONTROL, ArmKey
from dlth.pipeline.evidence.evidence import DENSE
from dlth.pipeline.pages.charts import Look, look
from dlth.tickets.errors import shown

KEY_COLUMNS = ("arm", "keep", "mode", "variant")
PRUNED_COLUMNS = (*KEY_COLUMNS, "pruned", "weights", "draw")
MOST_GROUPS = 8
"""Pictures of one kind; a sweep of more values has its tables."""


def key_columns(keys: Iterable[ArmKey]) -> tuple[str, ...]:
    """Columns that tell arms apart: those of weights where any is pruned."""
    return PRUNED_COLUMNS if any(key.pruned for key in keys) else KEY_COLUMNS


def key_cells(key: ArmKey, columns: Collection[str] = KEY_COLUMNS) -> tuple[str, ...]:
    """An arm's name, keep, mode and variant as cells, and what else of `PRUNED_COLUMNS` the columns have."""
    values = (*(key.arm, key.keep, key.mode, key.variant, key.pruned, key.weights), str(key.draw) * bool(key.pruned))
    return tuple(shown(value) for name, value in zip(PRUNED_COLUMNS, values, strict=True) if name in columns)


def arm_label(key: ArmKey) -> str:
    """The name of an arm in a picture of one group: arm and keep."""
    return shown(" ".join(filter(None, (key.arm, key.keep))), 40)


def group_name(group: tuple[str, str]) -> str:
    """Mode and variant in words; empty for the only mode of a study without variants."""
    return shown(", ".join(filter(None, group)), 80)


def looks(keys: Iterable[ArmKey]) -> dict[ArmKey, Look]:
    """How each arm is drawn: alike in every picture of a report."""
    keys = list(keys)
    controls = sorted({key.arm for key in keys if key.arm.startswith(CONTROL)})
    keeps = list(dict.fromkeys(key.keep for key in keys if key.arm != DENSE))
    return {key: look(key.arm, 0 if key.arm == DENSE else keeps.index(key.keep), controls) for key in keys}


def groups(keys: Iterable[ArmKey]) -> dict[tuple[str, str], list[ArmKey]]:
    """Arms that one picture shows, by (mode, variant): those that drop patches alike, and the dense arm beside them."""
    keys = list(keys)
    found: dict[tuple[str, str], list[ArmKey]] = {}
    for key in keys:
        if key.arm != DENSE:
            dense = [other for other in keys if other.arm == DENSE and other.variant == key.variant]
            found.setdefault((key.mode, key.variant), dense).append(key)
    if not found:
        found = {("", key.variant): [key] for key in keys}
    return found
