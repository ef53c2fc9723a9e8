"""What a result says of the device that computed it: its name, what drives it, and the most memory that it held."""

import re
import resource
import sys
from pathlib import Path

import torch

DRIVER = Path("/proc/driver/nvidia/version")
"""Where Linux says NVIDIA's driver, which PyTorch does not know."""


def device_name(device: torch.device) -> str:
    """The device as a person knows it, e.g. the GPU's model name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def device_versions(device: torch.device) -> dict[str, str]:
    """What decides a GPU's kernels: its compute capability, CUDA, cuDNN, and the driver where it can be told; nothing
    of a CPU, which PyTorch's own version says.
    """
    if device.type != "cuda":
        return {}
    major, minor = torch.cuda.get_device_capability(device)
    found = {"capability": f"{major}.{minor}", "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    found["driver"] = driver_of(DRIVER.read_text()) if DRIVER.is_file() else None
    return {name: str(value) for name, value in found.items() if value}


def driver_of(text: str) -> str:
    """The driver's version in what Linux says of it, e.g. 550.54.15; empty if it says none."""
    found = re.search(r"\b[0-9]{3,}\.[0-9]+(\.[0-9]+)?\b", text)
    return found[0] if found else ""


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now on, on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes held: allocated on the GPU since `forget_peak`, or resident in this process on a CPU so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
