"""What a student is trained to: the loss of each image, by what its model gives.

Most models give logits of the image. LV-ViT, in training, gives logits of each kept patch besides, and both heads have
to learn, as both speak in evaluation: where nobody has labelled the patches, each has its image's label (so do the
authors of LV-ViT). That also leaves no weight without a gradient, which ranks that train together could not bear.

Axes: B images, k patches kept.
"""

import torch.nn.functional as F
from torch import Tensor

from dlth.data.images.token_labels import token_targets
from dlth.data.loading.batch import Batch
from dlth.tickets.ranking.grid import Grid
from dlth.training.models.token_logits import TokenLogits
from dlth.training.settings.train_config import TrainConfig


def image_loss(output: Tensor | TokenLogits, targets: Tensor, patch_weight: float = 1.0) -> Tensor:
    """Loss float32 [B] of a student's output against soft labels of the images, [B, classes]; sums to 1 in each."""
    if isinstance(output, TokenLogits):
        return token_label_loss(output, targets, targets[:, None], patch_weight)
    return cross_entropy(output, targets)


def batch_loss(
    output: Tensor | TokenLogits, batch: Batch, targets: Tensor, patches: Tensor | None, grid: Grid, config: TrainConfig
) -> Tensor:
    """Loss float32 [B] of a student's output, logits of `patches` int64 [B, k] of `grid` (None: all): by the batch's
    token labels, moved, mixed and dropped as the patches are, and without any by `targets`, the images' own labels
    mixed.
    """
    if batch.token_labels is None or not isinstance(output, TokenLogits):
        return image_loss(output, targets, config.patch_weight)
    num_classes, smoothing = targets.shape[1], config.smoothing
    how = (patches, batch.mix, config.token_geometry, config.token_truth)
    own = token_targets(batch.token_labels, batch.labels, grid, num_classes, smoothing, *how)
    return token_label_loss(output, own.cls, own.patches, config.patch_weight)


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
