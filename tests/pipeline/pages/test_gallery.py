"""`dlth tickets show`: which images it takes, what the page holds, and that nothing from a file runs in it."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.tickets import select_tickets
from typer.testing import CliRunner

from dlth.data.shards.classes import class_names
from dlth.data.shards.index import ShardIndex, open_index
from dlth.pipeline.cli.app import app
from dlth.pipeline.pages import figures
from dlth.pipeline.pages.gallery import Card, Gallery, page, sheets
from dlth.pipeline.pages.report import Report, Section, Table, write_page
from dlth.pipeline.pages.show import Choice, gallery_of
from dlth.tickets import Grid, TicketStore, ViewSpec, generator, project
from dlth.tickets.errors import InputError, MismatchError, MissingTicketError, SchemaError

GRID = Grid(4, 4)
WHOLE = ViewSpec("whole", 32, 32)
HOSTILE = (
    "<script>canary=1</script>",
    "</script><script>canary=1</script>",
    '"><img src=x onerror=canary=1>',
    "{{ 7 * 7 }}${canary}$\\frac{1}$",
    "\u202egnp.exe\u0007",
)


class Page(HTMLParser):
    """Tags with their attributes, and the text of each tag, as a browser's parser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(next(text for text in self.texts if text.startswith('{"')))


def ranking(name: str, key: str, patches: int = GRID.num_patches) -> np.ndarray:
    return generator(name, key).permutation(patches)


def tickets_for(index: ShardIndex, path: Path, **options: Any) -> TicketStore:
    """A real ticket file of a hostile creator, its rankings drawn by the file's name and the image's key."""
    return select_tickets(index, path, name=path.name, creator=HOSTILE[0], **options)


@pytest.fixture
def index(make_shards: Callable[..., Any]) -> ShardIndex:
    return open_index(make_shards(2, 6).spec)


def unpacked(text: str, ranked: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, ranked)


def cards(*keys: str, other: bool = False, side: int = 32) -> list[Card]:
    """One card for each key: a picture, rankings drawn by its key, and the key as its class's name too."""
    return [
        Card(
            key=key,
            image=generator("image", key).integers(256, size=(side, side, 3), dtype=np.uint8),
            ranking=ranking("a", key),
            other=ranking("b", key) if other else None,
            label=number,
            name=key,
        )
        for number, key in enumerate(keys)
    ]


def test_the_command_writes_page_and_sheets_that_hold_what_the_file_holds(index: ShardIndex, tmp_path: Path) -> None:
    """From real shards and a real ticket file to a page: every image once, its ranking as stored, its class."""
    store = tickets_for(index, tmp_path / "one.zarr")
    out = tmp_path / "out"
    folder = str(Path(index.shards[0].url).parent)
    result = CliRunner().invoke(
        app, ["tickets", "show", str(store.path), "--data", folder, "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["gallery.html", "sheet-000.png"]
    assert (out / "sheet-000.png").read_bytes().startswith(b"\x89PNG")
    found = Page((out / "gallery.html").read_text("utf-8"))
    keys = [index.key(i) for i in range(12)]
    assert [tag["title"] for tag in found.all("p") if tag.get("class") == "key"] == keys
    assert unpacked(found.data["ranking"], 16).tolist() == [ranking("one.zarr", key).tolist() for key in keys]
    assert [tag["data-label"] for tag in found.all("li")] == [str(i % 4) for i in range(12)]
    assert "class 3 (3)" in found.texts
    assert found.data["gap"][:6] == pytest.approx(np.linspace(1, 2, 6), abs=1e-3)


def test_pictures_are_the_view_that_the_grid_divides(index: ShardIndex, tmp_path: Path) -> None:
    """Each picture has the view's pixels, encoded anew, whatever the size of the image in the shard."""
    gallery = gallery_of(
        tickets_for(index, tmp_path / "one.zarr", view=ViewSpec("center", 24, 24)), index, Choice(num=2)
    )
    assert {card.image.shape for card in gallery.cards} == {(24, 24, 3)}
    images = [tag for tag in Page(page(gallery)).all("img") if "src" in tag]
    assert [(tag["width"], tag["height"]) for tag in images] == [("24", "24")] * 2
    assert all(str(tag["src"]).startswith("data:image/png;base64,") for tag in images)


def test_hostile_texts_stay_texts() -> None:
    """Markup in keys, class names, titles and header texts makes no tag, no attribute and no second script."""
    facts = dict.fromkeys(HOSTILE, HOSTILE[1])
    text = page(Gallery(HOSTILE[0], "lead", GRID, 8, cards(*HOSTILE), [(HOSTILE[2], facts)]))
    plain = page(Gallery("title", "lead", GRID, 8, cards(*"abcde"), [("file", dict.fromkeys("abcde", "value"))]))
    found, harmless = Page(text), Page(plain)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert HOSTILE[0] in found.texts
    assert HOSTILE[3] in found.texts
    assert r"\u202egnp.exe\x07" in found.texts


@pytest.mark.parametrize("other", [False, True], ids=["one file", "compared"])
def test_a_page_needs_nothing_from_outside_and_lets_nothing_in(other: bool) -> None:
    """No address but pictures in the page; the policy names the page's own code by hash and refuses all else."""
    text = page(Gallery("title", "lead", GRID, 8, cards("a", "b", other=other)))
    assert "://" not in text
    assert set(re.findall(r'(?:src|href)="([a-z]*[:#])', text)) == {"data:", "#"}
    [policy] = [tag["content"] for tag in Page(text).all("meta") if tag.get("http-equiv")]
    assert policy
    assert policy.startswith("default-src 'none'; img-src data:; ")
    code = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", text, re.DOTALL)
    assert len(code) == 3
    for part in code:
        assert base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() in policy
    assert "unsafe" not in policy


def test_data_cannot_close_its_script() -> None:
    """The data of the script holds no `<` at all, so no text can end it."""
    text = page(Gallery("title", "lead", GRID, 8, cards(*HOSTILE)))
    [block] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert "<" not in block
    assert json.loads(block)["rows"] == 4


def test_the_same_gallery_gives_the_same_bytes() -> None:
    """No time, no random nonce: pages can be compared and cached."""
    gallery = Gallery("title", "lead", GRID, 8, cards("a", "b"))
    assert page(gallery) == page(gallery)


def test_images_are_chosen_by_number_key_and_class(index: ShardIndex, tmp_path: Path) -> None:
    """Evenly spread without a wish; with keys or classes (number or name) those alone."""
    store = tickets_for(index, tmp_path / "one.zarr", bad=(index.key(0),))
    (Path(index.shards[0].url).parent / "classes.json").write_text('{"names": ["ant", "bee", "cat", "dog"]}')
    every = [index.key(i) for i in range(12)]

    def chosen(**choice: Any) -> list[str]:
        return [card.key for card in gallery_of(store, index, Choice(**choice)).cards]

    assert chosen() == every[1:]
    assert chosen(num=3) == [every[1], every[6], every[11]]
    assert chosen(keys=(every[7], every[2])) == [every[2], every[7]]
    assert chosen(classes=("bee",)) == chosen(classes=("1",)) == every[1::4]
    assert [card.name for card in gallery_of(store, index, Choice(num=2)).cards] == ["bee", "dog"]


def test_wishes_that_cannot_be_met_are_refused(index: ShardIndex, tmp_path: Path) -> None:
    """Unknown keys and classes, a keep that the file does not hold, and too many images: one clear message each."""
    store = tickets_for(index, tmp_path / "top.zarr", form="top")
    with pytest.raises(MissingTicketError, match="no ticket for the key 'nobody'"):
        gallery_of(store, index, Choice(keys=("nobody",)))
    with pytest.raises(InputError, match="--class 'bee' is no class number"):
        gallery_of(store, index, Choice(classes=("bee",)))
    with pytest.raises(InputError, match="no image of these shards has a ticket and fits"):
        gallery_of(store, index, Choice(classes=("99",)))
    with pytest.raises(MismatchError, match=r"--keep 0\.75 means 12 patches, the file holds the 8 best"):
        gallery_of(store, index, Choice(keep="0.75"))
    with pytest.raises(InputError, match="--num 0: a page shows 1 to 2000 images"):
        Choice(num=0)
    assert len(gallery_of(store, index, Choice(keep="0.25")).cards[0].ranking) == 8
    assert gallery_of(store, index, Choice(keep="0.25")).k == 4


def test_class_names_that_are_no_texts_are_refused(index: ShardIndex) -> None:
    """classes.json comes with the shards from outside: its shape is checked."""
    (Path(index.shards[0].url).parent / "classes.json").write_text('{"names": [1, {"a": 2}]}')
    with pytest.raises(SchemaError, match="'names' must be a list of texts"):
        class_names(index)


def test_a_comparison_shows_the_least_agreeing_images_first(index: ShardIndex, tmp_path: Path) -> None:
    """Of all images with two tickets, those with the fewest patches in common, in that order."""
    one, two = tickets_for(index, tmp_path / "one.zarr"), tickets_for(index, tmp_path / "two.zarr")
    gallery = gallery_of(one, index, Choice(num=5), other=two)
    keys = [index.key(i) for i in range(12)]
    agreement = [len({*ranking("one.zarr", key)[:8]} & {*ranking("two.zarr", key)[:8]}) for key in keys]
    expected = [keys[i] for i in np.argsort(agreement, kind="stable")[:5]]
    assert [card.key for card in gallery.cards] == expected
    found = Page(page(gallery))
    assert unpacked(found.data["other"], 16).tolist() == [ranking("two.zarr", key).tolist() for key in expected]
    assert {tag["value"] for tag in found.all("input") if tag.get("name") == "view"} == {"diff", "a", "b", "image"}


def test_a_file_in_another_frame_is_projected_or_refused(index: ShardIndex, tmp_path: Path) -> None:
    """A crop's ranking on another grid is seen from the first file's view; a top-only one cannot be."""
    one = tickets_for(index, tmp_path / "one.zarr")
    view, grid = ViewSpec("center", 32, 32, crop_pct="0.8"), Grid(2, 2)
    two = tickets_for(index, tmp_path / "two.zarr", grid=grid, view=view)
    card = gallery_of(one, index, Choice(num=1), other=two).cards[0]
    source, target = view.view_of(48, 64, grid), WHOLE.view_of(48, 64, GRID)
    assert card.other is not None
    assert card.other.tolist() == project(ranking("two.zarr", card.key, 4), source, target).tolist()
    top = tickets_for(index, tmp_path / "top.zarr", grid=grid, view=view, form="top")
    with pytest.raises(MismatchError, match=r"top\.zarr lies in another frame .* too few patches to be projected"):
        gallery_of(one, index, Choice(), other=top)


def test_an_image_whose_bytes_changed_says_so(index: ShardIndex, tmp_path: Path) -> None:
    """A re-encoded copy may be shown, but not as if it were the image that the ticket was made from."""
    said: list[str] = []
    store = tickets_for(index, tmp_path / "one.zarr", salt=b"other")
    gallery = gallery_of(store, index, Choice(num=1), note=said.append)
    assert "not the bytes the ticket was made from" in page(gallery)
    assert "re-encoded" in said[0]


def test_sheets_take_any_text_and_any_number(tmp_path: Path) -> None:
    """25 images make two sheets; formulas and foreign scripts in keys are drawn as text."""
    keys = [*HOSTILE, "鳥", *(f"key{i}" for i in range(19))]
    drawn = sheets(Gallery("title", "lead", GRID, 8, cards(*keys)))
    assert len(drawn) == 2
    assert figures.png(drawn[1]).startswith(b"\x89PNG")
    assert figures.png(drawn[0]).startswith(b"\x89PNG")


def test_pictures_show_exactly_the_kept_patches() -> None:
    """Kept patches keep their pixels, dropped ones fade; patches of one ticket alone are tinted, the rest is not."""
    [card] = cards("a", other=True)
    assert card.other is not None
    kept = np.isin(np.arange(16), card.ranking[:8]).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    shown = figures.kept_only(card.image, card.ranking, 8, GRID)
    assert (shown[kept] == card.image[kept]).all()
    assert shown[~kept].std() < card.image[~kept].std() / 4
    other = np.isin(np.arange(16), card.other[:8]).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    drawn = figures.difference(card.image, card.ranking, card.other, 8, GRID)
    assert (drawn[kept & other] == card.image[kept & other]).all()
    assert (drawn[kept & ~other].mean(axis=0).argmax(), drawn[other & ~kept].mean(axis=0).argmax()) == (2, 0)
    shade = figures.order_shade(np.full_like(card.image, 200), card.ranking, 8, GRID)
    reds = [int(shade[patch // 4 * 8, patch % 4 * 8, 0]) for patch in card.ranking[:8]]
    assert reds == sorted(reds)


def test_large_views_get_into_the_page_as_smaller_jpegs(make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """A page stays light: a view of 512 px is drawn at 448, as JPEG."""
    index = open_index(make_shards(1, 2, size=(600, 500)).spec)
    gallery = gallery_of(tickets_for(index, tmp_path / "one.zarr", view=ViewSpec("whole", 512, 512)), index, Choice())
    assert gallery.cards[0].image.shape == (448, 448, 3)
    assert 'src="data:image/jpeg;base64,' in page(gallery)


def test_large_grids_are_packed_in_two_bytes() -> None:
    """Above 256 patches an index needs two bytes, little-endian."""
    grid, order = Grid(32, 32), generator("large").permutation(1024)
    gallery = Gallery("title", "lead", grid, 8, [replace(card, ranking=order) for card in cards("a")])
    data = Page(page(gallery)).data
    assert data["bytes"] == 2
    assert np.frombuffer(base64.b64decode(data["ranking"]), "<u2").tolist() == order.tolist()


def test_the_report_is_escaped_and_closed_in_the_same_way(tmp_path: Path) -> None:
    """The demo's report goes through the same page: hostile texts stay texts, and no script may run at all."""
    section = Section(HOSTILE[1], texts=HOSTILE, tables=(Table(HOSTILE[:2], (HOSTILE[:2],)),), commands=HOSTILE)
    text = write_page(Report(HOSTILE[0], HOSTILE[2], sections=(section,)), tmp_path / "r.html").read_text("utf-8")
    found = Page(text)
    assert not found.all("script")
    assert not found.all("img")
    assert "script-src 'none'" in text
    assert found.texts.count(HOSTILE[1]) >= 3
