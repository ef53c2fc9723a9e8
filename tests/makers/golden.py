"""Values that the paper's released code computed, in float32 on a CPU: `tests/training/golden`."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dlth.training import Selector
from dlth.training.models.registry import build
from makers import TESTS

FOLDER = TESTS / "training" / "golden"
FILES, TRAINED = sorted(FOLDER.glob("evit_p*.safetensors")), sorted(FOLDER.glob("evit_train_*.safetensors"))


class Golden(NamedTuple):
    """One case: a model, its images, and every number and fact that was written down of it."""

    vit: nn.Module
    images: Tensor
    tensors: dict[str, Tensor]
    facts: dict[str, str]

    @classmethod
    def read(cls, path: Path, device: torch.device | str = "cpu") -> "Golden":
        """A file's, on the device."""
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 (no mapping)
        sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
        vit = build("deit_tiny", **{name: int(facts[name]) for name in sizes}).to(device)
        vit.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        mean, std = (torch.tensor([float(x) for x in facts[name].split(",")]).view(3, 1, 1) for name in ("mean", "std"))
        images = (tensors["images"].float().cpu() / 255 - mean) / std
        return cls(vit, images.to(device), tensors, facts)

    @property
    def selector(self) -> Selector:
        """The selector that the authors' numbers are of."""
        blocks = tuple(int(block) for block in self.facts["drop_loc"].split(","))
        return Selector(self.vit, self.facts["stage_keep"], blocks, fuse_tokens=self.facts["fuse_token"] == "True")
