"""Every command of the app with every path that it takes, and every bad path: see `paths.py` for the table."""

import inspect
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hostile import paths
from makers import GOLDEN
from makers.campaign import run_script
from PIL import Image
from pydantic.fields import FieldInfo

from dlth.data.packing.pack import pack
from dlth.data.shards.index import open_index
from dlth.pipeline.cli.app import app
from dlth.pipeline.pruning import prune_config
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.reproduction.reproduce_config import ReproduceConfig
from dlth.pipeline.selection.agree_config import AgreeConfig
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.label_config import LabelConfig
from dlth.pipeline.studies import study_config
from dlth.pipeline.studies.demo_config import DemoConfig
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets import TicketStore
from dlth.tickets.derive.controls import control
from dlth.tickets.errors import InputError
from dlth.tickets.store.locks import owned
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.fields import path_kind
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

SETTINGS = {
    **{"select": SelectConfig, "train": TrainConfig, "train-selector": SelectorTrainConfig, "evaluate": EvalConfig},
    **{"label": LabelConfig, "demo": DemoConfig, "tickets agree": AgreeConfig, "reproduce run": ReproduceConfig},
    **{"compare": CompareConfig, "prune": PruneConfig},
}
OWN_SETTINGS = {"compare": study_config.OWN, "prune": prune_config.OWN}
NO_PATHS = {
    *("split", "selector", "dataset", "creator", "license_", "crop_pct", "grid", "keep", "view", "form", "format_"),
    *("kind", "class_", "recipe", "annotator", "title", "val_split"),
}
"""Words that name no file. `keys` of show and `key` of info are words, too, and are told by the row."""
WORDS = {("reproduce list", "rows"), ("tickets show", "keys"), ("tickets info", "key"), ("tickets verify", "subset")}


def commands(group: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and function of every command."""
    for command in group.registered_commands:
        name = command.name or str(getattr(command.callback, "__name__", "")).rstrip("_")
        yield prefix + name, command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        itself = inner.typer_instance.registered_callback
        if inner.typer_instance.info.invoke_without_command is True and itself is not None:
            yield prefix + str(inner.name), itself.callback
        yield from commands(inner.typer_instance, f"{prefix}{inner.name} ")


def path_parameters(name: str, callback: Any) -> set[str]:
    """What a command takes that may name a file: of its own parameters all text but known words, of its settings those
    that say so.
    """
    if name in SETTINGS:
        settings = SETTINGS[name].names() | (_shared_by_runs(OWN_SETTINGS[name]) if name in OWN_SETTINGS else {})
        fields = {field for field, about in settings.items() if path_kind(about)}
        own = {"demo": {"out"}, "tickets agree": {"file"}, "reproduce run": set()}.get(name, {"config"})
        return fields | own
    hints = typing.get_type_hints(callback)
    text = {each for each in inspect.signature(callback).parameters if _is_text(hints[each])}
    return {each for each in text - NO_PATHS if (name, each) not in WORDS}


def _shared_by_runs(own: Collection[str]) -> dict[str, FieldInfo]:
    """Settings of train that a study does not give to each run itself."""
    return {field: about for field, about in TrainConfig.names().items() if field not in own}


def _is_text(hint: Any) -> bool:
    return hint in (str, Path) or any(_is_text(part) for part in typing.get_args(hint))


def test_every_path_of_every_command_has_its_place_in_the_table() -> None:
    """A new command, or a new parameter that may be a path, fails here until `paths.py` attacks it."""
    known = {name: set(row.given) for name, row in paths.ROWS.items()}
    assert known == {name: path_parameters(name, callback) for name, callback in commands(app)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("paths") / "world"
    paths.build(root)
    return root


@pytest.mark.parametrize("part", ["index pack demo select label evaluate runs masks report", "tickets"])
def test_bad_paths_are_one_clear_error_and_leave_nothing(world: Path, part: str) -> None:
    """Each command as it stands, and of all pairs of a path and something bad in its place every fifteenth
    (`paths.py 1` takes all). Exit code 2, one error, nothing made, nothing changed, nothing waits.
    """
    rows = {name: row for name, row in paths.ROWS.items() if name.split()[0] in part.split()}
    told = paths.survey(world, rows, every=15)
    assert told["findings"] == []
    assert told["commands"] > 20


def test_what_may_not_be_read_or_written_is_one_clear_error() -> None:
    """As a user without the right (root becomes nobody): each ticket tool's files and folders, to read and to write."""
    apart = ("tickets show", "tickets agree")  # what builds models cannot be forked to become nobody
    rows = [name.split()[1] for name in paths.ROWS if name.startswith("tickets ") and name not in apart]
    _, told = run_script("hostile/paths.py", 3, "--denied", *rows)
    assert told["findings"] == []
    assert told["commands"] > 60


def test_dots_after_a_link_mean_what_the_system_finds_there(tmp_path: Path) -> None:
    """`link/..` is the folder that holds the link's target: every tool writes and reads there, and nowhere else."""
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a" / "x.png")
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "link").symlink_to("out/deep")
    above = f"{tmp_path}/link/.."
    pack(tmp_path / "images", f"{above}/shards")
    assert open_index(f"{above}/shards").num_samples == 1
    control(TicketStore(GOLDEN), "random", 0).write(f"{above}/c.zarr")
    with owned(Path(above) / "run"):
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"deep", "shards", "c.zarr", "run"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "link"])
    for name in ("none/../run", "link/none/.."):
        with pytest.raises(InputError, match="is missing"), owned(tmp_path / name):
            pass
