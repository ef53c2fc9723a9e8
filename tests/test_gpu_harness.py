"""`make gpu` without a GPU: a failure in one line, and never tests that seem to have passed."""

import subprocess
from pathlib import Path

import pytest
from makers import ROOT
from makers.compilers import inductor_lacks
from makers.warm import run_warm


def harness(*words: str) -> "subprocess.CompletedProcess[str]":
    """`pytest tests/gpu …` where no GPU can be seen."""
    script = Path(pytest.__file__).with_name("__main__.py")
    command = [script, "-p", "no:cacheprovider", ROOT / "tests" / "gpu", *words]
    return run_warm(command, environments=[{"CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}])[0]


def test_a_gpu_that_is_not_there_fails_in_one_line() -> None:
    """Asked for CUDA where there is none, nothing runs, the exit code is an error's and the line says what to do."""
    done = harness("--device", "cuda")
    assert done.returncode not in (0, 5)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert line.startswith("ERROR: --device cuda: PyTorch sees no CUDA GPU here (")
    assert "make gpu DEVICE=cpu" in line


def test_what_a_cpu_cannot_run_is_named() -> None:
    """On a CPU every test that is left out is named with what it lacks, below their number."""
    _, _, below = harness("--device", "cpu", "--collect-only").stdout.partition("not run on cpu: ")
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


def test_nothing_is_collected_where_there_is_no_gpu() -> None:
    """Without --device a machine without a GPU collects nothing, says so, and the exit code is not that of success."""
    done = harness("--collect-only")
    assert done.returncode == 5
    assert "nothing was collected, as there is no GPU" in done.stdout
