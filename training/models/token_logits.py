"""What a model that is trained with token labels gives in training mode: logits of the image, and of each patch.

A file of its own, light to import: the model that gives them is registered while timm is being imported.
"""

from typing import NamedTuple

from torch import Tensor


class TokenLogits(NamedTuple):
    """Of B images on k patches: `cls` [B, classes], and `patches` [B, k, classes] in the order of the patches."""

    cls: Tensor
    patches: Tensor
