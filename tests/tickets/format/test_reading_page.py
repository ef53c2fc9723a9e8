"""The page on reading tickets without dlth runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from makers import ROOT
from makers.tickets import make_store

from dlth.tickets import TicketStore

PAGE = ROOT / "docs" / "reading-tickets.md"


def test_ten_lines_of_zarr_and_numpy(store_path: Path, tmp_path: Path) -> None:
    """In a process without dlth, the page's code gives what `TicketStore` gives, skipped images left out."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert block is not None
    code = block[1]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 10
    assert "dlth." not in code
    for path in (store_path, make_store(tmp_path / "top.zarr", form="top")):
        script = (
            f"path = {str(path)!r}\n{code}\nimport sys\nassert not any(n.startswith('dlth') for n in sys.modules)\n"
        )
        script += f"np.savez({str(tmp_path / 'out.npz')!r}, **tickets)"
        subprocess.run([sys.executable, "-c", script], check=True)
        with np.load(tmp_path / "out.npz") as found:
            store = TicketStore(path)
            shards = [store.read(shard) for shard in range(len(store.shards))]
            expected = {
                key: row[: store.header.k]
                for shard in shards
                for key, row, skipped in zip(shard.keys, shard.patches, shard.skipped, strict=True)
                if not skipped
            }
            assert set(found.files) == set(expected)
            assert all((found[key] == row).all() for key, row in expected.items())
