"""The gallery in a real browser: it opens without a network, obeys mouse and keys, fits a phone, and runs nothing else.

What is drawn is read back from the canvases: a dropped patch is covered (alpha above one half), a kept one is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dlth.pipeline.pages.gallery import Card, Gallery, page
from dlth.pipeline.pages.report import Report, Section, Table, write_page
from dlth.tickets import Grid, generator

if TYPE_CHECKING:
    from conftest import Tab

GRID = Grid(7, 5)
K = 12
HOSTILE = (
    "<script>window.canary=1</script>",
    "</script><script>window.canary=1</script>",
    '"><img src=x onerror=window.canary=1>',
    "x' onfocus=window.canary=1 autofocus='",
    "javascript:window.canary=1",
)
COVERED = """(canvas => {
  const g = canvas.getContext('2d'), found = [];
  for (let p = 0; p < 35; p++) {
    const x = (p % 5 + .5) * canvas.width / 5, y = (Math.floor(p / 5) + .5) * canvas.height / 7;
    if (g.getImageData(x, y, 1, 1).data[3] > 127) found.push(p);
  }
  return found;
})"""
SHOWN = "[...document.querySelectorAll('#cards li:not([hidden])')].map(card => Number(card.dataset.index))"
FOCUS = "document.activeElement.id || document.activeElement.closest('li')?.dataset.index || ''"


def gallery(count: int = 12, other: bool = False, texts: tuple[str, ...] = ()) -> Gallery:
    """Pictures of noise with random tickets; classes go round 'ant', 'bee' and 'cat'."""
    cards = [
        Card(
            key=texts[i % len(texts)] + str(i) if texts else f"n{i:08d}_{i}",
            image=generator("image", i).integers(256, size=(70, 50, 3), dtype=np.uint8),
            ranking=ranking("a", i),
            other=ranking("b", i) if other else None,
            label=i % 3,
            name=texts[i % 3] if texts else ("ant", "bee", "cat")[i % 3],
            gap=1 / (1 + i),
        )
        for i in range(count)
    ]
    facts = {text: text for text in texts}
    return Gallery(texts[0] if texts else "pictures", "What this is.", GRID, K, cards, [("tickets.zarr", facts)])


def ranking(file: str, card: int) -> np.ndarray:
    return generator(file, card).permutation(GRID.num_patches)


def overlap(card: int, k: int) -> int:
    return len(set(ranking("a", card)[:k]) & set(ranking("b", card)[:k]))


@pytest.fixture
def show(tab: Tab, tmp_path: Path) -> Callable[..., Tab]:
    """``show(gallery, width=390, ...)`` -> the tab in which its page is open."""

    def open_page(shown: Gallery, **window: object) -> Tab:
        path = tmp_path / "gallery.html"
        path.write_text(page(shown), "utf-8")
        tab.open(path, **window)  # type: ignore[arg-type]
        return tab

    return open_page


def covered(tab: Tab, card: int) -> list[int]:
    return tab.evaluate(f"{COVERED}(document.querySelector('[data-index=\"{card}\"] canvas'))")


def dropped(card: int, k: int) -> list[int]:
    return sorted(ranking("a", card)[k:].tolist())


def slide(tab: Tab, k: int) -> None:
    tab.evaluate(f"keep.value = {k}; keep.dispatchEvent(new Event('input')); keep.dispatchEvent(new Event('change'))")
    tab.drawn()


def choose(tab: Tab, control: str, value: str) -> None:
    tab.evaluate(f"{control}.value = '{value}'; {control}.dispatchEvent(new Event('change'))")
    tab.drawn()


@pytest.mark.parametrize("other", [False, True], ids=["one file", "compared"])
def test_it_opens_offline_without_a_complaint(show: Callable[..., Tab], other: bool) -> None:
    """No request beside the file itself, no console error, no refusal by the page's own policy."""
    tab = show(gallery(other=other))
    assert tab.evaluate("document.getElementById('count').textContent") == "12 images"
    assert tab.evaluate("[...document.images].filter(i => i.src).every(i => i.naturalWidth === 50)")
    assert tab.complaints == []
    assert [url.rsplit("/", 1)[1] for url in tab.requests] == ["gallery.html"]


def test_the_slider_says_what_is_kept(show: Callable[..., Tab]) -> None:
    """At every keep exactly the patches after the first k are covered, on every image."""
    tab = show(gallery())
    for k in (K, 1, 20, 35):
        slide(tab, k)
        for card in (0, 5, 11):
            assert covered(tab, card) == dropped(card, k)
        assert tab.evaluate("kept.textContent").startswith(f"{k} of 35 · ")
        assert tab.evaluate("keep.getAttribute('aria-valuetext')") == f"{k} of 35 patches"


