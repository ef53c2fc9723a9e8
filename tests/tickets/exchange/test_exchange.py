"""Export and import: what goes out comes back, and rows from outside are checked before they become tickets."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlth.tickets import Grid, TicketStore, generator
from dlth.tickets.errors import DamageError, DlthError, InputError, LimitError, SchemaError, UnsafeError
from dlth.tickets.exchange.coco import encode_masks, export_coco
from dlth.tickets.exchange.imports import ImportOptions, import_draft
from dlth.tickets.exchange.npz import NpzTable, export_npz

GRID = ImportOptions(grid=Grid(4, 4), patch_size=8, k=6)


def same_rows(first: TicketStore, second: TicketStore) -> None:
    assert [(s.name, s.rows, s.skipped) for s in first.shards] == [(s.name, s.rows, s.skipped) for s in second.shards]
    for index in range(len(first.shards)):
        ours, theirs = first.read(index), second.read(index)
        assert ours.keys == theirs.keys
        for name in ("images", "patches", "gap", "skipped"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def foreign(path: Path, rows: int = 5, **arrays: object) -> Path:
    """A lab's own npz: keys and full rankings unless said otherwise; None leaves an array out."""
    patches = generator("foreign").permuted(np.tile(np.arange(16), (rows, 1)), axis=1)
    base = {"keys": np.array([f"img_{row}" for row in range(rows)]), "patches": patches}
    np.savez(path, **{name: array for name, array in (base | arrays).items() if array is not None})  # type: ignore[arg-type]
    return path


def test_npz_round_trip_keeps_every_row_and_is_read_by_numpy(store_path: Path, tmp_path: Path) -> None:
    """Export, import: the same shards, keys, hashes, rankings, gaps and skipped rows; the header remembers the file."""
    store = TicketStore(store_path)
    export_npz(store, tmp_path / "a.npz")
    export_npz(store, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["patches"].shape == (10, 16)
        assert file["keys"][3] == b"n0001_0"
        assert json.loads(file["header"].tobytes())["k"] == 6
    table = NpzTable(tmp_path / "a.npz")
    made = import_draft(table, ImportOptions()).write(tmp_path / "made")
    same_rows(store, made)
    assert made.header.selector == store.header.selector
    assert made.header.extensions["derived"] == {"operation": "import", "file_sha256": table.digest}


def test_exports_replace_nothing(store_path: Path, tmp_path: Path) -> None:
    """A file that stands there stays; a folder that is not there is named; no temporary file is left."""
    store = TicketStore(store_path)
    (tmp_path / "a.npz").write_text("mine")
    for export in (export_npz, export_coco):
        with pytest.raises(InputError, match="exists and is not overwritten"):
            export(store, tmp_path / "a.npz")
        with pytest.raises(DlthError, match="there is no folder"):
            export(store, tmp_path / "nowhere" / "a.npz")
    assert (tmp_path / "a.npz").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "toy.zarr"]


def test_a_labs_own_rankings_become_an_ordinary_file(tmp_path: Path) -> None:
    """Full rankings with a budget: checked, cut into shards, hashes unknown, gap infinite."""
    draft = import_draft(NpzTable(foreign(tmp_path / "a.npz")), GRID, shard_rows=2)
    made = draft.write(tmp_path / "made")
    assert made.verify() == []
    assert [shard.rows for shard in made.shards] == [2, 2, 1]
    assert (made.header.form, made.header.k, made.header.keep) == ("full", 6, "0.375")
    assert made.header.selector.model == "unknown"
    assert not made.image_hashes(0).any()
    assert np.isinf(made.gap(0)).all()


