"""The card: front matter that the Hub reads, text that stays text."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from makers.tickets import make_header, make_store

from dlth.tickets import Grid, TicketStore, ViewSpec
from dlth.tickets.derive.shrink import shrink
from dlth.tickets.exchange.card import card

NASTY = "x\n---\n# <script>alert(1)</script> [a](javascript:b) `rm` $(rm) {{}} | \x1b[2J \u202e \"' &amp; \U0001f600"


def front_matter(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(matter)
    return loaded


def test_the_card_says_what_the_file_is(store_path: Path) -> None:
    """Identity, coverage, size, how to use and cite it; the same file gives the same text."""
    store = TicketStore(store_path)
    text = card(store, "toy.zarr.zip", 1_234)
    assert text == card(store, "toy.zarr.zip", 1_234)
    for part in (store.identity, "9 of 10 images", "1,234 bytes", "dlth tickets unpack toy.zarr.zip", "@misc{dlth-"):
        assert part in text
    matter = front_matter(text)
    assert matter["license"] == "unknown"
    assert matter["size_categories"] == ["n<1K"]
    assert matter["source_datasets"] == ["extended|toy"]
    assert "zarr" in matter["tags"]
    assert matter["pretty_name"] == "Tickets of vit_tiny for toy train, keep 0.375"


def test_the_card_of_a_small_form_says_what_is_lost(store_path: Path, tmp_path: Path) -> None:
    small = shrink(TicketStore(store_path), "mask").write(tmp_path / "small.zarr")
    text = card(small, "small.zarr.zip", 1)
    assert "It cannot give: any keep but its own; projection to crops and other views; the order of patches." in text
    assert "made by | dlth tickets shrink" in text


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "dlth train --tickets a --data SHARDS --model deit_small --img-size 32 --model-kwargs patch_size=8"),
        ({"patch_size": 16}, "dlth train --tickets a --data SHARDS --model deit_small --img-size 64\n"),
        ({"view": ViewSpec("center", 32, 32)}, "dlth evaluate --checkpoint RUN --val SHARDS --val-tickets a\n"),
        ({"form": "top"}, "dlth tickets show a --data SHARDS\n"),
        ({"grid": Grid(2, 8)}, "dlth tickets show a --data SHARDS\n"),
    ],
)
def test_the_cards_command_fits_the_file(tmp_path: Path, changes: dict[str, Any], command: str) -> None:
    """Image size and patch size are the file's; what cannot train a model is not offered for training."""
    assert command in card(TicketStore(make_store(tmp_path / "a.zarr", **changes)), "a.zip", 1)


@pytest.mark.parametrize(("said", "shown"), [("Apache-2.0", "apache-2.0"), ("our own", "other"), (NASTY, "other")])
def test_licences_the_hub_does_not_know_are_other(tmp_path: Path, said: str, shown: str) -> None:
    matter = front_matter(card(TicketStore(make_store(tmp_path / "a.zarr", license=said)), "a.zip", 1))
    assert matter["license"] == shown
    assert ("license_name" in matter) == (shown == "other")


def test_text_from_a_header_stays_text(tmp_path: Path) -> None:
    """A name cannot add front matter, markup, a command or a terminal code."""
    base = make_header()
    path = make_store(
        tmp_path / "a.zarr",
        creator=NASTY,
        license=NASTY,
        versions={NASTY: NASTY},
        selector=dataclasses.replace(base.selector, model=NASTY),
        dataset=dataclasses.replace(base.dataset, name=NASTY),
    )
    text = card(TicketStore(path), "$(rm -rf x).zip", 1)
    assert len(front_matter(text)) == 8
    assert front_matter(text)["pretty_name"].startswith("Tickets of x\\n---\\n# <script>")
    body = text.split("---\n", 2)[2]
    for part in ("<script", "](javascript", "$(rm", "\x1b", "\u202e"):
        assert part not in body
    assert sum(line.startswith("# ") for line in body.splitlines()) == 1
    commands = body.split("```")[1]
    assert not set("$`;&|<>(){}\"'") & set(commands)
