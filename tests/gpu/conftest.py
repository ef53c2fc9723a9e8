"""The harness of `make gpu`: on which device, what is not run there and why, and the table at the end.

    pytest tests/gpu --device cuda      as `make gpu`; without a GPU it fails in one line
    pytest tests/gpu --device cpu       the same tests, small, on a CPU: what `make test` does
    pytest tests/gpu                    cuda where there is one; elsewhere nothing is run

A test that asks for more than the machine has is left out before it runs, and named with what it lacks at the end: it
is never counted as passed. What a test measures goes into one table through `compared`; `--gpu-table` has the result of
every test besides.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.compilers import inductor_lacks
from makers.device_report import FAILED, NOT_RUN, PASSED, RELATIVE, Compared, Result, Row, as_json, lines
from makers.pictures import write_shards
from makers.runs import train_config
from makers.scales import STUDENTS, Scale
from makers.tickets import select_tickets

from dlth.data.cores import num_cores
from dlth.data.shards.index import open_index
from dlth.tickets import ViewSpec
from dlth.training.distributed.process_group import no_cuda
from dlth.training.settings.train_config import TrainConfig

HERE = Path(__file__).parent
ROWS: pytest.StashKey[list[Row]] = pytest.StashKey()
RESULTS: pytest.StashKey[dict[str, Result]] = pytest.StashKey()
"""Of every test here by its node, as if none was run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to run, and where to write what was measured."""
    parser.addoption("--device", choices=("cuda", "cpu"), help="device that is compared with the CPU")
    parser.addoption("--gpu-table", type=Path, metavar="FILE", help="write results and the table's rows as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that is not there; let the CPU's side of a comparison have all cores where there is a GPU."""
    if config.getoption("device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"--device cuda: {no_cuda()}, so nothing could be shown. On a machine without one:"
            " make gpu DEVICE=cpu (or pytest tests/gpu --device cpu), which runs what a CPU can, small"
        )
    config.stash[ROWS], config.stash[RESULTS] = [], {}
    if _device_type(config) == "cuda":
        torch.set_num_threads(num_cores())  # a GPU does not wait for what it is compared with


def _device_type(config: pytest.Config) -> str | None:
    """cuda or cpu, None where nobody chose one and there is no GPU."""
    return config.getoption("device") or ("cuda" if torch.cuda.is_available() else None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this device cannot run, by name; without a GPU, and unasked, all that is here."""
    device, results = _device_type(config), config.stash[RESULTS]
    for item in (item for item in items if item.path.is_relative_to(HERE)):
        claim = " ".join((getattr(item, "function", item).__doc__ or "").split())
        why = _lack(item, device) if device else "no GPU"
        results[item.nodeid] = Result(item.nodeid.rpartition("/")[2], claim, NOT_RUN, why)
    left_out = [item for item in items if item.nodeid in results and results[item.nodeid].why]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


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
    """The table, and what was not run; both, and the other tests' results, as JSON."""
    write, rows, device = terminalreporter.write_line, config.stash[ROWS], _device_type(config)
    if device is None:
        write("tests/gpu: nothing is run, as there is no GPU; --device cpu runs on a CPU what can be, small")
        return
    if rows:
        terminalreporter.section(f"{_name(device)} against the CPU", sep="-")
        for line in lines(rows):
            write(line)
    if lacking := [result for result in config.stash[RESULTS].values() if result.why]:
        terminalreporter.section(f"not run on {device}: {len(lacking)}", sep="-")
        for result in lacking:
            write(f"{result.test}: {result.why}")
    if (file := config.getoption("gpu_table")) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(as_json(_results(terminalreporter, config), rows))


def _results(reporter: pytest.TerminalReporter, config: pytest.Config) -> list[Result]:
    """Of every test here; passed is only what ran to its end, with nothing that failed before or after it."""
    failed, passed = (
        {report.nodeid for kind in kinds for report in reporter.stats.get(kind, ())}
        for kinds in (("failed", "error"), ("passed",))
    )

    def of(node: str, result: Result) -> Result:
        if node in failed | passed:
            return replace(result, result=FAILED if node in failed else PASSED)
        return result if result.why else replace(result, why="not reached, or not asked for")

    return [of(node, result) for node, result in config.stash[RESULTS].items()]


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "this CPU"


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device that is compared with the CPU."""
    return torch.device("cuda", 0) if _device_type(pytestconfig) == "cuda" else torch.device("cpu")


@pytest.fixture
def compared(pytestconfig: pytest.Config) -> Compared:
    """``compared(what, precision, worst, tolerance)``: a row of the table; fails where worst is beyond, or no number.

    Without a tolerance the number is told, and claims nothing. `unit` is for differences: whole numbers are counts.
    """

    def compare(what: str, precision: str, worst: float, tolerance: float | None, unit: str = RELATIVE) -> None:
        row = Row.of(what, precision, worst, tolerance, unit)
        pytestconfig.stash[ROWS].append(row)
        assert math.isfinite(worst), f"{what}, {precision}: {worst} is no number"
        assert row.holds is not False, f"{what}, {precision}: {worst:.3g} is beyond the tolerance {tolerance:.3g}"

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
