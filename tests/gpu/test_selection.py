"""Rankings of the device against float32 on the CPU, by precision; stage 1's own path is IEEE whatever was switched on.

Scores are compared with those of a float64 model: the norm of the difference as a share of theirs, of the worst image.
Two rankings of equal scores may differ in patches whose scores are nearly equal at a cut, and in nothing else: so the
tolerance is a share of the patches kept, over all images. Weights are random; a trained model's scores lie further
apart, so its tickets agree better.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from makers.device_report import Compared
from makers.pictures import make_picture
from makers.precisions import BFLOAT16, FLOAT16, FLOAT32, PRECISIONS, TF32
from makers.scales import SELECTORS, Scale
from makers.tickets import not_in_common
from safetensors.torch import save_file
from torch import Tensor

from dlth.training.device.numerics import numerics
from dlth.training.device.precision import Precision
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.selectors.batch_ranker import BatchRanker
from dlth.training.selectors.evit import Selector
from dlth.training.selectors.rankers import RANKERS, RankerSpec

IN_SCORES = {FLOAT32: 1e-5, TF32: 3e-3, BFLOAT16: 3e-2, FLOAT16: 3e-3}
IN_PATCHES = {FLOAT32: 2e-3, TF32: 1e-2, BFLOAT16: 5e-2, FLOAT16: 1e-2}
"""Some ten times (scores) and four times (patches) what the CPU differs by on DeiT-S; TF32's are six and four times
what factors differ by whose last 13 bits are cut off, as a GPU may do.
"""

CPU = torch.device("cpu")


class Reference(NamedTuple):
    """What float64, and float32 on the CPU, say of some images: scores and rankings, [B, P], and gaps, [B]."""

    images: Tensor
    scores: Tensor
    patches: Tensor
    gap: Tensor


@cache
def reference(scale: Scale) -> Reference:
    """Made once for all precisions."""
    side = scale.img_size
    pictures = [torch.from_numpy(make_picture(number, side, side)) for number in range(scale.batch)]
    images, vit = torch.stack(pictures).permute(0, 3, 1, 2).contiguous(), scale.vit()
    exact = Selector(deepcopy(vit).double(), keep="0.7")
    scores = exact.scores(pixels(vit, images).double())
    return Reference(images, scores, *Selector(vit, keep="0.7").select(pixels(vit, images)))


def pixels(vit: torch.nn.Module, images: Tensor) -> Tensor:
    """Images as the model's own frame wants them."""
    frame = Frame.of(vit)
    return Pixels(frame.mean, frame.std)(images)


@pytest.fixture
def scale(device: torch.device) -> Scale:
    """The selector's size on this device."""
    return SELECTORS[device.type]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_and_tickets(scale: Scale, device: torch.device, compared: Compared, precision: str) -> None:
    """Scores are those of float64 within the precision's rounding, and tickets keep nearly the patches of float32."""
    expected = reference(scale)
    selector = Selector(scale.vit().to(device), keep="0.7")
    dtype = precision if precision in (BFLOAT16, FLOAT16) else ""
    with numerics(tf32=precision == TF32), Precision.of(bool(dtype), dtype, device)():
        images = pixels(selector.vit, expected.images.to(device))
        scores, ranked = selector.scores(images).cpu().double(), selector.select(images)
    error = (scores - expected.scores).norm(dim=1) / expected.scores.norm(dim=1)
    compared("select: scores", precision, float(error.max()), IN_SCORES[precision])
    lost = not_in_common(ranked.patches.cpu().numpy(), expected.patches.numpy(), selector.budget.k)
    compared("select: patches of tickets not in common", precision, float(lost.mean()), IN_PATCHES[precision])
    compared("select: tickets of another set", precision, float((lost > 0).mean()), None)
    compared("select: ties at the cut", precision, float((ranked.gap.cpu() == 0).double().mean()), None)


@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker(device: torch.device, compared: Compared, tmp_path: Path, name: str) -> None:
    """Each ranker keeps on the device, in float32, the patches that it keeps on the CPU: no scores on both sides of a
    cut lie closer than 1e-4 of the mean, and none is rounded by 4e-6.
    """
    small, pool = SELECTORS["cpu"], {"global_pool": "map" if name == "pool-attention" else "token"}
    save_file(small.vit(**pool).state_dict(), tmp_path / "w.safetensors")
    weights, options = WeightsFile.find(str(tmp_path / "w.safetensors")), {"img_size": small.img_size}
    spec = RankerSpec(small.model, options | small.kwargs | pool, weights, {}, None, False, {"keep": "0.5"}, "")
    images = reference(small).images
    with numerics():
        (patches, _), (expected, _) = (BatchRanker(RANKERS[name](spec, there))(images) for there in (device, CPU))
    lost = not_in_common(patches, expected, expected.shape[1] // 2)
    compared(f"select, {name}: patches not in common", FLOAT32, float(lost.mean()), 0)
