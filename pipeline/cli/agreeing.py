"""`dlth tickets agree`: whether caching costs anything, from flags to a table."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.cli.options import DryRun, File, Json
from dlth.pipeline.selection.agree_config import AgreeConfig
from dlth.tickets.errors import shown

if TYPE_CHECKING:
    from dlth.pipeline.evidence.agreement import Agreement


@with_flags(AgreeConfig)
def agree(overrides: dict[str, Any], file: File, dry_run: DryRun = False, json: Json = False) -> None:
    """Overlap of a file's tickets, moved to training's views, with what a selector says of those views.

    Views are drawn as `dlth train` draws them, and both sides are ranked by its code. Beside the moved tickets stand
    the same tickets not moved, and random patches.
    """
    from dlth.training.settings.layering import checked

    config = checked(AgreeConfig, overrides)
    from dlth.data.sharing.ticket_cache import local_tickets
    from dlth.pipeline.evidence.agreement import refuse_other, write_agreement
    from dlth.pipeline.selection import agree as agreeing  # torch and timm: not before the settings are sound
    from dlth.tickets import TicketStore

    if config.out is not None:
        refuse_other(Path(config.out))  # before the work, not after it
    plan = agreeing.plan_agreement(TicketStore(local_tickets(str(file))), config, console.note)
    if dry_run:
        console.result("dlth tickets agree, dry run: nothing is compared", plan.facts(), json)
        return
    if not json:
        console.result("dlth tickets agree", plan.facts())
    with console.counting("agree", plan.views.num_images, quiet=json) as counter:
        found = agreeing.agree(plan, counter)
    if config.out is not None:
        write_agreement(Path(config.out), found)
        console.note(f"written to {shown(config.out)}")
    if json:
        console.as_json(asdict(found))
    else:
        _show(found)


def _show(found: "Agreement") -> None:
    rows = []
    for row in found.rows:
        for name, overlap in (("projected", row.projected), ("not moved", row.not_moved), ("random", row.random)):
            caught = "-" if overlap.caught is None else f"{overlap.caught:.3f}"
            figures = f"{overlap.share:.3f} ± {overlap.spread:.3f}", f"{overlap.iou:.3f}", caught
            rows.append((row.views, row.num_images, name, *figures))
    title = f"the selector's own {found.k} of {found.num_patches} patches, by chance {found.k / found.num_patches:.3f}"
    console.table(title, ("views", "images", "ranking", "share in common", "IoU", "score caught"), rows)
    if found.num_left_out:
        console.note(f"{found.num_left_out:,} corrupt images are left out")
