"""ResNet for CIFAR (He et al., 2016, arXiv 1512.03385, section 4.2): three stages for small images, 0.27 M weights.

The CNN of the lottery ticket papers. timm's ResNets are the ones for ImageNet, whose stem leaves 8 of 32 pixels a side;
their block of two convolutions is this one's too and is taken from there. What differs is the stem (one convolution of
3x3, nothing pooled), three stages of n blocks, and shortcuts without weights (the paper's option A).
`timm.create_model("resnet20")` works once dlth.training is imported (`training/timm_models.py`); ``depth=32`` and so on
make the paper's deeper ones.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional

from dlth.tickets.errors import InputError, shown


class PaddedShortcut(nn.Module):
    """Every second pixel of each row and column, and `added` channels of zeros: a shortcut that has no weights."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, height, width] to [B, C + added, height / 2, width / 2], rounded up."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))

    def extra_repr(self) -> str:
        """The channels added, where the model is printed."""
        return f"{self.added}"


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers: logits [B, classes] of images [B, C, height, width] of any size.

    Args:
        depth: layers with weights, 6n + 2: 20, 32, 44, 56, 110
        width: channels of the first stage; the second has twice, the third four times as many
        num_classes: 0 leaves the head out, and gives the pooled features
        drop_path_rate: stochastic depth rate of the last block
    Raises:
        InputError: a depth that is not 6n + 2
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
            raise InputError(f"a ResNet for CIFAR has 6n + 2 layers (8, 14, 20, 32, …): depth is {shown(depth)}")
        super().__init__()
        blocks = depth // 6
        rates = [drop_path_rate * place / (3 * blocks - 1) for place in range(3 * blocks)]
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, rates[:blocks])
        self.layer2 = _stage(width, 2 * width, rates[blocks : 2 * blocks])
        self.layer3 = _stage(2 * width, 4 * width, rates[2 * blocks :])
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, 4 * width, 4 * width
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes)
        self.feature_info = [
            {"num_chs": width << stage, "reduction": 1 << stage, "module": f"layer{stage + 1}"} for stage in range(3)
        ]
        for module in self.modules():  # He et al., 2015: variance 2 / inputs
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As timm's models have it."""
        weight, pool = self.conv1.weight, global_pool if global_pool is not None else self.global_pool.pool_type
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool, device=weight.device, dtype=weight.dtype
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Names of parameters by layer, for the layer decay of the learning rate."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, C, height, width] to [B, 4 * width, height / 4, width / 4], rounded up."""
        x = self.act1(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, classes] of features; their mean [B, 4 * width] if `pre_logits`."""
        x = self.global_pool(x)
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """As the class has it."""
        return self.forward_head(self.forward_features(x))


def _stage(inputs: int, outputs: int, rates: Sequence[float]) -> nn.Sequential:
    """A block for each of `rates`, its drop path; the first halves the sides where it has more channels to give."""
    paths = [DropPath(rate) if rate else None for rate in rates]
    wider: dict[str, Any] = {"stride": 2, "downsample": PaddedShortcut(outputs - inputs)} if outputs > inputs else {}
    first = BasicBlock(inputs, outputs, drop_path=paths[0], **wider)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, drop_path=path) for path in paths[1:]))


default_cfgs = generate_default_cfgs(
    {
        "resnet20": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)
"""What timm knows of the model: CIFAR-10's images, their channels' means and deviations. There are no weights of it."""


@register_model
def resnet20(pretrained: bool = False, **options: Any) -> CifarResNet:
    """ResNet-20 for CIFAR: 3 blocks a stage, 16 to 64 channels, 269,722 parameters."""
    stages = {"out_indices": (0, 1, 2)}
    model: CifarResNet = build_model_with_cfg(CifarResNet, "resnet20", pretrained, feature_cfg=stages, **options)
    return model
