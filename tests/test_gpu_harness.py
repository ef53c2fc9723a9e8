"""`make gpu` without a GPU: a failure in one line, and never tests that seem to have passed."""

import os
import subprocess
import sys

from makers import ROOT


def harness(*words: str) -> "subprocess.CompletedProcess[str]":
    """`pytest tests/gpu …` where no GPU can be seen."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu", *words]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_gpu_that_is_not_there_fails_in_one_line() -> None:
    """Asked for CUDA where there is none, nothing runs, the exit code is an error's and the line says what to do."""
    done = harness("--device", "cuda")
    assert done.returncode not in (0, 5)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert line.startswith("ERROR: --device cuda: PyTorch sees no CUDA GPU here")
    assert "make gpu DEVICE=cpu" in line
