"""Masks by magnitude: worked out by hand, by their properties, and against torch's own."""

from fractions import Fraction
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.masks import TenWeights, bits, ten_weights
from torch.nn.utils import prune

from dlth.tickets.errors import InputError
from dlth.training.pruning import magnitude
from dlth.training.pruning.magnitude import ALL, pruned, remaining_counts
from dlth.training.pruning.recipe import MaskRecipe, Masks

SIZES = {"first.weight": 4, "second.weight": 6}
WEIGHTS = ten_weights(0.5, -0.1, 0.9, 0.3, -0.2, 0.8, 0.05, -0.7, 0.6, 0.4)

BY_HAND = {
    "a fifth of all": (MaskRecipe(1, "0.2"), "1011 110111"),
    "half of all": (MaskRecipe(1, "0.5"), "1010 010110"),
    "two rounds at once": (MaskRecipe(2, "0.2", rounds=2), "1010 010111"),  # 10, 8, then round(1.6) = 2 less: 6
    "half of each layer": (MaskRecipe(1, "0.5", scope="layer"), "1010 010110"),
    "a fifth of each layer": (MaskRecipe(1, "0.2", scope="layer"), "1011 110111"),  # round(0.8), round(1.2): one each
    "half to even: 2.5 are 2": (MaskRecipe(1, "0.25"), "1011 110111"),
    "half to even: 1.5 are 2": (MaskRecipe(1, "0.15"), "1011 110111"),
    "half to even: 3.5 are 4": (MaskRecipe(1, "0.35"), "1010 010111"),
    "level 0": (MaskRecipe(0, "0.2"), "1111 111111"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_ten_weights_by_hand(case: str) -> None:
    """The smallest absolute values fall, as many as the exact fraction rounds to, half to even."""
    recipe, expected = BY_HAND[case]
    assert bits(pruned(WEIGHTS, None, recipe)) == expected


def test_ties_fall_by_their_place() -> None:
    """Of equal values those of the earlier parameter fall, in it the lower index; -0 is 0, and 1e-45 is more than 0."""
    equal = ten_weights(*[0.5] * 10)
    assert bits(pruned(equal, None, MaskRecipe(1, "0.3"))) == "0001 111111"
    assert bits(pruned(equal, None, MaskRecipe(1, "0.5", scope="layer"))) == "0011 000111"
    mixed = ten_weights(1, 0.0, -0.5, 1e-45, 0.5, -0.0, 2, -1e-45, 3, -0.5)
    assert bits(pruned(mixed, None, MaskRecipe(1, "0.1"))) == "1011 111111"
    assert bits(pruned(mixed, None, MaskRecipe(1, "0.3"))) == "1010 101111"
    assert bits(pruned(mixed, None, MaskRecipe(1, "0.6"))) == "1000 001011"


def test_a_round_counts_what_remains() -> None:
    """Level 2 masks a share of what level 1 left, never a masked weight anew, whatever value that has."""
    first = pruned(WEIGHTS, None, MaskRecipe(1, "0.5"))
    trained = ten_weights(0.1, 0, 0.9, 0, 0, 0.8, 0, 0.7, 0.6, 0)
    assert bits(first) == "1010 010110"
    second = pruned(trained, first, MaskRecipe(2, "0.5"))
    assert bits(second) == "0010 010100"  # round(2.5) = 2 of five
    assert bits(first) == "1010 010110"  # what it began with is left alone
    assert bits(pruned(ten_weights(*[9] * 10), first, MaskRecipe(2, "0.2"))) == "0010 010110"


LAYERS = st.lists(st.integers(1, 40), min_size=1, max_size=5)
RATES = st.sampled_from(("0.05", "0.1", "0.2", "0.25", "0.3", "0.5"))
SCOPES = st.sampled_from(("global", "layer"))


def random_weights(sizes: list[int], seed: int, values: int) -> dict[str, torch.Tensor]:
    """Layers of whole numbers, few of them so that there are ties."""
    random = torch.Generator().manual_seed(seed)
    return {
        f"{at}": torch.randint(-values, values + 1, (size,), generator=random).float() for at, size in enumerate(sizes)
    }


@settings(max_examples=60, deadline=None)
@given(LAYERS, RATES, SCOPES, st.integers(1, 5), st.integers(0, 9), st.sampled_from((2, 50)))
def test_counts_are_exact_and_masks_nested(
    sizes: list[int], rate: str, scope: str, levels: int, seed: int, values: int
) -> None:
    """After each level exactly the foretold number remains, of what remained before, and nothing smaller was kept."""
    before: Masks | None = None
    for level in range(1, levels + 1):
        recipe = MaskRecipe(level, rate, scope=scope)  # type: ignore[arg-type]
        weights = random_weights(sizes, seed + level, values)
        try:
            masks = pruned(weights, before, recipe)
        except InputError:
            return  # a global scope may empty a small layer: another test's
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        told = remaining_counts({name: len(weight) for name, weight in weights.items()}, recipe)
        assert told == (kept if scope == "layer" else {ALL: sum(kept.values())})
        groups = [[name] for name in masks] if scope == "layer" else [list(masks)]
        for names in groups:
            was = torch.cat([before[name] if before else torch.ones_like(masks[name]) for name in names])
            now, size = torch.cat([masks[name] for name in names]), torch.cat([weights[name].abs() for name in names])
            assert not (now & ~was).any()
            fallen = was & ~now
            assert not fallen.any() or not now.any() or size[fallen].max() <= size[now].min()
        before = masks


@given(LAYERS, RATES, SCOPES, st.integers(1, 40))
def test_one_shot_leaves_as_many_as_its_rounds_one_by_one(sizes: list[int], rate: str, scope: str, level: int) -> None:
    """Counts follow the exact fraction, round by round, for levels taken at once and one at a time alike."""
    named, share = {str(at): size for at, size in enumerate(sizes)}, Fraction(rate)
    told = remaining_counts(named, MaskRecipe(level, rate, rounds=level, scope=scope))  # type: ignore[arg-type]
    for name, size in (named if scope == "layer" else {ALL: sum(sizes)}).items():
        left = size
        for _ in range(level):
            left -= round(share * left)
        assert told[name] == left


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_shuffled_masks_keep_the_counts_of_each_layer(scope: str) -> None:
    """A random mask leaves as many of each layer as magnitude does, elsewhere, and others with each draw and seed."""
    weights = random_weights([40, 200, 90], 3, 1000)
    recipes = [
        MaskRecipe(1, "0.5", scope=scope, shuffled=drawn, draw=draw, seed=seed)  # type: ignore[arg-type]
        for drawn, draw, seed in ((False, 0, 0), (True, 0, 0), (True, 1, 0), (True, 0, 1))
    ]
    masks = [pruned(weights, None, recipe) for recipe in recipes]
    counts = [[int(mask.sum()) for mask in each.values()] for each in masks]
    assert all(one == other for one, other in pairwise(counts))
    assert len({bits(each) for each in masks}) == len(masks)
    assert bits(pruned(weights, None, recipes[1])) == bits(masks[1])
    assert bits(pruned({name: -3 * each for name, each in weights.items()}, None, recipes[1])) == bits(masks[1])


@pytest.mark.parametrize("amount", [0.1, 0.25, 0.3, 0.5, 0.8])
def test_torch_masks_the_same_weights(amount: float) -> None:
    """Without ties both scopes are torch.nn.utils.prune's `global_unstructured` and `l1_unstructured`, bit for bit."""
    torch.manual_seed(int(100 * amount))
    model = TenWeights()
    weights = {name: model.get_parameter(name).detach().clone() for name in SIZES}
    layers = [(model.first, "weight"), (model.second, "weight")]
    ours = pruned(weights, None, MaskRecipe(1, str(amount), scope="layer"))
    for (layer, name), mask in zip(layers, ours.values(), strict=True):
        assert torch.equal(prune.l1_unstructured(layer, name, amount).weight_mask.bool(), mask)
        prune.remove(layer, name)
    model.load_state_dict(weights, strict=False)
    prune.global_unstructured(layers, prune.L1Unstructured, amount=amount)
    ours = pruned(weights, None, MaskRecipe(1, str(amount)))
    assert all(
        torch.equal(layer.weight_mask.bool(), mask) for (layer, _), mask in zip(layers, ours.values(), strict=True)
    )


def test_half_precision_is_compared_as_it_is() -> None:
    """bfloat16 and float16, subnormal numbers among them, are compared by their exact values."""
    for kind in (torch.bfloat16, torch.float16):
        small = {"first.weight": torch.tensor([6e-8, -1.2e-7, 0.0, 1.0]).to(kind)}
        assert bits(pruned(small, None, MaskRecipe(1, "0.5", scope="layer"))) == "0101"


def test_what_cannot_be_ranked_is_refused() -> None:
    """NaN and infinities by the layer's name, and float64, which would be rounded first."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(InputError, match=r"second\.weight holds weights that are no numbers"):
            pruned(ten_weights(*[1.0] * 9, bad), None, MaskRecipe(1, "0.2"))
    with pytest.raises(InputError, match=r"first\.weight holds torch\.float64"):
        pruned({"first.weight": torch.ones(4, dtype=torch.float64)}, None, MaskRecipe(1, "0.2"))


def test_a_layer_that_would_be_emptied_is_named() -> None:
    """Under scope layer from the sizes alone, under scope global when its mask is made: layer, level, rate, way out."""
    with pytest.raises(
        InputError, match=r"level 2 at rate 0\.7 would mask every weight of first\.weight, which has 4:"
    ):
        remaining_counts(SIZES, MaskRecipe(3, "0.7", scope="layer"))
    with pytest.raises(InputError, match=r"all layers together, which has 10: take .* or fewer --rounds$"):
        remaining_counts(SIZES, MaskRecipe(1, "0.96"))
    tiny = ten_weights(*[1e-3] * 4, *[1.0] * 6)
    with pytest.raises(
        InputError, match=r"level 1 at rate 0\.4 .* first\.weight, .* whole with --exclude first\.weight"
    ):
        pruned(tiny, None, MaskRecipe(1, "0.4"))


def test_layers_of_one_size_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's mask may name thousands of layers and a thousand levels: its rounds are gone through once a size."""
    rounds = Mock(wraps=magnitude._after_round)
    monkeypatch.setattr(magnitude, "_after_round", rounds)
    told = remaining_counts({str(at): 1000 for at in range(50)}, MaskRecipe(20, "0.1", scope="layer"))
    assert (set(told.values()), len(told), rounds.call_count) == ({121}, 50, 20)
