"""Set algebra on ticket files about the same images: union, intersection, inverse.

A ticket is the k best patches of a ranking, so the algebra is defined on rankings, such that it is the algebra of sets
for every n at once. Let r_i(p) be the rank of patch p in file i, 0 the best, and A_i(n) = {p : r_i(p) < n} its n best.

* union ranks by min_i r_i(p):        {p : min_i r_i(p) < n} is exactly the union of the A_i(n);
* intersection ranks by max_i r_i(p): {p : max_i r_i(p) < n} is exactly the intersection of the A_i(n).

So the union (intersection) of the n best is a prefix of the new ranking, as long as that set is large. Equal values
are ordered by the mean rank, then by the lower index. The new file has one k for all images, as every ticket file has:
its ticket is the prefix of length k. The ticket of a union thus keeps what either file ranks high, the ticket of an
intersection what neither ranks low. Rejected: the plain union as a ticket, whose size differs from image to image, so
that no batch could be made of it; and the mean rank alone, whose prefixes are neither union nor intersection.

* inverse reverses the ranking and keeps P - k patches: exactly the patches that the file's ticket leaves out, and of
  them the worst first. The gap at the cut stays what it was.

A patch that a file of form 'top' does not hold counts as ranked K, after all K it holds; the result then holds no more
patches than the parents. A row has a ticket when it has one in every parent. Rows stand in the order of the first file.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.arguments import whole_number
from dlth.tickets.derive.draft import Draft, check_same_frame, cut_to, made_header, specs, unscored
from dlth.tickets.derive.pairing import Pairing, check_all_found, check_same_size
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.ranking.ranks import rank_matrix
from dlth.tickets.store.ticket_store import TicketStore, open_store, open_stores


def union(stores: Sequence[TicketStore], k: int | None = None) -> Draft:
    """Rankings whose prefixes are the unions of the files' n best; `k` as the files' own, which must agree, by default.

    Raises MismatchError when frames or rows differ (rows while it is written), InputError for an impossible k.
    """
    return _fused(stores, "union", k)


def intersection(stores: Sequence[TicketStore], k: int | None = None) -> Draft:
    """Rankings whose prefixes are the intersections of the files' n best; `k` and errors as in `union`."""
    return _fused(stores, "intersection", k)


def inverse(store: TicketStore) -> Draft:
    """Each image's patches that its ticket leaves out, worst first; InputError unless all are ranked, some left out."""
    header = open_store(store).header
    num_patches = header.grid.num_patches
    require_full(store, "the inverse")
    if header.k == num_patches:
        raise InputError(f"{shown(store.path.name)} keeps all {num_patches} patches: its inverse would keep none")
    fields = cut_to(num_patches - header.k, num_patches, num_patches)
    changed = made_header([store], "inverse", selector=unscored("inverse", "derived"), **fields)

    def rows(shard_index: int) -> ShardTickets:
        tickets = store.read(shard_index)
        backwards = tickets.patches[:, ::-1]
        return ShardTickets(tickets.keys, tickets.images, backwards, tickets.gap, tickets.skipped)

    return Draft(changed, specs(store), store.layout.key_width, rows)


def require_order(store: TicketStore, what: str) -> None:
    """Raises InputError for a file of form 'mask'."""
    if store.header.form == "mask":
        raise InputError(f"{what} needs an order of patches; {shown(store.path.name)} is of form 'mask' and has none")


def require_full(store: TicketStore, what: str) -> None:
    """Raises InputError unless the file ranks all patches."""
    if store.header.form != "full":
        raise InputError(
            f"{what} needs all patches ranked; {shown(store.path.name)} is of form '{store.header.form}' and holds the "
            f"{store.num_patches_stored} best alone"
        )


def fused(rankings: Sequence[NDArray[np.integer]], num_patches: int, operation: str) -> NDArray[np.int64]:
    """Int64 [rows, num_patches]: the union's or intersection's ranking of patches [rows, K_i] of each file."""
    ranks = [rank_matrix(patches, num_patches) for patches in rankings]
    pick = np.minimum if operation == "union" else np.maximum
    extreme, total = ranks[0].copy(), ranks[0].copy()
    for other in ranks[1:]:
        extreme = pick(extreme, other)
        total += other
    # one whole number orders by extreme rank, then by mean rank; the stable sort leaves ties to the lower index
    return np.argsort(extreme * (len(ranks) * num_patches + 1) + total, axis=1, kind="stable").astype(np.int64)


def _fused(stores: Sequence[TicketStore], operation: str, k: int | None) -> Draft:
    stores = open_stores(stores)
    check_same_size(list(stores))
    check_same_frame(stores)
    for store in stores:
        require_order(store, f"the {operation}")
    base, num_patches = stores[0], stores[0].header.grid.num_patches
    k = None if k is None else whole_number(k, "k", 1)
    ks = {store.header.k for store in stores}
    if k is None and len(ks) > 1:
        raise MismatchError(f"the files keep {sorted(ks)} patches; say how many the {operation} keeps (--tokens)")
    ranked = min(store.num_patches_stored for store in stores)
    fields = cut_to(base.header.k if k is None else k, num_patches, ranked)
    stored = num_patches if fields["form"] == "full" else fields["k"]
    if fields["k"] == base.header.k:  # as its maker wrote it: 0.7 and not 0.704082
        fields["keep"] = fields["stage_keep"] = base.header.keep
    changed = made_header(stores, operation, selector=unscored(operation, "derived"), **fields)
    pairings = [Pairing(base, other) for other in stores[1:]]

    def rows(shard_index: int) -> ShardTickets:
        parts = [base.read(shard_index)]
        for pairing in pairings:
            tickets, paired = pairing.rows(shard_index)
            check_all_found(base, pairing.other, shard_index, paired)
            parts.append(tickets)
        skipped = np.any([part.skipped for part in parts], axis=0)
        good = ~skipped
        patches = np.zeros((len(skipped), stored), dtype=np.int64)
        patches[good] = fused([part.patches[good] for part in parts], num_patches, operation)[:, :stored]
        gap = np.where(skipped, np.float32(np.nan), np.float32(np.inf))
        return ShardTickets(parts[0].keys, parts[0].images, patches, gap, skipped)

    return Draft(changed, specs(base), base.layout.key_width, rows)
