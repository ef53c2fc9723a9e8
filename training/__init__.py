"""dlth.training: models with tickets, the selector, recipes, the loop, evaluation and checkpoints.

Names are loaded on first use: the configuration alone should not cost the seconds that torch and timm take. For the
same reason `timm.create_model` learns of dlth's models when timm itself is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dlth.training.timm_models import register_with_timm

if TYPE_CHECKING:
    from dlth.training.models.lvvit import LVViT
    from dlth.training.models.students import make_student
    from dlth.training.models.ticket_vit import TicketViT
    from dlth.training.selectors.evit import Selector
    from dlth.training.selectors.patch_ranker import Selection
    from dlth.training.selectors.trainable import EViT

_EXPORTS = {
    "EViT": "selectors.trainable",
    "LVViT": "models.lvvit",
    "Selection": "selectors.patch_ranker",
    "Selector": "selectors.evit",
    "TicketViT": "models.ticket_vit",
    "make_student": "models.students",
}
"""Exported name -> module of this package."""

__all__ = ["EViT", "LVViT", "Selection", "Selector", "TicketViT", "make_student"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


register_with_timm()
