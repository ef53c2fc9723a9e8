"""The project's shape, read from its source: which folder imports which, and nothing that a stranger must not see."""

import ast
import re
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from makers import ROOT, checkout_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDERS = ("tickets", "data", "training", "pipeline")
TICKETS_MAY_IMPORT = {"numpy", "zarr", "numcodecs"}


def imported_modules(path: Path, for_types: bool = True) -> set[str]:
    """Absolute names that a file imports, at any depth of its code; without those for type checkers alone if asked."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if not for_types:
        guarded = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        nodes = [n for n in nodes if n not in {inner for outer in guarded for inner in ast.walk(outer)}]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write dlth.<folder>"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.".startswith("dlth.")}
    return names


def modules() -> dict[str, Path]:
    """Every module of the four folders by its dotted name, packages' own files left out."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    named = {"dlth." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name: path for name, path in named.items() if path.name != "__init__.py"}


def rooms(folder: str) -> dict[str, set[str]]:
    """Each room of a folder, and those rooms of it that the last line of its docstring lets it import."""
    allowed: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or "-"
        line = re.fullmatch(r"May import: ([a-z, ]+)\.", text.splitlines()[-1])
        assert line, f"{path}: its docstring must end with a line 'May import: room, room.', or 'nothing'"
        allowed[path.parent.name] = set(line[1].split(", ")) - {"nothing"}
    return allowed


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


@pytest.mark.parametrize("folder", FOLDERS)
def test_rooms_import_what_they_say(folder: str) -> None:
    """A room imports only those rooms of its folder that it names; what stands beside the rooms imports none."""
    allowed = rooms(folder)
    assert len(allowed) >= 5
    wrong = []
    for name, path in modules().items():
        home, *inside = name.split(".")[1:]
        room = inside[0] if len(inside) > 1 else None
        for target in imported_modules(path) if home == folder else ():
            parts = [*target.split(".")[1:], ""]
            if parts[0] == folder and parts[1] in allowed and parts[1] not in {room, *allowed.get(room or "", ())}:
                wrong.append(f"{name} imports {target}")
            if target == f"dlth.{folder}":
                wrong.append(f"{name} imports {target}, which holds public names of all rooms: name the module")
    assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_rooms_have_one_direction(folder: str) -> None:
    """No room may import, over whichever others, itself; the rooms named are there."""
    allowed = rooms(folder)
    assert set().union(*allowed.values()) <= set(allowed)
    assert set(TopologicalSorter(allowed).static_order()) == set(allowed)  # CycleError names a circle


def test_no_module_imports_itself_over_others() -> None:
    """Modules stand in one direction, imports inside functions included (those for type checkers are none)."""
    known = modules()
    graph = {name: imported_modules(path, for_types=False) & set(known) for name, path in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)  # CycleError names a circle


def test_docs_name_what_is_there() -> None:
    """Every source or test file that a page names exists, and docs/architecture.md has a row for each room."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "tickets" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    named = re.compile(rf"\b(?:{'|'.join(FOLDERS)}|tests|benchmarks)/[\w/]+\.(?:py|json)\b")
    missing = {
        f"{page.name}: {name}"
        for page in pages
        for name in named.findall(page.read_text())
        if not (ROOT / name).is_file()
    }
    assert missing == set()
    rows = re.findall(r"^\| `(\w+/\w+)/` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(f"{folder}/{room}" for folder in FOLDERS for room in rooms(folder))


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
    # each word is cut in two, or this file would find itself
    words = ("/wo" + "rk/", "/ro" + "ot/", "--index" + "-url", "pypi" + r"\.org", "pythonho" + "sted", "uv" + r"\.lock")
    banned = re.compile("|".join(words))
    found = [
        name
        for name in checkout_files()
        if (ROOT / name).suffix in {".py", ".md", ".toml", ".lock", ".txt", ".cff", ".html", ""}
        if (ROOT / name).is_file() and banned.search((ROOT / name).read_text(errors="replace"))
    ]
    assert found == []
