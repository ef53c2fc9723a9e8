"""What a step works out of a batch, beside the model: nothing of it comes from the host."""

import numpy as np
import pytest
import torch
from makers.host import OnTheHost

from dlth.data.images.mixing import BatchMix, MixPlan, mix_images, mix_targets, token_sources
from dlth.data.images.token_labels import TokenLabels, token_targets
from dlth.data.images.visibility import demote, hidden_share
from dlth.tickets.ranking.grid import Grid
from dlth.training.models.pixels import Pixels

GRID, META = Grid(4, 4), torch.device("meta")
MIX = BatchMix((MixPlan("cutmix", 0.75, (0.25, 0.0, 0.625, 0.75)), MixPlan("mixup", 0.3), MixPlan()), (2, 4, 2))


@pytest.mark.parametrize("geometry", ["right", "authors"])
def test_nothing_of_a_batchs_plans_is_made_on_the_host(geometry: str) -> None:
    """Pixels, mixing, MixToken, demotion and token labels, in either geometry, use tensors of the device alone."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 5, (8, 2, 3, 3)).astype(np.uint16), rng.normal(size=(8, 2, 3, 3)).astype(np.float16)
    on_host = TokenLabels.of(*cells, np.tile(np.eye(2, 3), (8, 1, 1)), GRID)
    labels = TokenLabels(*(part.to(META) for part in on_host[:3]), on_host.points)
    pixels = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=META)
    patches = torch.zeros(8, 6, dtype=torch.int64, device=META)
    classes, hidden = patches[:, 0], torch.zeros(8, 16, device=META)
    pixels(images)  # means and deviations are sent once, before the first step
    with OnTheHost() as host:
        mix_images(pixels(images), MIX)
        mix_targets(classes, 5, 0.1, MIX)
        token_sources(MIX, GRID, META)
        hidden_share(demote(patches.expand(8, 6).repeat(1, 3)[:, :16], hidden).float(), patches)
        made = token_targets(labels, classes, GRID, 5, 0.1, patches, MIX, geometry, "stated")  # type: ignore[arg-type]
    assert host.seen == []
    assert made.patches.device == META
    assert made.patches.shape == (8, 6, 5)
