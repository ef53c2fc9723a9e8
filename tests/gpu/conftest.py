"""The harness of `make gpu`: on which device, what is not run there and why, and the table at the end.

    pytest tests/gpu --device cuda      as `make gpu`; without a GPU it fails in one line
    pytest tests/gpu --device cpu       the same tests, small, on a CPU: what `make test` does
    pytest tests/gpu                    cuda where there is one; elsewhere nothing is collected

A test that asks for more than the machine has is left out before it runs, and named with what it lacks at the end: it
is never counted as passed. What a test measures goes into one table through `compared`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.compilers import inductor_lacks
from makers.pictures import write_shards
from makers.runs import train_config
from makers.scales import STUDENTS, Scale
from makers.tickets import select_tickets

from dlth.data.cores import num_cores
from dlth.data.shards.index import open_index
from dlth.tickets import ViewSpec
from dlth.training.distributed.process_group import no_cuda
from dlth.training.settings.train_config import TrainConfig


@dataclass(frozen=True)
class Row:
    """A line of the table: in `what` the device differs at worst by `worst`, and may by `tolerance` (None: as much as
    it likes, the number is told alone).
    """

    what: str
    precision: str
    worst: float
    tolerance: float | None


ROWS: pytest.StashKey[list[Row]] = pytest.StashKey()
NOT_RUN: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""Name of a test, and why it is not run here."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to run, and where to write what was measured."""
    parser.addoption("--device", choices=("cuda", "cpu"), help="device that is compared with the CPU")
    parser.addoption("--gpu-table", type=Path, metavar="FILE", help="write the table's rows as JSON, too")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that is not there; let the CPU's side of a comparison have all cores where there is a GPU."""
    if config.getoption("device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"--device cuda: {no_cuda()}, so nothing could be shown. On a machine without one:"
            " make gpu DEVICE=cpu (or pytest tests/gpu --device cpu), which runs what a CPU can, small"
        )
    config.stash[ROWS], config.stash[NOT_RUN] = [], {}
    if _device_type(config) == "cuda":
        torch.set_num_threads(num_cores())  # a GPU does not wait for what it is compared with


def _device_type(config: pytest.Config) -> str | None:
    """cuda or cpu, None where nobody chose one and there is no GPU."""
    return config.getoption("device") or ("cuda" if torch.cuda.is_available() else None)


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Without a GPU, and unasked, nothing here is a test."""
    return True if _device_type(config) is None else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this device cannot run, by name."""
    lacking = {item.nodeid: _lack(item, _device_type(config)) for item in items}
    config.stash[NOT_RUN] |= {name.rpartition("/")[2]: why for name, why in lacking.items() if why}
    config.hook.pytest_deselected(items=[item for item in items if lacking[item.nodeid]])
    items[:] = [item for item in items if not lacking[item.nodeid]]


def _lack(item: pytest.Item, device: str | None) -> str:
    """What a test needs and this machine does not have; empty if nothing."""
    if (gpu := item.get_closest_marker("gpu")) is not None:
        needed, found = gpu.kwargs.get("devices", 1), torch.cuda.device_count() if device == "cuda" else 0
        if found < needed:
            return "needs a GPU" if needed == 1 else f"needs {needed} GPUs, found {found}"
    if item.get_closest_marker("compiler") is not None and (lack := inductor_lacks(device or "cpu")):
        return f"needs {lack}"
    return ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, and what was not run."""
    write, rows, not_run = terminalreporter.write_line, config.stash[ROWS], config.stash[NOT_RUN]
    device = _device_type(config)
    if device is None:
        write("tests/gpu: nothing was collected, as there is no GPU; --device cpu runs on a CPU what can be, small")
        return
    if rows:
        terminalreporter.section(f"{_name(device)} against the CPU", sep="-")
        width = max(len(row.what) for row in rows)
        write(f"{'what':{width}}  {'precision':9}  {'worst':>9}  {'tolerance':>9}")
        for row in rows:
            bound = "told" if row.tolerance is None else f"{row.tolerance:9.3g}"
            write(f"{row.what:{width}}  {row.precision:9}  {row.worst:9.3g}  {bound:>9}")
    if not_run:
        terminalreporter.section(f"not run on {device}: {len(not_run)}", sep="-")
        for name, why in not_run.items():
            write(f"{name}: {why}")
    if (file := config.getoption("gpu_table")) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "this CPU"


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device that is compared with the CPU."""
    return torch.device("cuda", 0) if _device_type(pytestconfig) == "cuda" else torch.device("cpu")


@pytest.fixture
def compared(pytestconfig: pytest.Config) -> Callable[[str, str, float, float | None], None]:
    """``compared(what, precision, worst, tolerance)``: a row of the table; fails where worst is beyond, or no number.

    Without a tolerance the number is told, and claims nothing.
    """

    def compare(what: str, precision: str, worst: float, tolerance: float | None) -> None:
        pytestconfig.stash[ROWS].append(Row(what, precision, float(f"{worst:.3g}"), tolerance))
        assert math.isfinite(worst), f"{what}, {precision}: {worst} is no number"
        if tolerance is not None:
            assert worst <= tolerance, f"{what}, {precision}: {worst:.3g} is beyond the tolerance {tolerance:.3g}"

    return compare


@pytest.fixture(scope="session")
def scale(device: torch.device) -> Scale:
    """The student's size on this device, for both sides of a comparison."""
    return STUDENTS[device.type]


@pytest.fixture(scope="session")
def shards(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that name shards of JPEGs, four batches, and their tickets of half of the student's patches."""
    folder, rows = tmp_path_factory.mktemp("gpu"), 2 * scale.batch
    index = open_index(write_shards(folder, 2, rows, size=(96, 128)).spec)
    view = ViewSpec("whole", scale.img_size, scale.img_size)
    tickets = select_tickets(index, folder / "tickets.zarr", view=view, grid=scale.grid, patch_size=scale.patch_size)
    return {"data": str(folder / "train"), "tickets": str(tickets.path)}


@pytest.fixture(scope="session")
def make_run(
    shards: dict[str, str], scale: Scale, device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainConfig]:
    """``make_run(**overrides)`` -> the settings of a run of one epoch, four steps of SGD, on the device, in a folder of
    its own.
    """

    def make(**overrides: Any) -> TrainConfig:
        sizes = {"model_kwargs": scale.kwargs, "img_size": scale.img_size, "batch_size": scale.batch}
        run = {"epochs": 1, "opt": "sgd", "lr": 0.02, "min_lr": 0.02, "val": None, "device": str(device)}
        settings = {"tickets": shards["tickets"]} | sizes | run | overrides
        return train_config(shards["data"], tmp_path_factory.mktemp("run") / "out", **settings)

    return make
