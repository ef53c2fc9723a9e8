"""Images to pack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def images(tmp_path: Path, make_picture: Callable[..., Any], make_image: Callable[..., bytes]) -> Path:
    """A folder of 3 class folders with 8 JPEGs each."""
    root = tmp_path / "images"
    for number in range(24):
        folder = root / f"n{number % 3:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n{number % 3:08d}_{number}.JPEG").write_bytes(make_image(make_picture(number)))
    return root
