"""What a result says of its device."""

import torch

from dlth.training.device.facts import device_name, device_versions, driver_of, forget_peak, peak_memory

CPU = torch.device("cpu")
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder@U16-I2-N08)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256  Thu Apr 25 15:06:31 UTC 2024\n"


def test_the_driver_is_found_in_what_linux_says_of_it() -> None:
    """Open kernel modules and closed ones, versions of two numbers and of three; none is told where none is."""
    assert [driver_of(text) for text in (OPEN, CLOSED, "")] == ["550.54.15", "470.256", ""]


def test_a_cpu_has_no_versions_beside_pytorchs() -> None:
    """Its results say what they always said: threads, and the memory of the process."""
    assert device_versions(CPU) == {}
    assert device_name(CPU) == f"CPU, {torch.get_num_threads()} threads"
    forget_peak(CPU)
    assert peak_memory(CPU) > 10 << 20
