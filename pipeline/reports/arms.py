"""Arms as reports name and draw them: words, cells of a table, colours; and the groups that one picture shows."""

from collections.abc import Iterable

from dlth.pipeline.evidence.arm_key import CONTROL, ArmKey
from dlth.pipeline.evidence.evidence import DENSE
from dlth.pipeline.pages.charts import Look, look
from dlth.tickets.errors import shown

KEY_COLUMNS = ("arm", "keep", "mode", "variant")
MOST_GROUPS = 8
"""Pictures of one kind; a sweep of more values has its tables."""


def key_cells(key: ArmKey) -> tuple[str, str, str, str]:
    """An arm's name, keep, mode and variant as cells."""
    return shown(key.arm), shown(key.keep), shown(key.mode), shown(key.variant)


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
