"""The two stages, the demo, reports and the command line: thin, and on top of everything.

Names are loaded on first use, as in `dlth.training`: a command should not wait for what it does not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlth.pipeline.judging.arm_comparison import Comparison, compare_arms
    from dlth.pipeline.selection.config import SelectConfig
    from dlth.pipeline.selection.stage import plan, select

_EXPORTS = {
    "Comparison": "judging.arm_comparison",
    "SelectConfig": "selection.config",
    "compare_arms": "judging.arm_comparison",
    "plan": "selection.stage",
    "select": "selection.stage",
}
"""Exported name -> module of this package."""

__all__ = ["Comparison", "SelectConfig", "compare_arms", "plan", "select"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
