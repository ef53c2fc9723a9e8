"""Tickets on their images in a report: which are drawn, recall that is known, and whose tickets they must be."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.results import write_run
from makers.tickets import select_tickets

from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.evidence.informative import INFORMATIVE, read_informative
from dlth.pipeline.evidence.validation_images import ValidationImages
from dlth.pipeline.reports.drawn import PerImage, best, disagreed, recall_section, tickets_section, worst
from dlth.tickets import ViewSpec
from dlth.tickets.errors import DamageError

TICKET, DENSE = ArmKey("ticket", "0.5", "projected"), ArmKey("dense")


def per_image(right: list[float], loss: list[float]) -> PerImage:
    return PerImage(np.array(right), np.array(loss))


def test_which_images_are_drawn() -> None:
    """Best: right in every seed, least loss first. Worst: wrong in most, most loss first, no number above all. Most
    disagreed: the largest difference in seeds; images on which the arms agree are none of them."""
    ticket = per_image([1.0, 0.5, 1.0, 0.0, 0.0, 0.0], [0.2, 0.7, 0.1, 2.0, np.nan, 3.0])
    dense = per_image([1.0, 1.0, 1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 2.0, 2.0, 0.1])
    assert best(ticket, 5).tolist() == [2, 0]
    assert worst(ticket, 3).tolist() == [4, 5, 3]
    assert worst(ticket, 9).tolist() == [4, 5, 3, 1]
    assert disagreed(ticket, dense, 5).tolist() == [5, 1]


@pytest.fixture
def study(make_shards: Callable[..., Any], tmp_path: Path) -> Evidence:
    """Two seeds of the ticket and dense arm on twelve images that have tickets, two of whose patches are known."""
    index = open_index(make_shards(2, 6, split="val").spec)
    view = ViewSpec("center", 32, 32, "1.0")
    store = select_tickets(index, tmp_path / "val.zarr", view=view, split="val")
    keys = [index.key(number) for number in range(12)]
    best_two = {key: sorted(map(int, store.patches_at(np.array([at]))[0, [0, 9]])) for at, key in enumerate(keys)}
    (tmp_path / "val" / INFORMATIVE).write_text(json.dumps(best_two))

    def run(arm: str, seed: int) -> FinishedRun:
        whole = FinishedRun.load(write_run(tmp_path / f"{arm}-{seed}", arm, seed))
        right = np.arange(12) % 3 != (0 if arm == "ticket" else 1)
        columns = {"keys": np.array(keys)} | {
            f"{tokens}_{name}": values
            for tokens in ("dense", "ticket")
            for name, values in (("top1", right), ("seen", np.ones(12, bool)), ("loss", np.arange(12.0) + seed))
        }
        data = whole.result.data | {"val_tickets": store.identity}
        return replace(whole, images=columns, result=replace(whole.result, data=data))

    runs = {
        TICKET: {seed: run("ticket", seed) for seed in (0, 1)},
        DENSE: {seed: run("dense", seed) for seed in (0, 1)},
    }
    return Evidence(runs, images=ValidationImages.open(str(tmp_path / "val"), str(store.path)))


def test_the_section_shows_each_kind_with_what_the_arms_made_of_it(study: Evidence) -> None:
    """Three sheets; the text for those who do not see them names images and seeds; none but the runs' are drawn."""
    section = tickets_section(study)
    assert section is not None
    assert [picture.name for picture in section.pictures] == ["tickets-best", "tickets-worst", "tickets-disagreed"]
    best_sheet, worst_sheet, disagreed_sheet = section.pictures
    assert best_sheet.alt.count("ticket 2/2") == 6
    assert worst_sheet.alt.count("ticket 0/2") == 4
    assert disagreed_sheet.alt.count("ticket 2/2; dense 0/2") + disagreed_sheet.alt.count("ticket 0/2; dense 2/2") == 6
    runs = {seed: replace(run, result=replace(run.result, data={})) for seed, run in study.runs[TICKET].items()}
    section = tickets_section(replace(study, runs={TICKET: runs}))
    assert section is not None
    assert (section.pictures, "evaluated on other tickets" in section.texts[0]) == ((), True)


def test_two_selectors_are_drawn_where_they_agree_least(study: Evidence, tmp_path: Path) -> None:
    """With another selector's tickets of the same images each panel shows the difference, and one sheet the images with
    the fewest patches in common; images without a ticket are never drawn."""
    assert study.images is not None
    index, store = study.images.index, study.images.store
    view = ViewSpec("center", 32, 32, "1.0")
    other = select_tickets(index, tmp_path / "other.zarr", view=view, split="val", name="other")
    images = ValidationImages.open(str(tmp_path / "val"), str(store.path), other=str(other.path))
    lacking = {"without_ticket": np.arange(12) < 4}
    runs = {
        arm: {seed: replace(run, images={**run.images, **lacking}) for seed, run in of.items()}
        for arm, of in study.runs.items()
    }
    section = tickets_section(replace(study, runs=runs, images=images))
    assert section is not None
    sheets = {picture.name: picture.alt for picture in section.pictures}
    assert sheets["tickets-best"].count("2/2") + sheets["tickets-worst"].count("ticket 0/2") < 12
    kept = [each.patches_at(np.arange(12))[:, :8] for each in (store, other)]
    least = sorted(len(set(one) & set(two)) / 8 for one, two in zip(*kept, strict=True))[:6]
    assert re.findall(r"[0-9]+% shared", sheets["tickets-selectors"]) == [f"{share:.0%} shared" for share in least]


def test_recall_counts_known_patches_among_those_kept(study: Evidence) -> None:
    """Of each image's two known patches its ticket's 8 best hold the first in rank and not the tenth: one half."""
    section = recall_section(study)
    assert section is not None
    assert section.tables[0].rows == (("0.5", 8, 0.5, 0.5),)
    assert study.images is not None
    assert recall_section(replace(study, images=replace(study.images, known=None))) is None
    assert recall_section(replace(study, images=None)) is None
    assert tickets_section(replace(study, images=None)) is None


@pytest.mark.parametrize("text", ['{"a": [16]}', '{"a": []}', '{"a": [true]}', '{"a": [[1]]}', "[1]", '{"a": [0.5]}'])
def test_patches_that_the_grid_does_not_have_are_damage(tmp_path: Path, text: str) -> None:
    """informative.json is checked whole: a grid's patches by key, as whole numbers."""
    path = tmp_path / INFORMATIVE
    path.write_text(text)
    with pytest.raises(DamageError, match=INFORMATIVE):
        read_informative(path, 16)
