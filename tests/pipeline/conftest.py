"""The command line in this process, and images to pack."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlth.pipeline import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dlth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlth", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def images(tmp_path: Path, make_picture: Callable[..., Any], make_image: Callable[..., bytes]) -> Path:
    """A folder of 3 class folders with 8 JPEGs each."""
    root = tmp_path / "images"
    for number in range(24):
        folder = root / f"n{number % 3:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n{number % 3:08d}_{number}.JPEG").write_bytes(make_image(make_picture(number)))
    return root
