"""Files committed to the repository by released versions are read for ever."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest
from makers import TESTS

from dlth.tickets import TicketStore
from dlth.tickets.errors import MissingTicketError
from dlth.tickets.exchange.archive import pack

GOLDEN = TESTS / "tickets" / "golden"
MAKE = runpy.run_path(str(GOLDEN / "make.py"))
IDENTITIES = {
    "v1_full": "d1ba6490fe284a5bcb2f50dd5dae62d121237c71ffc0b9a34f663eb26931cdd6",
    "v1_top": "5f468d9864db53caa28a633d104816108506e39617758e6d54eb56e18c9ea042",
    "v1_mask": "7a5d6c536e50a51d9f4e2072dbfb0ba9d639d259cf37e9cecdb41e0494f175fd",
}
PACKED = {
    "v1_full": "5aefb55af5c523d8a5b521c33bbfdbdb437cebc91363f9ad9d4c3e42e34ddb68",
    "v1_top": "7a0ad4f02346ea0831ac6b3a188b227f75ca1e0d059ade823b279893a7a1199c",
    "v1_mask": "dceb8cb46b92bacce5275de779f03468c018f624962c120fdfcd8545b5355fd4",
}
CONTENT = "3108adfe0555e0021d386b7b23bf7f4fd69f105ee331b479faab218ce02185a0"


@pytest.mark.parametrize("name", IDENTITIES)
def test_version_1_is_read(name: str) -> None:
    """If the identity changes here, every run that pinned a ticket file refuses to resume: make a new version
    instead.
    """
    store = TicketStore(GOLDEN / name)
    assert (store.identity, store.content) == (IDENTITIES[name], CONTENT)
    assert store.verify() == []
    form, grid, k = MAKE["CASES"][name]
    assert store.header == MAKE["header"](form, grid, k)
    assert (store.num_rows, store.num_skipped) == (5, 1)
    for index in range(2):
        expected, found = MAKE["rows"](index, grid, store.num_patches_stored), store.read(index)
        assert found.keys == expected.keys
        assert (found.images == expected.images).all()
        assert (found.skipped == expected.skipped).all()
        patches = np.sort(expected.patches, axis=1) if form == "mask" else expected.patches
        assert (found.patches[~found.skipped] == patches[~found.skipped]).all()
        assert np.array_equal(found.gap, np.where(expected.skipped, np.nan, expected.gap), equal_nan=True)
    assert store.find_rows(["東"]).tolist() == [1 * store.max_rows + 2]
    with pytest.raises(MissingTicketError, match="was skipped"):
        store.find("東")


@pytest.mark.parametrize("name", PACKED)
def test_the_packed_form_never_changes(name: str, tmp_path: Path) -> None:
    """If these bytes change, a zip that was sent yesterday is not the zip of the same tickets today."""
    pack(TicketStore(GOLDEN / name), tmp_path / "packed.zip")
    assert hashlib.sha256((tmp_path / "packed.zip").read_bytes()).hexdigest() == PACKED[name]


def test_version_1_by_hand() -> None:
    """Three values that no code of ours computed: the first patches of a row, its gap, and the header's words."""
    store = TicketStore(GOLDEN / "v1_full")
    assert store.patches(1)[1].tolist() == [11, 18, 5, 12, 19, 6, 13, 0, 7, 14, 1, 8, 15, 2, 9, 16, 3, 10, 17, 4]
    assert store.gap(0).tolist() == [0.25, float("inf")]
    assert (store.header.k, store.header.keep, store.header.stage_tokens) == (6, "0.3", (14, 10, 6))
    assert np.flatnonzero(TicketStore(GOLDEN / "v1_mask").mask(1)[0]).tolist() == [2, 6, 10, 13, 17, 20, 24]
    assert TicketStore(GOLDEN / "v1_top").patches(0).dtype == np.dtype("<u2")
