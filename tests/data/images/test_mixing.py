"""Mixing: pixels, labels and rankings follow one plan, and the plan is timm's distribution."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import mixup_target

from dlth.data.images.mixing import (
    BatchMix,
    Mixing,
    MixPlan,
    batch_mix,
    mix_images,
    mix_patches,
    mix_plan,
    mix_rankings,
    mix_targets,
    partners,
    shares,
    token_sources,
)
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import covered

BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)
SIZE = (32, 48)


def test_partners_are_neighbours() -> None:
    """Pairs swap; an odd last sample stays alone; pairing twice comes back."""
    assert partners(5).tolist() == [1, 0, 3, 2, 4]
    assert partners(1).tolist() == [0]
    assert np.array_equal(partners(8)[partners(8)], np.arange(8))


@given(step=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_weight_is_the_share_of_pixels(step: int, seed: int) -> None:
    """Whatever the draw, the mean of mixed pixels of a black and a white image is the plan's weight."""
    plan = mix_plan(BOTH, SIZE, seed, 0, step)
    images = torch.stack([torch.zeros(3, *SIZE, dtype=torch.float64), torch.ones(3, *SIZE, dtype=torch.float64)])
    mixed = mix_images(images, plan)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), torch.tensor([1 - plan.weight, plan.weight], dtype=torch.float64))
    assert 0 <= plan.weight <= 1
    assert images.max() == 1, "the input is left as it is"


def test_plans_follow_timms_distribution() -> None:
    """Kinds, weights and their spread over 4,000 steps agree with the alphas, the probability and the switch."""
    config = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, switch_prob=0.25)
    plans = [mix_plan(config, (224, 224), 0, 0, step) for step in range(4000)]
    kinds = [plan.kind for plan in plans]
    assert abs(kinds.count("none") / 4000 - 0.2) < 0.03
    assert abs(kinds.count("cutmix") / 4000 - 0.2) < 0.03
    weights = np.array([plan.weight for plan in plans if plan.kind == "mixup"])
    assert abs(weights.mean() - 0.5) < 0.02
    assert abs(weights.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01
    assert {mix_plan(Mixing(cutmix_alpha=1.0), SIZE, 0, 0, step).kind for step in range(20)} == {"cutmix"}
    assert {mix_plan(Mixing(mixup_alpha=1.0), SIZE, 0, 0, step).kind for step in range(20)} == {"mixup"}
    assert mix_plan(Mixing(), SIZE, 0, 0, 0) == MixPlan()


def test_plan_is_named_by_seed_epoch_step_and_group() -> None:
    """The same name gives the same plan, each part of the name counts, and mixing ends at its epoch."""
    names = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    assert len({mix_plan(BOTH, SIZE, *name) for name in names}) == 5
    ending = Mixing(mixup_alpha=0.8, off_epoch=3)
    assert [mix_plan(ending, SIZE, 0, epoch, 0).kind for epoch in range(5)] == ["mixup"] * 3 + ["none"] * 2


@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix"])
def test_targets_are_timms_with_another_partner(kind: str) -> None:
    """On a batch of two, whose mirror image is its neighbour, targets equal timm's; their sum is 1."""
    plan = MixPlan(kind, 1.0 if kind == "none" else 0.3)  # type: ignore[arg-type]
    labels = torch.tensor([2, 0])
    ours = mix_targets(labels, 5, 0.1, plan)
    assert torch.allclose(ours, mixup_target(labels, 5, plan.weight, 0.1))
    assert torch.allclose(ours.sum(1), torch.ones(2))


def test_rankings_follow_the_pixels() -> None:
    """Cutmix of the left half: patches there take the partner's ranks; mixup averages; an odd last row is unchanged."""
    grid = Grid(2, 4)
    first, second = np.arange(8), np.arange(8)[::-1].copy()
    rows = np.stack([first, second, first])
    cut = MixPlan("cutmix", 0.5, (0.0, 0.0, 0.5, 1.0))
    mixed = mix_rankings(rows, grid, cut)
    # ranks of the first: own on the right (2 3 6 7), the partner's 7-p on the left (7 6 3 2)
    assert mixed[0].tolist() == [2, 5, 3, 4, 1, 6, 0, 7]
    assert mixed[2].tolist() == first.tolist()
    assert mix_rankings(rows, grid, MixPlan("mixup", 1.0))[1].tolist() == second.tolist()
    assert mix_rankings(rows, grid, MixPlan("mixup", 0.5))[0].tolist() == first.tolist(), "ties go to the lower index"
    assert mix_rankings(rows, grid, MixPlan()) is rows


def test_cut_pixels_come_from_the_partner() -> None:
    """Inside the box stand the partner's pixels, outside the image's own, for every plan's box."""
    for step in range(50):
        plan = mix_plan(Mixing(cutmix_alpha=1.0), SIZE, 0, 0, step)
        images = torch.arange(3.0)[:, None, None, None].expand(3, 1, *SIZE)
        mixed = mix_images(images, plan)
        left, top, right, bottom = (round(a * b) for a, b in zip(plan.box, (48, 32, 48, 32), strict=True))
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(mixed[0, 0], inside.float())
        assert torch.equal(mixed[1, 0], 1 - inside.float())
        assert (mixed[2] == 2).all()


def test_a_global_batch_is_mixed_in_groups_of_the_authors_size() -> None:
    """1,024 images have the draws of eight processes of 128, whose kinds and weights differ; smaller groups more."""
    mix = batch_mix(BOTH, SIZE, 0, 0, 0, 0, 1024)
    assert mix.sizes == (128,) * 8
    assert len({plan.weight for plan in mix.plans}) == 8
    assert {plan.kind for plan in mix.plans} == {"mixup", "cutmix"}
    steps = [batch_mix(BOTH, SIZE, 0, 0, step, 0, 1024).plans for step in range(40)]
    cut = [sum(plan.kind == "cutmix" for plan in plans) for plans in steps]
    assert 3 < np.mean(cut) < 5
    assert len(set(cut)) > 3, "with one draw for all it is 0 or 8"
    assert batch_mix(Mixing(mixup_alpha=1.0, group=2), SIZE, 0, 0, 0, 0, 5).sizes == (2, 2, 1)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 30).map(lambda pair: 2 * pair), chosen=st.sets(st.integers(0, 29)), step=st.integers(0, 99))