def test_order_is_a_shade(show: Callable[..., Tab]) -> None:
    """In the view of the order, each kept patch is covered more strongly than the next."""
    tab = show(gallery())
    tab.evaluate("document.querySelector('[name=view][value=order]').click()")
    tab.drawn()
    alphas = tab.evaluate(
        "(canvas => [...Array(35).keys()].map(p => canvas.getContext('2d').getImageData("
        "(p % 5 + .5) * canvas.width / 5, (Math.floor(p / 5) + .5) * canvas.height / 7, 1, 1).data[3]))"
        "(document.querySelector('#cards canvas'))"
    )
    strengths = [alphas[patch] for patch in ranking("a", 0)[:K]]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] - strengths[-1] > 120


def test_filters_by_class_and_text(show: Callable[..., Tab]) -> None:
    """A class, a text, both; when nothing fits the page says so and one button brings all back."""
    tab = show(gallery())
    choose(tab, "document.getElementById('class')", "1")
    assert tab.evaluate(SHOWN) == [1, 4, 7, 10]
    assert tab.evaluate("count.textContent") == "4 of 12 images"
    tab.evaluate("text.focus()")
    tab.press("_", "1", "0")
    assert tab.evaluate(SHOWN) == [10]
    tab.press("x")
    assert tab.evaluate(SHOWN) == []
    assert tab.evaluate("none.checkVisibility()")
    tab.evaluate("clear.click()")
    assert tab.evaluate(SHOWN) == list(range(12))


def test_a_comparison_sorts_by_overlap_and_follows_the_slider(show: Callable[..., Tab]) -> None:
    """Least overlap first at the current keep; the mean and each image's share are those of the rankings."""
    tab = show(gallery(other=True))
    for k in (K, 5):
        slide(tab, k)
        shares = [overlap(card, k) for card in range(12)]
        order = sorted(range(12), key=lambda card: (shares[card], card))
        assert tab.evaluate(SHOWN) == order
        assert (
            tab.evaluate("document.querySelector('.overlap').textContent")
            == f"{100 * shares[order[0]] / k:.0f} % shared"
        )
        assert f"{100 * sum(shares) / 12 / k:.1f} %" in tab.evaluate("shared.textContent")
    neither = sorted(set(range(35)) - set(ranking("a", 3)[:5]) - set(ranking("b", 3)[:5]))
    assert set(neither) <= set(covered(tab, 3))
    choose(tab, "sort", "gap")
    assert tab.evaluate(SHOWN) == list(range(11, -1, -1))


def test_everything_can_be_done_by_keys_alone(show: Callable[..., Tab]) -> None:
    """Tab reaches every control and one image; arrows move among images; Enter enlarges, Escape returns to it."""
    tab = show(gallery())
    stops = []
    for _ in range(8):
        tab.press("Tab")
        stops.append(
            tab.evaluate("document.activeElement.className || document.activeElement.tagName + ':' + (" + FOCUS + ")")
        )
        ring = "(e => getComputedStyle(e.type === 'radio' ? e.parentElement : e).outlineStyle)(document.activeElement)"
        assert tab.evaluate(ring) == "solid", stops
    assert stops == ["skip", "SUMMARY:", "INPUT:keep", "INPUT:", "SELECT:class", "SELECT:sort", "INPUT:text", "picture"]
    tab.evaluate("keep.focus()")
    tab.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert covered(tab, 0) == dropped(0, K + 1)
    tab.press("Tab", "ArrowRight")
    assert tab.evaluate("document.querySelector('[name=view]:checked').value") == "order"
    tab.evaluate("document.querySelector('#cards [tabindex=\"0\"]').focus()")
    tab.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert tab.evaluate(FOCUS) == "1"
    tab.press("End")
    assert tab.evaluate(FOCUS) == "11"
    tab.press("Home", "ArrowDown")
    below = int(tab.evaluate(FOCUS))
    assert tab.evaluate(
        f"document.querySelector('[data-index=\"{below}\"]').offsetTop > cards.firstElementChild.offsetTop"
    )
    tab.press("Enter")
    assert tab.evaluate("dialog.open && which.textContent") == f"n{below:08d}_{below}"
    tab.press("ArrowRight")
    assert tab.evaluate("which.textContent") == f"n{below + 1:08d}_{below + 1}"
    tab.press("Escape")
    assert not tab.evaluate("dialog.open")
    assert tab.evaluate(FOCUS) == str(below + 1)


