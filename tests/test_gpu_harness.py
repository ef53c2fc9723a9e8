"""`make gpu` without a GPU: a failure in one line, and never tests that seem to have passed; what is told of each."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from makers import ROOT
from makers.compilers import inductor_lacks
from makers.device_trace import Span, Trace
from makers.warm import run_warm

GPU = ROOT / "tests" / "gpu"
MIXED = '''
import pytest

def test_holds(compared):
    """A difference
    holds."""
    compared("small", "bfloat16", 0.25, 0.5)
    compared("many", "", 3, None)

def test_does_not_hold(compared):
    """Another does not."""
    compared("large", "float32", 0.75, 0.5, unit="absolute")

def test_measures_nothing():
    """It asserts."""

def test_is_wrong():
    """It asserts in vain."""
    raise AssertionError

@pytest.mark.gpu
def test_is_left_out():
    """It needs a GPU."""

def test_is_not_asked_for():
    """Nobody wants it."""
'''


def harness(*words: object) -> "subprocess.CompletedProcess[str]":
    """`pytest …`, of tests/gpu or the like, where no GPU can be seen."""
    script = Path(pytest.__file__).with_name("__main__.py")
    command = [script, "-p", "no:cacheprovider", *words]
    return run_warm(command, environments=[{"CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}])[0]


def test_a_gpu_that_is_not_there_fails_in_one_line() -> None:
    """Asked for CUDA where there is none, nothing runs, the exit code is an error's and the line says what to do."""
    done = harness(GPU, "--device", "cuda")
    assert done.returncode not in (0, 5)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert line.startswith("ERROR: --device cuda: PyTorch sees no CUDA GPU here (")
    assert "make gpu DEVICE=cpu" in line


def test_what_a_cpu_cannot_run_is_named() -> None:
    """On a CPU every test that is left out is named with what it lacks, below their number."""
    _, _, below = harness(GPU, "--device", "cpu", "--collect-only").stdout.partition("not run on cpu: ")
    number, *lines = below.splitlines()
    named = [line for line in lines if line.startswith("test_") and ": needs " in line]
    assert len(named) == int(number.split()[0])
    assert "test_memory.py::test_a_ticket_spares_memory: needs a GPU" in named
    assert "test_resume.py::test_two_ranks: needs 2 GPUs, found 0" in named


@pytest.mark.parametrize(("device", "variable"), [("cuda", "CC"), ("cpu", "CXX")])
def test_inductor_asks_for_a_compiler_and_for_this_pythons_headers(
    device: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that preprocesses Python.h is all that inductor needs; whichever of the two is missing is named."""
    for compiler, lack in (("true", ""), ("false", "Python.h, which false "), ("no-such-program", "a C")):
        monkeypatch.setenv(variable, compiler)
        found = inductor_lacks(device)
        assert found.startswith(lack)
        assert bool(found) == bool(lack)


def test_a_profiler_that_hides_waits_is_named() -> None:
    """A trace without the call in which a step waits says so, before anybody takes the step for wrong."""
    launch, wait = (Span(name, 0.0, 1.0, None) for name in ("cudaLaunchKernel", "cudaEventSynchronize"))
    assert "CUPTI" in Trace({}).lack()
    assert "leaves out cudaEventSynchronize" in Trace({"cuda_runtime": [launch]}).lack()
    assert Trace({"cuda_runtime": [launch, wait]}).lack() == ""


@pytest.mark.parametrize("named", ["", "test_golden.py"])
def test_nothing_is_run_where_there_is_no_gpu(named: str) -> None:
    """Without --device a machine without a GPU runs nothing, also of what is named, says so, and the exit code is not
    that of success.
    """
    done = harness(GPU / named)
    assert done.returncode == 5
    assert "passed" not in done.stdout
    assert "nothing is run, as there is no GPU" in done.stdout


def test_every_test_is_told_of(tmp_path: Path) -> None:
    """The JSON has how each test ended, also of those that measure nothing or were not run, and of each difference its
    unit and whether it holds; in the table the one that does not is marked.
    """
    folder, table = tmp_path / "gpu", tmp_path / "gpu.json"
    folder.mkdir()
    shutil.copy(GPU / "conftest.py", folder)
    (folder / "test_mixed.py").write_text(MIXED)
    where = ("-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, folder)
    done = harness(*where, "--device", "cpu", "--gpu-table", table, "-k", "not asked_for")
    assert done.returncode == 1
    (marked,) = [line for line in done.stdout.splitlines() if line.endswith("DOES NOT HOLD")]
    assert marked.startswith("large  float32")
    told = json.loads(table.read_text())
    assert told["tests"][0]["claim"] == "A difference holds."
    assert {each["test"].partition("::test_")[2]: (each["result"], each["why"]) for each in told["tests"]} == {
        "holds": ("passed", ""),
        "does_not_hold": ("failed", ""),
        "measures_nothing": ("passed", ""),
        "is_wrong": ("failed", ""),
        "is_left_out": ("not run", "needs a GPU"),
        "is_not_asked_for": ("not run", "not reached, or not asked for"),
    }
    assert [(row["what"], row["unit"], row["holds"]) for row in told["rows"]] == [
        ("small", "relative", True),
        ("many", "count", None),
        ("large", "absolute", False),
    ]