def test_whatever_is_mixed_of_a_group_is_the_same_however_the_batch_is_cut(
    cut: int, chosen: set[int], step: int
) -> None:
    """Pixels, targets, rankings and hidden area of 60 images in groups of 16, cut at any pair or taken apart."""
    config = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.7, group=16)
    grid, rng = Grid(2, 4), np.random.default_rng(0)
    images, labels = torch.rand(60, 3, 4, 8), torch.arange(60) % 5
    rankings = np.stack([rng.permutation(8) for _ in range(60)])
    hidden = rng.random((60, 8))
    whole = batch_mix(config, (4, 8), 0, 0, step, 0, 60)

    def mixed(rows: np.ndarray, mix: BatchMix) -> list[torch.Tensor]:
        at = torch.from_numpy(rows)
        arrays = mix_rankings(rankings[rows], grid, mix), mix_patches(hidden[rows], grid, mix)
        return [mix_images(images[at], mix), mix_targets(labels[at], 5, 0.1, mix), *map(torch.from_numpy, arrays)]

    expected = mixed(np.arange(60), whole)
    for start, stop in ((0, cut), (cut, 60)):
        if start < stop:
            part = mixed(np.arange(start, stop), batch_mix(config, (4, 8), 0, 0, step, start, stop))
            assert all(torch.equal(ours, theirs[start:stop]) for ours, theirs in zip(part, expected, strict=True))
    pairs = np.array(sorted(chosen), dtype=np.int64)
    for rows in (np.sort(np.concatenate([2 * pairs, 2 * pairs + 1])), np.flatnonzero(~whole.mixed)):
        part = mixed(rows, whole.of(rows))
        assert all(
            torch.equal(ours, theirs[torch.from_numpy(rows)]) for ours, theirs in zip(part, expected, strict=True)
        )
    for rows, plan in whole.groups():
        alone = mix_images(images[rows], plan)
        assert torch.equal(alone, expected[0][rows])


@pytest.mark.parametrize(
    "change", [{"mixup_alpha": -1.0}, {"prob": 1.1}, {"switch_prob": -0.1}, {"group": 3}, {"group": 0}], ids=str
)
def test_wrong_values_are_refused(change: dict[str, Any]) -> None:
    """Values out of range are refused when the configuration is made."""
    with pytest.raises(InputError, match=r"at least 0|between 0 and 1|an even number of images"):
        Mixing(**change)


@given(step=st.integers(0, 10_000), tokens=st.booleans(), group=st.sampled_from([2, 4, 128]))
def test_shares_and_sources_are_of_the_area_that_a_box_covers(step: int, tokens: bool, group: int) -> None:
    """What a device works out of a plan is, to the bit, what numpy says of its box: nothing of it need be sent."""
    grid, config = Grid(3, 4), Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, group=group, tokens=tokens)
    mix = batch_mix(config, (grid.rows, grid.cols) if tokens else SIZE, 0, 0, step, 2, 9)
    boxes = np.array([plan.box for plan in mix.plans]).repeat(mix.sizes, axis=0)
    weights = np.array([plan.weight for plan in mix.plans], np.float32).repeat(mix.sizes)
    mixed_up = np.array([plan.kind == "mixup" for plan in mix.plans]).repeat(mix.sizes)
    under, own = covered(boxes, grid), np.arange(7)
    whole, patches = shares(mix, grid, 7)
    assert np.array_equal(whole[:, 0].numpy(), weights)
    expected = np.where(mixed_up[:, None], weights[:, None], (1.0 - under).astype(np.float32))
    assert np.array_equal(patches.numpy(), expected)
    pasted = np.where(under >= 0.5, partners(7)[:, None], own[:, None])
    assert np.array_equal(token_sources(mix, grid).numpy(), pasted)
