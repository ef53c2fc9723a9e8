"""The report in a real browser: it opens offline, fits a phone, obeys the keyboard, follows the dark, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from makers.pruning import write_prune_study
from makers.results import write_study_of

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.reports.report import write_report

if TYPE_CHECKING:
    from conftest import Tab

ARMS = (ArmKey("dense"), *(ArmKey(arm, "0.5", "projected") for arm in ("ticket", "random", "control-other-image")))
HOSTILE = "<img src=x onerror=window.canary=1>"
WINDOWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844, "mobile": True}}
SHOWN = "[...document.querySelectorAll('fieldset figure')].map(f => f.getClientRects().length > 0)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's report, with a missing run and markup in the versions."""
    folder = tmp_path_factory.mktemp("studies") / ("long-name-" * 12)
    write_study_of(folder, ARMS, unfinished=("random-keep0.5-seed2",), versions={"dlth": HOSTILE})
    return write_report(gather([folder]), folder.parent / "report.html")


def luminance(rgb: list[int]) -> float:
    return sum(share * (part / 255) ** 2.2 for share, part in zip((0.21, 0.72, 0.07), rgb, strict=True))


@pytest.mark.parametrize("window", WINDOWS)
def test_it_opens_offline_and_fits(tab: Tab, page: Path, window: str) -> None:
    """No complaint, no request but the page, nothing run, no sideways scroll of the whole, every picture drawn; no
    table scrolls while there is room beside it."""
    tab.open(page, **WINDOWS[window])  # type: ignore[arg-type]
    assert tab.evaluate("(page => page.scrollWidth <= page.clientWidth)(document.documentElement)")
    fits = "it.scrollWidth <= it.clientWidth || it.getBoundingClientRect().right > innerWidth - 50"
    assert tab.evaluate(f"[...document.querySelectorAll('.scroll')].every(it => {fits})")
    assert tab.complaints == []
    assert len(tab.requests) == 1
    assert tab.evaluate("window.canary") is None
    assert tab.evaluate("[...document.images].length > 4 && [...document.images].every(i => i.naturalWidth > 500)")


@pytest.mark.parametrize("window", WINDOWS)
def test_a_report_of_pruned_weights_opens_and_fits(tab: Tab, tmp_path: Path, window: str) -> None:
    """Its curve is drawn and has words, its wide table scrolls by itself and has a name, and the page does not."""
    write_prune_study(tmp_path / "pruned", {"lt": 0.8, "rr": 0.6, "random-mask": 0.5, "one-shot": 0.7})
    tab.open(write_report(gather([tmp_path / "pruned"]), tmp_path / "report.html"), **WINDOWS[window])  # type: ignore
    assert tab.evaluate("(page => page.scrollWidth <= page.clientWidth)(document.documentElement)")
    assert tab.complaints == []
    assert tab.evaluate(
        "[...document.images].filter(i => i.alt.includes('lt from')).map(i => i.naturalWidth > 500)"
    ) == [True]
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].every(s => s.getAttribute('aria-label'))")


def test_every_picture_and_table_has_words(tab: Tab, page: Path) -> None:
    """Alternative texts say figures; tables have headers of rows and columns, and a name where they scroll."""
    tab.open(page)
    alts = tab.evaluate("[...document.images].map(i => i.alt)")
    assert all(len(alt) > 40 for alt in alts)
    assert sum("ends at" in alt for alt in alts) == 4
    assert tab.evaluate("[...document.querySelectorAll('tbody tr')].every(r => r.firstElementChild.scope === 'row')")
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].every(s => s.getAttribute('aria-label'))")
    assert tab.evaluate("document.querySelectorAll('h1').length") == 1


def test_the_axis_is_chosen_by_keyboard(tab: Tab, page: Path) -> None:
    """One curve is shown at a time; Tab reaches the choice, an arrow moves to the next axis; folded tables open."""
    tab.open(page)
    assert tab.evaluate(SHOWN) == [True, False, False, False]
    tab.evaluate("document.querySelector('fieldset input').focus()")
    tab.press("ArrowRight", "ArrowRight")
    assert tab.evaluate(SHOWN) == [False, False, True, False]
    assert tab.evaluate("document.querySelector('fieldset :checked').parentElement.textContent.trim()") == "FLOP"
    tab.evaluate("document.querySelector('summary').focus()")
    tab.press("Enter")
    assert tab.evaluate("document.querySelector('details').open")
    reached = set()
    tab.evaluate("document.activeElement.blur()")
    for _ in range(30):
        tab.press("Tab")
        reached.add(tab.evaluate("document.activeElement.tagName"))
    assert reached >= {"A", "INPUT", "SUMMARY", "DIV"}


def test_it_is_dark_where_the_system_is(tab: Tab, page: Path) -> None:
    """Background and text trade places, and keep a contrast of at least 7 to 1."""
    lights = []
    for dark in (False, True):
        tab.open(page, dark=dark)
        colours = "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
        text, ground = (list(map(int, colour[4:-1].split(","))) for colour in tab.evaluate(colours))
        lights.append((luminance(text), luminance(ground)))
        assert (max(lights[-1]) + 0.05) / (min(lights[-1]) + 0.05) > 7
    assert lights[0][0] < lights[0][1]
    assert lights[1][0] > lights[1][1]


def test_print_has_every_curve_and_no_controls(tab: Tab, page: Path) -> None:
    """On paper all axes are drawn, folded tables are open, and nothing that only a screen can do is there."""
    tab.open(page)
    tab.call("Emulation.setEmulatedMedia", media="print")
    tab.drawn()
    assert tab.evaluate(SHOWN) == [True] * 4
    assert tab.evaluate("document.querySelector('nav').getClientRects().length") == 0
    assert tab.evaluate("document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})")
