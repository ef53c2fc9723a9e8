"""dlth.training: models with tickets, the selector, recipes, the loop, evaluation and checkpoints.

Names are loaded on first use: the configuration alone should not cost the seconds that torch and timm take.
"""

from importlib import import_module

_EXPORTS = {
    "Selection": "selector",
    "Selector": "selector",
    "TicketViT": "ticket_vit",
}
"""Exported name -> module of this package."""

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
