"""Whether caching cost anything: what `dlth tickets agree --out` left beside the runs."""

from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.pages.report import Section, Table


def agreement_section(evidence: Evidence) -> Section | None:
    """The moved tickets' overlap with a selector in the loop, by kind of view, beside its two marks."""
    if not evidence.agreements:
        return None
    rows = []
    for name, found in evidence.agreements.items():
        for row in found.rows:
            overlaps = (("projected", row.projected), ("not moved", row.not_moved), ("random", row.random))
            for ranking, overlap in overlaps:
                figures = overlap.share, overlap.spread, overlap.iou, overlap.caught
                rows.append((row.views, ranking, row.num_images, found.k, *figures, found.tickets[:12], name))
    texts = [
        f"{name}: tickets {found.tickets_are} against {found.selector_is}; {found.num_images:,} images in views of"
        f" {', '.join(f'{setting} {value}' for setting, value in found.views.items())}."
        for name, found in evidence.agreements.items()
    ]
    intro = (
        "Cached tickets, moved to training's views, against what a selector says of those views: share of the k best in"
        " common, intersection over union, and the share of the selector's score that the ticket's patches catch. Not"
        " moved: the file's ranking as it stands. Random: as many random patches."
    )
    columns = ("views", "ranking", "images", "k", "in common", "±", "IoU", "score caught", "tickets", "file")
    formats = dict.fromkeys(("in common", "±", "IoU", "score caught"), ".3f")
    table = Table(columns, tuple(rows), "agreement", formats, ("ranking", "tickets", "file"))
    return Section("Agreement with a selector in the loop", texts=(intro, *texts), tables=(table,))
