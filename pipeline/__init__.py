"""The two stages, the demo, reports and the command line: thin, and on top of everything.

Names are loaded on first use, as in `dlth.training`: a command should not wait for what it does not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlth.pipeline.judging.arm_comparison import Comparison, compare_arms
    from dlth.pipeline.judging.verdicts import ClauseVerdict, judge
    from dlth.pipeline.selection.config import SelectConfig
    from dlth.pipeline.selection.stage import plan, select

_EXPORTS = {
    "ClauseVerdict": "judging.verdicts",
    "Comparison": "judging.arm_comparison",
    "SelectConfig": "selection.config",
    "compare_arms": "judging.arm_comparison",
    "judge": "judging.verdicts",
    "plan": "selection.stage",
    "select": "selection.stage",
}
"""Exported name -> module of this package."""

__all__ = ["ClauseVerdict", "Comparison", "SelectConfig", "compare_arms", "judge", "plan", "select"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
