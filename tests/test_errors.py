"""The table of errors is the source's: every class has its row, every row its class, codes are unique."""

import importlib
import pkgutil
import re

from makers import ROOT

from dlth.tickets.errors import DlthError

ROW = re.compile(r"^\| `(E_\w+)` \| `(\w+)`(?: \(`(\w+)`\))? \| (.+) \| (.+) \|$", re.M)


def family(base: type[DlthError] = DlthError) -> set[type[DlthError]]:
    return {base}.union(*(family(child) for child in base.__subclasses__()))


def test_the_table_of_errors_is_complete() -> None:
    """Code, class and builtin of each row agree with the source, both ways."""
    for folder in ("tickets", "data", "training", "pipeline"):
        for module in pkgutil.walk_packages([str(ROOT / folder)], f"dlth.{folder}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
    classes = [kind for kind in family() if kind.__module__.startswith("dlth.")]
    builtins = [[base.__name__ for base in kind.__bases__ if not issubclass(base, DlthError)] for kind in classes]
    source = {(kind.code, kind.__name__, "".join(names).removesuffix("Exception"))
              for kind, names in zip(classes, builtins, strict=True)}  # fmt: skip
    rows = {(code, name, base) for code, name, base, _, _ in ROW.findall((ROOT / "docs/errors.md").read_text())}
    assert rows == source
    codes = [code for code, _, _ in rows]
    assert len(codes) == len(set(codes))
