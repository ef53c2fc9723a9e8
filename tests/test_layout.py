"""The project's shape, read from its source: which folder imports which, and nothing that a stranger must not see."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from makers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDERS = ("tickets", "data", "training", "pipeline")
TICKETS_MAY_IMPORT = {"numpy", "zarr", "numcodecs"}


def imported_modules(path: Path) -> set[str]:
    """Absolute names that a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write dlth.<folder>"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "dlth"}
    return names


def third_party(folder: str) -> set[str]:
    """Top-level names from outside Python and dlth that the files of a folder import."""
    names = {name.split(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imported_modules(path)}
    return names - set(sys.stdlib_module_names) - {"dlth"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_to_their_left(folder: str) -> None:
    """tickets <- data <- training <- pipeline: no file imports from a folder to its right."""
    later = FOLDERS[FOLDERS.index(folder) + 1 :]
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_modules(path)
        if any(name == f"dlth.{other}" or name.startswith(f"dlth.{other}.") for other in later)
        or name.split(".")[0] in FOLDERS
    ]
    assert wrong == []


def test_tickets_need_numpy_and_zarr_alone() -> None:
    """A lab that only reads tickets installs numpy and zarr: tickets/ imports nothing else from outside Python."""
    assert third_party("tickets") - TICKETS_MAY_IMPORT == set()


def test_what_is_imported_is_declared() -> None:
    """Each package from outside that the four folders import, also late, is a dependency or one of an extra's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *(need for name in extras if name != "dev" for need in extras[name])]
    declared = {canonicalize_name(Requirement(need).name) for need in needs}
    providers = packages_distributions()
    undeclared = {
        name
        for folder in FOLDERS
        for name in third_party(folder)
        if not declared & set(map(canonicalize_name, providers[name]))
    }
    assert undeclared == set()


def test_no_dangerous_calls_in_the_source() -> None:
    """What comes from outside is never unpickled, evaluated or run: those calls do not stand in the source."""
    banned = re.compile(
        r"\bpickle\.loads?\b|\bUnpickler\(|weights_only=False|shell=True|\beval\(|\bexec\(|yaml\.load|allow_pickle=True"
    )
    # `.eval()` is a torch module's switch to inference, not the builtin
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line.replace(".eval(", "."))
    ]
    assert lines == []


def test_no_machine_paths_or_index_addresses_in_tracked_files() -> None:
    """Nothing that was committed names a machine's folders or a package index."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    # each word is cut in two, or this file would find itself
    words = ("/wo" + "rk/", "/ro" + "ot/", "--index" + "-url", "pypi" + r"\.org", "pythonho" + "sted", "uv" + r"\.lock")
    banned = re.compile("|".join(words))
    found = [
        name
        for name in tracked
        if (ROOT / name).suffix in {".py", ".md", ".toml", ".lock", ".txt", ".cff", ".html", ""}
        if (ROOT / name).is_file() and banned.search((ROOT / name).read_text(errors="replace"))
    ]
    assert found == []
