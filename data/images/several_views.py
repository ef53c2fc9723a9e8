"""The views over which stage 1 averages an image's ranking: the ticket file's own, its mirror, and seeded crops.

Crops are those of training, cut from the decoded image: out of the small view, a crop of a tenth of the area would be
blown up from a third of its rows and columns, and nothing that training ever shows. What is drawn is a function of
(seed, key, number), so that runs that were stopped, shared or resumed draw alike.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from dlth.data.images.augment import Augmentation, augment
from dlth.data.images.views import render
from dlth.tickets.format.header import ViewSpec
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.view import Matrix, View


@dataclass(frozen=True)
class SeveralViews:
    """Views of each image: `own`, on `grid`, its mirror, and so many `crops`, half of them mirrored.

    `scale`: least and most area of a crop, as a share of the image. Raises InputError for a share that makes no sense,
    and an interpolation by which crops are not resized.
    """

    own: ViewSpec
    grid: Grid
    crops: int
    scale: tuple[float, float]
    seed: int
    _augmentation: Augmentation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size, interpolation = (self.own.height, self.own.width), self.own.interpolation
        object.__setattr__(
            self, "_augmentation", Augmentation(size=size, scale=self.scale, interpolation=interpolation)
        )

    def __len__(self) -> int:
        return 2 + self.crops

    def of(self, image: torch.Tensor, key: str) -> tuple[torch.Tensor, Matrix]:
        """The views of `image` uint8 [3, height, width], the file's own first: pixels uint8 [views, 3, own.height,
        own.width], and their maps to the image, float64 [views, 2, 3], as `View` has them.
        """
        height, width = image.shape[-2:]
        pixels, view = render(image, self.own), self.own.view_of(height, width, self.grid)
        crops = [
            augment(image, self._augmentation, self.grid, "averaged views", self.seed, key, number)
            for number in range(self.crops)
        ]
        shown = torch.stack([pixels, pixels.flip(-1), *(crop.image for crop in crops)])
        return shown, View.stack([view, view.mirrored(), *(crop.view for crop in crops)]).matrix

    @property
    def text(self) -> str:
        """What they are, for a person."""
        low, high = self.scale
        crops = f"{self.crops} crops of {low:g} to {high:g} of its area (seed {self.seed})"
        return f"the view, its mirror{f', {crops}' if self.crops else ''}: {len(self)} views"

    def facts(self) -> dict[str, Any]:
        """What a ticket file's header says of them."""
        return {"crops": self.crops, "scale": list(self.scale), "mirrored": self._augmentation.hflip, "seed": self.seed}
