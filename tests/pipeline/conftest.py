"""Images to pack."""

from pathlib import Path

import pytest
from makers.pictures import make_image, make_picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 3 class folders with 8 JPEGs each."""
    root = tmp_path / "images"
    for number in range(24):
        folder = root / f"n{number % 3:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n{number % 3:08d}_{number}.JPEG").write_bytes(make_image(make_picture(number)))
    return root
