"""Which weights of a model may be pruned: those of its linear layers and convolutions, but for the ends of the network.

The head belongs to the labels, and the patch embedding is a small part of a transformer through which everything goes:
both stay whole, as do norms, biases, position embeddings, class tokens and bias tables, which are no layer's `weight`.
Decided by what a module is and by what timm says of the model's classifier, never by a list of names; whoever wants
more left whole names it by pattern.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from dlth.tickets.errors import InputError, shown

_PRUNED = (nn.Linear, nn.Conv2d)
_EMBEDDING = "patch_embed"
"""timm's name of what makes tokens of an image."""


def prunable_shapes(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each weight that may be pruned, in the order of the state dict.

    Args:
        model: it may be on the meta device
        exclude: patterns (as a shell's: * ? [abc]) of whole names of parameters that are left whole besides
    Raises:
        InputError: a pattern that names no parameter of the model, or nothing is left to prune
    """
    parameters, whole = dict(model.named_parameters()), set(_left_whole(model))
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            some = ", ".join(shown(name, 80) for name in list(parameters)[:4])
            raise InputError(
                f"--exclude {shown(pattern)} matches no parameter of this {type(model).__name__}, which are called"
                f" {some} and so on: patterns are of whole names, such as '*.attn.*'"
            )
    layers = {f"{path}.weight": module for path, module in model.named_modules() if isinstance(module, _PRUNED)}
    found = {
        name: tuple(weight.shape)
        for name, weight in parameters.items()
        if name in layers and layers[name] not in whole and not any(fnmatchcase(name, each) for each in exclude)
    }
    if not found:
        but = f" but what --exclude {shown(', '.join(exclude))} leaves whole" if exclude else ""
        raise InputError(
            f"this {type(model).__name__} has nothing to prune{but}: linear layers and convolutions are pruned, besides"
            " the head and the patch embedding"
        )
    return found


def _left_whole(model: nn.Module) -> Iterator[nn.Module]:
    """Modules within the classifier, as timm names it and gives it, and within the patch embedding."""
    said = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = {said} if isinstance(said, str) else set(said)
    get_classifier = getattr(model, "get_classifier", None)  # timm's models have it
    given = get_classifier() if callable(get_classifier) else ()
    heads = given if isinstance(given, tuple | list) else (given,)
    for path, module in model.named_modules():
        if path in names or any(module is head for head in heads) or path.rpartition(".")[2] == _EMBEDDING:
            yield from module.modules()
