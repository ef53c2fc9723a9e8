"""Smaller forms of a ticket file: `top`, the k best patches in order, and `mask`, the k best as a set.

Order is what costs: it hardly compresses (196 bytes an image for all patches, 138 for the best 138), a set of patches
that lie together does (16). What a form can no longer give is on record in the smaller file, beside the identity of the
file it came from, and stands in every error that asks for it. Rejected: coding the order (Lehmer codes, delta of rank
maps), which saves 16 % at best and makes a file that zarr alone cannot read.
"""

from typing import Literal

import numpy as np

from dlth.tickets.derive.draft import Draft, made_header, specs
from dlth.tickets.errors import InputError, shown
from dlth.tickets.format.header import LOST_BY_FORM
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.ranking.budget import Budget, Rate
from dlth.tickets.store.ticket_store import TicketStore, open_store

SmallForm = Literal["top", "mask"]
SMALL_FORMS: tuple[SmallForm, ...] = ("top", "mask")


def shrink(store: TicketStore, form: SmallForm, keep: Rate | None = None) -> Draft:
    """The same tickets in a smaller form, cut to the share `keep` of all patches (the file's own by default).

    The gap is kept at the file's own keep; at another it is not known and stands as inf. Raises InputError for an
    unknown form and one that is not smaller, MismatchError when the file does not hold the patches asked for.
    """
    header = open_store(store).header
    if not isinstance(form, str) or form not in SMALL_FORMS:
        raise InputError(f"a smaller form is one of {', '.join(SMALL_FORMS)}, got {shown(form)!r}")
    num_patches = header.grid.num_patches
    budget = None if keep is None else Budget.from_keep(keep, num_patches, 1)
    k, text = (header.k, header.keep) if budget is None else (budget.k, budget.keep)
    header.check_serves(k)
    if header.form == "mask" or (form == "top" and store.num_patches_stored == k < num_patches):
        raise InputError(
            f"{shown(store.path.name)} is of form '{header.form}' with {k} patches: '{form}' is no smaller"
        )
    details = {"form": form, "lost": list(LOST_BY_FORM[form])}
    small = made_header([store], "shrink", details, form=form, k=k, keep=text)

    def rows(shard_index: int) -> ShardTickets:
        tickets = store.read(shard_index)
        gap = tickets.gap if k == header.k else np.where(tickets.skipped, np.float32(np.nan), np.float32(np.inf))
        return ShardTickets(tickets.keys, tickets.images, tickets.patches[:, :k], gap, tickets.skipped)

    return Draft(small, specs(store), store.layout.key_width, rows)
