"""What the tickets of a file are, in one line: so that a table's row called *ticket* says whose tickets these are.

A control's run and the real one differ in nothing else that a reader of results would see. All of it comes from the
header, which strangers may have written: texts are made printable and cut, and a record of another shape says nothing.
"""

from typing import Any

from dlth.tickets.errors import shown
from dlth.tickets.format.header import SelectorInfo, TicketHeader

AVERAGED = "average_views"
"""The header's extension that says over which views of an image its ranking is a mean."""
_PARENTS = 3
"""How many parents a line names."""
RANKER, DEFAULT_RANKER = "ranker", "evit"
"""Name under `extensions` of what ranked the patches with the selector, and what did where a header does not say."""


def describe(header: TicketHeader) -> str:
    """What ranked the patches, and what was done to the ranking since: selector, views, control and its kind, set
    operation.

    For example ``selector deit_small_patch16_224.fb_in1k (weights 1f0c9a…, model.safetensors), blocks 3,6,9``, or
    ``control: centre; made from tickets of deit_small_patch16_224 (identity 77ab01…)``.
    """
    derived = header.extensions.get("derived")
    record: dict[str, Any] = derived if isinstance(derived, dict) else {}
    who = describe_selector(header.selector, ranker_of(header)) + _averaged(header)
    operation = _text(record.get("operation"))
    if operation == "import":
        return f"{who} (file sha256 {_text(record.get('file_sha256'))[:12] or 'unknown'}…)"
    done = "" if operation == header.selector.model.partition(":")[0] else operation
    return "; ".join(part for part in (who, done, _parents(record.get("parents"))) if part)


def all_alike(header: TicketHeader, num_tickets: int, k: int) -> str:
    """What to say of a file in which every one of several tickets has the same k best patches."""
    return (
        f"all {num_tickets:,} tickets keep the same {k} of {header.grid.num_patches} patches. Controls by place"
        " (centre, edges) are made so; a selector whose scores are constant or no numbers makes them so too. These are:"
        f" {describe(header)}"
    )


def ranker_of(header: TicketHeader) -> str:
    """Name of what ranked the patches, printable."""
    return _text(header.extensions.get(RANKER)) or DEFAULT_RANKER


def describe_selector(selector: SelectorInfo, ranker: str = DEFAULT_RANKER) -> str:
    """A selector with its weights and blocks, and its ranker if that is another than the default; the bare name where
    no model's scores ordered the patches.
    """
    name = shown(selector.model, 80)
    if selector.heads == "none":
        return f"imported, ranked by {name}" if selector.weights_source == "imported" else name
    weights = f"weights {selector.weights_sha256[:12]}…" if selector.weights_sha256 else "weights unknown"
    source = f", {shown(selector.weights_source, 60)}" if selector.weights_source else ""
    blocks = f", blocks {','.join(map(str, selector.blocks))}" if selector.blocks else ""
    how = f", ranked by {shown(ranker, 80)}" if ranker != DEFAULT_RANKER else ""
    return f"selector {name} ({weights}{source}){blocks}{how}"


def views_averaged(header: TicketHeader) -> int:
    """Over how many views of an image its ranking is a mean."""
    views = header.extensions.get(AVERAGED)
    crops = views.get("crops") if isinstance(views, dict) else None
    return max(1, 2 + crops) if isinstance(crops, int) else 1


def _averaged(header: TicketHeader) -> str:
    views = views_averaged(header)
    return f", mean of {views} views" if views > 1 else ""


def _parents(value: Any) -> str:
    parents = [parent for parent in value if isinstance(parent, dict)] if isinstance(value, list) else []
    if not parents:
        return ""
    named = [
        f"{_text(parent.get('selector')) or 'unknown'} ({_ranked(parent)}identity"
        f" {_text(parent.get('identity'))[:12] or 'unknown'}…)"
        for parent in parents[:_PARENTS]
    ]
    more = f" and {len(parents) - _PARENTS} more" if len(parents) > _PARENTS else ""
    return f"made from tickets of {', '.join(named)}{more}"


def _ranked(parent: dict[str, Any]) -> str:
    ranker = _text(parent.get(RANKER))
    return f"ranked by {ranker}, " if ranker else ""


def _text(value: Any) -> str:
    return shown(value, 80) if isinstance(value, str) else ""