def test_an_enlarged_image_lists_its_ticket(show: Callable[..., Tab]) -> None:
    """The large view holds the ranking as text, best first, cut at the current keep, and follows its own slider."""
    tab = show(gallery())
    tab.evaluate("document.querySelector('#cards button').click()")
    tab.drawn()
    tab.evaluate("document.getElementById('keep-large').value = 4")
    tab.evaluate("document.getElementById('keep-large').dispatchEvent(new Event('input'))")
    tab.drawn()
    assert tab.evaluate("document.querySelector('#details .list').textContent") == " ".join(
        map(str, ranking("a", 0)[:4])
    )
    assert tab.evaluate(f"{COVERED}(document.querySelector('dialog [data-view=patches] canvas'))") == dropped(0, 4)


@pytest.mark.parametrize("other", [False, True], ids=["one file", "compared"])
def test_it_fits_a_phone(show: Callable[..., Tab], other: bool) -> None:
    """At 390 px nothing scrolls sideways, even with endless keys, and two images stand side by side."""
    tab = show(gallery(other=other, texts=("k" * 190, "c" * 190, "d" * 190)), width=390, height=844, mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.evaluate("cards.children[0].offsetTop === cards.children[1].offsetTop")
    tab.evaluate("document.querySelector('details').open = true; document.querySelector('#cards button').click()")
    tab.drawn()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.evaluate("dialog.scrollWidth <= dialog.clientWidth")
    small = (
        "[...document.querySelectorAll('button, select, input')].filter(e => e.checkVisibility() && e.type !== 'radio'"
    )
    assert tab.evaluate(small + " && e.offsetHeight < 32).map(e => e.id)") == []


def test_hostile_texts_do_not_run(show: Callable[..., Tab]) -> None:
    """Markup in keys, classes, titles and facts never sets the canary, not even where the page moves texts about."""
    tab = show(gallery(texts=HOSTILE))
    tab.evaluate("document.querySelector('details').open = true; document.querySelector('#cards button').click()")
    tab.press("ArrowRight", "ArrowRight", "Escape")
    choose(tab, "document.getElementById('class')", "1")
    assert tab.evaluate("typeof window.canary") == "undefined"
    assert tab.evaluate("document.querySelector('.key').textContent") == HOSTILE[0] + "0"
    assert tab.complaints == []
    assert len(tab.requests) == 1


def test_the_policy_stops_what_would_get_past_escaping(show: Callable[..., Tab]) -> None:
    """The second wall stands alone: script, handler, style, picture and request put in by force do nothing."""
    tab = show(gallery())
    tab.evaluate(
        "for (const [tag, set] of [['script', e => e.append('window.canary = 1')], ['img', e => e.src = 'https://a.invalid/']])"
        " { const e = document.createElement(tag); try { set(e) } catch {} document.body.append(e) }"
    )
    assert (
        tab.evaluate(
            "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch { return 'refused' } })()"
        )
        == "refused"
    )
    assert tab.evaluate("fetch('https://a.invalid/').then(() => 'fetched', () => 'refused')") == "refused"
    tab.drawn()
    assert tab.evaluate("typeof window.canary") == "undefined"
    assert tab.complaints


def test_two_hundred_images_are_quick(show: Callable[..., Tab]) -> None:
    """Only images near the screen are drawn: most canvases of a long page stay untouched until they are scrolled to."""
    tab = show(gallery(200))
    fresh = "[...document.querySelectorAll('#cards canvas')].filter(c => c.width === 300 && c.height === 150).length"
    assert tab.evaluate(fresh) > 100
    tab.evaluate("cards.lastElementChild.scrollIntoView()")
    tab.drawn()
    tab.drawn()
    assert covered(tab, 199) == dropped(199, K)


def test_the_report_opens_offline_on_a_phone(tab: Tab, tmp_path: Path) -> None:
    """The demo's report shares the page: no complaint, no request, no sideways scroll of the whole."""
    wide = Table(tuple(f"column {i}" for i in range(12)), (tuple("x" * 20 for _ in range(12)),))
    report = Report(
        "A report", "x" * 300, sections=(Section("Wide", tables=(wide,), commands=("dlth " * 60,)),), footer="f" * 300
    )
    tab.open(write_page(report, tmp_path / "report.html"), width=390, height=844, mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.complaints == []
    assert len(tab.requests) == 1
