"""What was measured on: names and versions, so that a table can be held against another."""

import datetime
import importlib.metadata
import platform

import timm
import torch

from dlth.data.cores import num_cores
from dlth.training.device.facts import device_name, device_versions


def facts(device: torch.device) -> dict[str, str]:
    """By name, in words; "unknown" where the machine does not say."""
    found = {"device": device_name(device)}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        found["memory"] = f"{memory / 2**30:.0f} GiB"
        versions = device_versions(device)
        found |= {name: versions.get(name.lower(), "unknown") for name in ("driver", "CUDA", "cuDNN")}
    found |= {"cores": str(num_cores()), "torch": torch.__version__, "triton": _version("triton")}
    found |= {"timm": timm.__version__, "Python": platform.python_version()}
    return found | {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
