"""What a student is trained to: the loss of each image, by what its model gives.

Most models give logits of the image. LV-ViT, in training, gives logits of each kept patch besides, and both heads have
to learn, as both speak in evaluation: where nobody has labelled the patches, each has its image's label (so do the
authors of LV-ViT). That also leaves no weight without a gradient, which ranks that train together could not bear.

Axes: B images, k patches kept.
"""

import torch.nn.functional as F
from torch import Tensor

from dlth.training.models.token_logits import TokenLogits


def image_loss(output: Tensor | TokenLogits, targets: Tensor, patch_weight: float = 1.0) -> Tensor:
    """Loss float32 [B] of a student's output against soft labels of the images, [B, classes]; sums to 1 in each."""
    if isinstance(output, TokenLogits):
        return token_label_loss(output, targets, targets[:, None], patch_weight)
    return cross_entropy(output, targets)


def token_label_loss(
    output: TokenLogits, targets: Tensor, patch_targets: Tensor, patch_weight: float = 1.0, cls_weight: float = 1.0
) -> Tensor:
    """Loss float32 [B] with token labels (Jiang et al., 2021, arXiv 2104.10858, equation 3), dropped as the tokens are.

    It is `cls_weight` times the class token's cross entropy and `patch_weight` times the mean of the kept patches'.

    Args:
        output: of B images on k patches
        targets: soft labels of the class tokens, [B, classes]
        patch_targets: soft labels of the patches in the order of the output's, [B, k, classes], or [B, 1, classes] for
            one label of them all
    """
    of_patches = cross_entropy(output.patches, patch_targets).mean(dim=1)
    return cls_weight * cross_entropy(output.cls, targets) + patch_weight * of_patches


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy float32 [...] of logits [..., classes] with soft labels of that shape, in float32."""
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
