"""What a device would wait for, seen without one: tensors of the meta device give no numbers and raise where one is
asked for, and what is copied to them from the CPU is noted here.
"""

from contextlib import ExitStack
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIED = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor}
"""What makes a tensor of numbers of Python's, which a GPU waits for; on meta no copy is seen of it."""


class OnTheHost:
    """Notes in `seen`, while its block runs, every operation that reads or makes a tensor of the CPU."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._modes = ExitStack()

    def __enter__(self) -> Self:
        self._modes.enter_context(_Operations(self.seen))
        self._modes.enter_context(_Functions(self.seen))
        return self

    def __exit__(self, *error: Any) -> None:
        self._modes.close()


class _Operations(TorchDispatchMode):
    """Those with a tensor of the CPU among what they take and give."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self._seen.append(str(func))
        return result


class _Functions(TorchFunctionMode):
    """Those that take numbers of Python's, places in a list among them."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = args[1] if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) else ()
        listed = any(isinstance(place, list) for place in (places if isinstance(places, tuple) else (places,)))
        if func in COPIED or listed:
            self._seen.append(func.__name__)
        return func(*args, **(kwargs or {}))