@pytest.mark.parametrize("shape", [(5, 16), (5, 4, 4)])
def test_masks_become_sets(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Of form 'mask', since they say nothing about order."""
    masks = np.zeros((5, 16), dtype=bool)
    for row in range(5):
        masks[row, generator("mask", row).choice(16, 6, replace=False)] = True
    table = NpzTable(foreign(tmp_path / "a.npz", patches=None, masks=masks.reshape(shape)))
    made = import_draft(table, ImportOptions(grid=Grid(4, 4), patch_size=8)).write(tmp_path / "made")
    assert (made.header.form, made.header.k) == ("mask", 6)
    assert np.array_equal(made.mask(0), masks)
    export_npz(made, tmp_path / "again.npz")
    again = import_draft(NpzTable(tmp_path / "again.npz"), ImportOptions()).write(tmp_path / "again")
    assert again.header.form == "mask"
    same_rows(made, again)


def test_partial_rankings_can_be_cut(tmp_path: Path) -> None:
    """The ten best of sixteen are a file of form 'top'; fewer may be kept of them."""
    best = generator("foreign").permuted(np.tile(np.arange(16), (5, 1)), axis=1)[:, :10]
    table = NpzTable(foreign(tmp_path / "a.npz", patches=best))
    ten = import_draft(table, ImportOptions(grid=Grid(4, 4), patch_size=8)).write(tmp_path / "ten")
    six = import_draft(table, GRID).write(tmp_path / "six")
    assert (ten.header.form, ten.header.k, six.header.form, six.header.k) == ("top", 10, "top", 6)
    assert np.array_equal(six.patches(0), best[:, :6])


def test_what_a_row_must_be_is_said_with_its_place(tmp_path: Path) -> None:
    """Repeated patches, patches outside the grid, repeated keys, uneven masks: each by name."""
    twice = np.tile(np.arange(16), (5, 1))
    twice[3, 0] = 1
    outside = np.tile(np.arange(16), (5, 1))
    outside[2, 0] = 16
    uneven = np.zeros((5, 16), dtype=bool)
    uneven[:, :6] = True
    uneven[4, 6] = True
    cases = {
        r"shard rows-000000: row 3 names a patch twice": foreign(tmp_path / "a.npz", patches=twice),
        r"row 2 names a patch outside 0 … 15 \(found 16\)": foreign(tmp_path / "b.npz", patches=outside),
        r"the key 'same' of row|the key 'same' stands in rows 0 and 1": foreign(
            tmp_path / "c.npz", keys=np.array(["same"] * 5)
        ),
        r"the mask of row 4 keeps 7 patches, the others 6": foreign(tmp_path / "d.npz", patches=None, masks=uneven),
    }
    for number, (message, path) in enumerate(cases.items()):
        with pytest.raises(InputError, match=message):
            import_draft(NpzTable(path), GRID).write(tmp_path / f"made-{number}")
        assert not (tmp_path / f"made-{number}").exists()


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Grid, budget and size of shards must be said, and must fit."""
    table = NpzTable(foreign(tmp_path / "a.npz"))
    with pytest.raises(InputError, match="does not say its grid and patch size"):
        import_draft(table, ImportOptions())
    with pytest.raises(InputError, match="say how many a ticket keeps"):
        import_draft(table, ImportOptions(grid=Grid(4, 4), patch_size=8))
    with pytest.raises(InputError, match="rows of 16 entries do not fit a grid of 3x3"):
        import_draft(table, ImportOptions(grid=Grid(3, 3), patch_size=8, k=2))
    with pytest.raises(InputError, match="17 patches were asked for|must be from 1 to 16"):  # noqa: RUF043
        import_draft(table, ImportOptions(grid=Grid(4, 4), patch_size=8, k=17))
    with pytest.raises(InputError, match="at least 1 row, got 0"):
        import_draft(table, GRID, shard_rows=0)
    for odd in (0, -8):
        with pytest.raises(InputError, match="the patch size is at least 1, got"):
            ImportOptions(patch_size=odd)
        with pytest.raises(InputError, match="patches kept is at least 1, got"):
            ImportOptions(k=odd)
    for share in ("nan", "inf", "-1", "0.9", ""):
        with pytest.raises(InputError, match="belongs to the center view alone"):
            ImportOptions(view="whole", crop_pct=share)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    """An array of Python objects is refused by its type, before a byte of it is read."""
    path = foreign(tmp_path / "a.npz", keys=np.array(["a", {"b": 1}, 2, 3, 4], dtype=object))
    with pytest.raises(UnsafeError, match="'keys' holds Python objects, which would have to be unpickled"):
        NpzTable(path)


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An .npy file, with a lie about its shape if one is given."""
    buffer = io.BytesIO()
    described = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(buffer, {**described, "shape": shape or array.shape})
    return buffer.getvalue() + array.tobytes()


def zipped(path: Path, kind: int = zipfile.ZIP_DEFLATED, /, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return path


def test_odd_headers_and_directories_are_refused(tmp_path: Path) -> None:
    """Axes that are none, that wrap when multiplied or fit no machine; no header, no character; a count that lies."""
    keys, patches, masks = np.array(["a", "b"]), np.tile(np.arange(16), (2, 1)), np.ones((2, 4), dtype=bool)
    good = {"keys": npy(keys), "patches": npy(patches)}
    odd = 2**32 + 1  # times its inverse it is 4 in 64 bits
    shapes = [(2, -2, -2), (2, odd, pow(odd, -1, 2**64) * 4 % 2**64), (2, 2**32, 2**32), (True, 4)]
    for shape in shapes:
        with pytest.raises(LimitError, match=r"'masks' has the shape \(.*beyond every bound"):
            NpzTable(zipped(tmp_path / "a.npz", keys=good["keys"], masks=npy(masks, shape)))
    with pytest.raises(InputError, match=r"'masks' has the wrong type bool or shape \[\]"):
        NpzTable(zipped(tmp_path / "a.npz", keys=good["keys"], masks=npy(np.ones((), dtype=bool))))
    with pytest.raises(LimitError, match="beyond every bound"):
        NpzTable(zipped(tmp_path / "a.npz", **good | {"patches": npy(patches, (2, 10**30))}))
    with pytest.raises(DamageError, match="'keys' has a header that is none"):
        NpzTable(zipped(tmp_path / "a.npz", **good | {"keys": b"\x93NUMPY\1\0\xa0\x0f" + b"(" * 4_000}))
    beyond = npy(keys)[:-8] + (0x110000).to_bytes(4, "little") * 2
    for name in ("keys", "shards"):
        members = good | {name: beyond, "shard_rows": npy(np.array([1, 1]))}
        with pytest.raises(DamageError, match=f"'{name}' holds numbers that are no characters"):
            NpzTable(zipped(tmp_path / "a.npz", **members)).keys(0, 2)
    wraps = npy(np.array([2**63, 2**63, 2], dtype=np.uint64))
    with pytest.raises(SchemaError, match="do not add up to 2 rows"):
        NpzTable(zipped(tmp_path / "a.npz", **good, shards=npy(np.array(["a", "b", "c"])), shard_rows=wraps))
    raw = zipped(tmp_path / "a.npz", **good).read_bytes()
    begin = int.from_bytes(raw[-6:-2], "little")
    listed = raw[begin:-22] * 12_000
    lies = raw[:begin] + listed + raw[-22:-10] + len(listed).to_bytes(4, "little") + raw[-6:-2]
    for end in (b"\0\0", b"\6\0PK\5\6  "):  # a comment that looks like another end record
        (tmp_path / "lies.npz").write_bytes(lies + end)
        with pytest.raises(LimitError, match=r"lists its members in \d{7} bytes, the bound is 1048576"):
            NpzTable(tmp_path / "lies.npz")


def test_hostile_npz_files_are_refused_by_name(tmp_path: Path) -> None:
    """Lying shapes, endless rows, many members, truncation, no zip at all."""
    keys, patches = np.array(["a", "b"]), np.tile(np.arange(16), (2, 1))
    good = {"keys": npy(keys), "patches": npy(patches)}
    lie = zipped(tmp_path / "lie.npz", **good | {"patches": npy(patches, (2_000_000, 16))})
    with pytest.raises(DamageError, match="'patches' is not as long as its shape says"):
        NpzTable(lie)
    with pytest.raises(LimitError, match="beyond every bound"):
        NpzTable(zipped(tmp_path / "wide.npz", **good | {"patches": npy(patches, (2, 10**12))}))
    with pytest.raises(InputError, match="'patches' has 1 rows, 'keys' has 2"):
        NpzTable(zipped(tmp_path / "rows.npz", **good | {"patches": npy(patches[:1])}))
    with pytest.raises(InputError, match="must hold 'keys' and either 'patches' or 'masks'"):
        NpzTable(zipped(tmp_path / "names.npz", keys=npy(keys)))
    with pytest.raises(InputError, match="'patches' has the wrong type float64"):
        NpzTable(zipped(tmp_path / "type.npz", **good | {"patches": npy(patches.astype(float))}))
    with pytest.raises(LimitError, match="lists 65 members"):
        NpzTable(zipped(tmp_path / "many.npz", **{f"a{i}": b"" for i in range(65)}))
    with pytest.raises(SchemaError, match="'shards' and 'shard_rows' do not add up to 2 rows"):
        NpzTable(zipped(tmp_path / "shards.npz", **good, shards=npy(np.array(["x"])), shard_rows=npy(np.array([3]))))
    for kind in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):  # an LZMA member's header may ask for four gigabytes
        with pytest.raises(InputError, match="'keys' is packed in a way that numpy does not write"):
            NpzTable(zipped(tmp_path / "packed.npz", kind, **good))
    raw = zipped(tmp_path / "ok.npz", **good).read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "text.npz").write_text("not a zip")
    for name in ("cut.npz", "text.npz"):
        with pytest.raises(DamageError, match=r"cannot be read as \.npz"):
            NpzTable(tmp_path / name)
    with pytest.raises(InputError, match="is not a regular file"):
        NpzTable(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        NpzTable(tmp_path / "nowhere.npz")


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.integers(1, 40))
def test_run_lengths_are_what_coco_reads(seed: int, rows: int, cols: int, patch_size: int) -> None:
    """pycocotools decodes our text to the mask, and encodes the mask to our text."""
    from pycocotools import mask as coco

    rng = generator("coco", seed)
    kept = rng.random((3, rows * cols)) < rng.random()
    for cells, text in zip(kept, encode_masks(kept, Grid(rows, cols), patch_size), strict=True):
        pixels = np.kron(cells.reshape(rows, cols), np.ones((patch_size, patch_size), dtype=bool)).astype(np.uint8)
        size = [rows * patch_size, cols * patch_size]
        assert np.array_equal(coco.decode({"size": size, "counts": text.encode()}), pixels)
        assert coco.encode(np.asfortranarray(pixels))["counts"] == text.encode()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_a_coco_file_holds_each_ticket_once(store_path: Path, tmp_path: Path) -> None:
    """pycocotools loads it: area, box and mask of each image with a ticket; a skipped image has no annotation."""
    from pycocotools.coco import COCO

    store = TicketStore(store_path)
    export_coco(store, tmp_path / "a.json")
    coco = COCO(str(tmp_path / "a.json"))
    assert (len(coco.getImgIds()), len(coco.getAnnIds())) == (10, 9)
    row = 0
    for index in range(len(store.shards)):
        tickets = store.read(index)
        for key, patches, skipped in zip(tickets.keys, tickets.patches, tickets.skipped, strict=True):
            row += 1
            assert coco.loadImgs(row)[0]["file_name"] == key
            found = coco.loadAnns(coco.getAnnIds(imgIds=row))
            assert len(found) == (0 if skipped else 1)
            if skipped:
                continue
            mask = coco.annToMask(found[0])
            kept = {int(patch) for patch in patches[:6]}
            assert {p for p in range(16) if mask[p // 4 * 8 : p // 4 * 8 + 8, p % 4 * 8 : p % 4 * 8 + 8].all()} == kept
            assert mask.sum() == found[0]["area"] == 6 * 64
            ys, xs = np.nonzero(mask)
            assert found[0]["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
