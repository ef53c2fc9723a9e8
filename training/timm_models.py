"""timm knows dlth's models as soon as both packages are imported, in whichever order.

A model is registered where its module is imported, and importing LV-ViT's takes timm and torch along: seconds that a
command's help should not cost. So where timm is not there yet, an import hook waits for it and is gone afterwards.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

MODULES = ("dlth.training.models.lvvit", "dlth.training.models.resnet20")
"""Each registers models with timm when it is imported."""


def register_with_timm() -> None:
    """Register the models now if timm is imported, else as soon as it is."""
    if "timm" in sys.modules:
        _import_all()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _import_all() -> None:
    for name in MODULES:
        import_module(name)


class _AfterTimm(MetaPathFinder):
    """Finds timm as the others do, and has it register the models once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _import_all()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
