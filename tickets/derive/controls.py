"""Control tickets: what a student is trained on to show that it is the choice of patches that matters.

Each is an ordinary ticket file over the same images with the same k, made from a ticket file:

* random: every image's own random order, a function of (seed, key), so it does not depend on the packing;
* centre: the patches nearest to the middle of the view first;
* edges: the patches nearest to the view's border first, corners before sides;
* inverse: the file's own ranking backwards, so the k worst patches (`algebra.inverse` keeps the P - k left out);
* other-image: every image gets the ticket of another one. All images with a ticket stand on one cycle, shards in order,
  each shard's in an order drawn from the seed, and everyone takes the next one's: each ticket is used exactly once, so
  positions are kept exactly as often as in the file, and only what belongs to the image is lost.

Images without a ticket have none in the control either. The gap is infinity (no score decided the cut), but with
other-image the ticket's own.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.arguments import whole_number
from dlth.tickets.derive.algebra import require_full
from dlth.tickets.derive.draft import Draft, made_header, specs, unscored
from dlth.tickets.errors import InputError, shown
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.seeding import generator
from dlth.tickets.store.ticket_store import TicketStore, open_store

Kind = Literal["random", "centre", "edges", "inverse", "other-image"]
KINDS: tuple[Kind, ...] = ("random", "centre", "edges", "inverse", "other-image")

Ranking = NDArray[np.int64]

MAX_SEED = 2**64 - 1
"""Of either sign: as large as the seeds of other programs. A longer number is a slip, and would fill the header."""


def control(store: TicketStore, kind: Kind, seed: int = 0) -> Draft:
    """A control file of the given kind; `seed` counts for random and other-image.

    Raises InputError for an unknown kind, for inverse on a file of form 'top', and for other-image with fewer than two
    tickets.
    """
    open_store(store)
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"a control is one of {', '.join(KINDS)}, got {shown(kind)!r}")
    whole_number(seed, "the seed of a control", -MAX_SEED, MAX_SEED)
    if kind == "inverse":
        require_full(store, "an inverse control")
    seeded = {"seed": str(seed)} if kind in ("random", "other-image") else {}
    # no selection stage chose these; k and keep stay what they are
    fields = {"selector": unscored(f"control: {kind}", "derived"), "stage_keep": store.header.keep, "stage_tokens": ()}
    header = made_header([store], "control", {"kind": kind, **seeded}, **fields)
    rows = _other_image(store, seed) if kind == "other-image" else _made(store, kind, seed)
    return Draft(header, specs(store), store.layout.key_width, rows)


def centre_first(header: TicketHeader) -> Ranking:
    """Int64 [P]: patches by the distance of their middle from the view's, in pixels; ties to the lower index."""
    return np.argsort(_from_middle(header), kind="stable").astype(np.int64)


def edges_first(header: TicketHeader) -> Ranking:
    """Int64 [P]: patches by rings from the border inwards, in each ring the farthest from the middle first."""
    rows, cols = np.divmod(np.arange(header.grid.num_patches), header.grid.cols)
    ring = np.minimum.reduce([rows, cols, header.grid.rows - 1 - rows, header.grid.cols - 1 - cols])
    return np.lexsort((-_from_middle(header), ring)).astype(np.int64)


def _from_middle(header: TicketHeader) -> NDArray[np.float64]:
    grid = header.grid
    rows, cols = np.divmod(np.arange(grid.num_patches), grid.cols)
    down = (2 * rows + 1 - grid.rows) * (header.view.height / grid.rows)
    across = (2 * cols + 1 - grid.cols) * (header.view.width / grid.cols)
    return down**2 + across**2


def _made(store: TicketStore, kind: Kind, seed: int) -> Callable[[int], ShardTickets]:
    """Rows whose ticket comes from the key, the grid, or the row itself."""
    header, stored = store.header, store.num_patches_stored
    fixed = {"centre": centre_first, "edges": edges_first}
    one = fixed[kind](header)[:stored] if kind in fixed else None

    def rankings(tickets: ShardTickets) -> NDArray[np.integer]:
        if kind == "inverse":
            return tickets.patches[:, ::-1]
        if one is not None:
            return np.broadcast_to(one, (tickets.num_rows, stored))
        patches = header.grid.num_patches
        random = np.empty((tickets.num_rows, stored), dtype=np.int64)
        for row, key in enumerate(tickets.keys):
            random[row] = generator(seed, "control", "random", key).permutation(patches)[:stored]
        return random

    def rows(shard_index: int) -> ShardTickets:
        tickets = store.read(shard_index)
        gap = np.where(tickets.skipped, np.float32(np.nan), np.float32(np.inf))
        return ShardTickets(tickets.keys, tickets.images, rankings(tickets), gap, tickets.skipped)

    return rows


def _other_image(store: TicketStore, seed: int) -> Callable[[int], ShardTickets]:
    """Rows with the ticket of the next image on the cycle."""
    with_tickets = [index for index, shard in enumerate(store.shards) if shard.rows > shard.skipped]
    if store.num_rows - store.num_skipped < 2:
        raise InputError(f"{shown(store.path.name)} has fewer than two tickets: there is no other image's to give")

    def order(shard_index: int) -> Ranking:
        good = np.flatnonzero(~store.skipped(shard_index))
        return generator(seed, "control", "other image", store.shards[shard_index].name).permutation(good)

    def rows(shard_index: int) -> ShardTickets:
        tickets = store.read(shard_index)
        patches, gap = tickets.patches.copy(), tickets.gap.copy()
        if shard_index in with_tickets:
            here = order(shard_index)
            patches[here[:-1]], gap[here[:-1]] = tickets.patches[here[1:]], tickets.gap[here[1:]]
            following = with_tickets[(with_tickets.index(shard_index) + 1) % len(with_tickets)]
            first = order(following)[0]
            patches[here[-1]], gap[here[-1]] = store.patches(following)[first], store.gap(following)[first]
        return ShardTickets(tickets.keys, tickets.images, patches, gap, tickets.skipped)

    return rows
