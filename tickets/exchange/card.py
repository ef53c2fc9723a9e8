"""The card: README.md beside a packed ticket file, with the front matter that the Hugging Face Hub shows.

It says how the tickets were made, what they cover and cost, and how to use, check and cite them. Names in it come from
the header, which strangers may have written: in Markdown every special character is escaped, in commands and BibTeX
only harmless ones remain, and front matter is JSON text, which YAML reads as the same text. It holds no date, so the
same ticket file gives the same card.
"""

import json
import re

from dlth.tickets.errors import shown
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.provenance import describe
from dlth.tickets.store.ticket_store import TicketStore, open_store

_LICENSES = (
    *("apache-2.0", "mit", "bsd-3-clause", "odbl", "odc-by", "pddl"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
)
"""Those that the Hub knows by these names and that fit data."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_TAGS = ("dlth", "dlth-tickets", "vision-transformer", "token-pruning", "lottery-ticket", "zarr")
_DEIT_PATCH = 16
"""Side of the patches of the model that the command names, in pixels."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$^=:@/\"'])")


def card(store: TicketStore, file_name: str, num_bytes: int) -> str:
    """The text of README.md for a ticket file that is sent as `file_name`, `num_bytes` long."""
    name = _plain(file_name, "tickets.zarr.zip")
    folder = name.removesuffix(".zip")
    header = open_store(store).header
    title = _title(header)
    parts = [
        f"---\n{_front_matter(header, store.num_rows)}---\n",
        f"# {_md(title)}\n",
        "For every image, which patches a selector found best: a *ticket file* of "
        "dlth. It holds numbers only: no pixels, no code.\n",
        _table(_facts(store, name, num_bytes)),
        _lost(header),
        f"""## Use

```sh
dlth tickets unpack {name} --out {folder}   # checks every byte first
dlth tickets verify {folder}
{_use(header, folder)}
```

Without dlth, the zip is a plain Zarr v3 group (`zarr.storage.ZipStore`). Images may be packed in other shards: rows
are found by position, key, or the hash of the image's bytes. Whoever was given the identity from elsewhere compares it:
`dlth tickets info {folder}` prints it, and `…/{name}#identity={store.identity}` as an address refuses any other file.
""",
        f"""## Cite

```bibtex
@misc{{dlth-{store.identity[:12]},
  title = {{{_plain(title, "Tickets")}}},
  author = {{{_plain(header.creator, "unknown")}}},
  note = {{dlth ticket file, identity {store.identity}}}
}}
```
""",
    ]
    return "\n".join(part for part in parts if part)


def _use(header: TicketHeader, folder: str) -> str:
    """The command that the file serves: evaluation on the crop that it was made on, training on the whole image."""
    if header.view.kind == "center":
        return f"dlth evaluate --checkpoint RUN --val SHARDS --val-tickets {folder}"
    if header.form != "full" or header.grid.rows != header.grid.cols:
        # Training shows crops, to which only a whole ranking can be moved; and no flag makes a grid that is not square.
        return f"dlth tickets show {folder} --data SHARDS"
    side = f" --img-size {header.grid.rows * header.patch_size}"
    patches = "" if header.patch_size == _DEIT_PATCH else f" --model-kwargs patch_size={header.patch_size}"
    return f"dlth train --tickets {folder} --data SHARDS --model deit_small{side}{patches}"


def _title(header: TicketHeader) -> str:
    what = " ".join(part for part in (header.dataset.name, header.dataset.split) if part) or "unnamed images"
    return f"Tickets of {header.selector.model} for {what}, keep {header.keep}"


def _front_matter(header: TicketHeader, num_rows: int) -> str:
    license_text = header.license.strip()
    known = license_text.lower() in _LICENSES
    fields: dict[str, object] = {
        "pretty_name": _clean(_title(header)),
        "license": license_text.lower() if known else "other" if license_text else "unknown",
        **({"license_name": _clean(license_text)} if license_text and not known else {}),
        "task_categories": ["image-classification"],
        "tags": list(_TAGS),
        "size_categories": [next((text for bound, text in _SIZES if num_rows < bound), "n>10M")],
        "source_datasets": [f"extended|{_slug(header.dataset.name)}"],
        "viewer": False,
    }
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())


def _facts(store: TicketStore, name: str, num_bytes: int) -> dict[str, str]:
    header, selector, view = store.header, store.header.selector, store.header.view
    patches = header.grid.num_patches
    stored = {
        "full": "all patches, best first",
        "top": "the best patches, best first",
        "mask": "the kept set, no order",
    }
    weights = f", weights sha256 {selector.weights_sha256}" if selector.weights_sha256 else ""
    blocks = f" at blocks {', '.join(map(str, selector.blocks))}" if selector.blocks else ""
    derived = header.extensions.get("derived")
    operation = derived.get("operation") if isinstance(derived, dict) else None
    return {
        "identity": store.identity,
        "file": f"{name}, {num_bytes:,} bytes, {num_bytes / store.num_rows:.0f} an image",
        "coverage": f"{store.num_rows - store.num_skipped:,} of {store.num_rows:,} images have a ticket, "
        f"{store.num_skipped:,} could not be read",
        "shards": f"{len(store.shards):,}",
        "kept": f"{header.k} of {patches} patches (keep {header.keep})",
        "grid": f"{header.grid.rows} x {header.grid.cols} patches of {header.patch_size} px, numbered row by row",
        "form": f"{header.form}: {stored[header.form]}",
        "selector": f"{selector.model}{weights}{blocks}",
        "tickets are": describe(header),
        "view": f"{view.kind}, {view.height} x {view.width} px, {view.interpolation}",
        **({"made by": f"dlth tickets {operation}"} if isinstance(operation, str) else {}),
        "made with": ", ".join(f"{key} {value}" for key, value in header.versions.items()) or "-",
        "creator": header.creator or "-",
        "licence": header.license or "-",
        "created": header.created or "-",
        "content": f"{store.content} (sha256 over the sorted hashes of the images)",
    }


def _table(facts: dict[str, str]) -> str:
    rows = "".join(f"| {_md(name)} | {_md(value)} |\n" for name, value in facts.items())
    return f"## How it was made\n\n| | |\n|---|---|\n{rows}"


def _lost(header: TicketHeader) -> str:
    if not header.lost:
        return "Every smaller keep and every crop can be had from it.\n"
    return f"It cannot give: {'; '.join(header.lost)}. For these, ask for the file of form `full`.\n"


def _clean(text: str) -> str:
    """Printable text of one line."""
    return shown(text, 300)


def _md(text: str) -> str:
    """Text that Markdown and HTML take for nothing but text."""
    escaped = _SPECIAL.sub(r"\\\1", _clean(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str, otherwise: str) -> str:
    """Only letters, digits and a few marks that mean nothing to a shell, Markdown or BibTeX."""
    return re.sub(r"[^\w .,+-]|(?<!\w)-", "", _clean(text))[:120].strip() or otherwise


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "original"
