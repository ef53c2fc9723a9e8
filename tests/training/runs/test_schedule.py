"""The adjusted schedule: a cosine on the stage rate, each step, and the patches that follow from it."""

import math
from itertools import pairwise

import pytest
import torch
from makers.models import tiny_vit

from dlth.tickets import Budget
from dlth.tickets.errors import InputError
from dlth.training.runs.keep_schedule import KeepMilestones, KeepSchedule
from dlth.training.selectors.evit import Selector

TABLE = {
    "0.7": [196, 196, 193, 181, 163, 142, 121, 103, 88, 77, 71, 68, 68],
    "0.75": [196, 196, 193, 184, 168, 151, 133, 116, 102, 92, 86, 84, 84],
    "0.8": [196, 196, 196, 187, 174, 160, 144, 130, 117, 109, 104, 101, 101],
    "0.85": [196, 196, 196, 190, 180, 168, 157, 145, 135, 128, 123, 121, 121],
    "0.9": [196, 196, 196, 193, 186, 178, 170, 161, 154, 149, 145, 144, 144],
}
"""Stage rate at the end -> patches of 196 kept at the first step of epochs 0, 10, 20, …, 120."""


def papers(rate: str, steps_per_epoch: int = 1251) -> KeepSchedule:
    """From epoch 10 over 100 epochs, three stages of a 14x14 grid."""
    return KeepSchedule(Budget.from_stage_keep(rate, 196, 3), 10, 100, steps_per_epoch)


@pytest.mark.parametrize("rate", TABLE)
def test_patches_by_epoch_are_the_papers(rate: str) -> None:
    """The table, whatever the steps of an epoch; a cosine on the number itself has 132 for 0.7 half way, not 121."""
    for steps in (1, 1251):
        assert [papers(rate, steps).budget(epoch).k for epoch in range(0, 130, 10)] == TABLE[rate]


@pytest.mark.parametrize("rate", TABLE)
def test_it_falls_step_by_step_and_ends_exactly(rate: str) -> None:
    """Never rising, no jump of more than a patch or two, all patches before epoch 10, the final budget from 110 on."""
    schedule = papers(rate, 50)
    falling = [schedule.budget(epoch, step).k for epoch in range(9, 111) for step in range(50)]
    assert set(falling[:51]) == {196}
    assert schedule.budget(110) == schedule.final
    assert all(0 <= earlier - later <= 2 for earlier, later in pairwise(falling))
    assert len(set(falling)) <= schedule.most_sizes
    assert len({schedule.budget(60, step).k for step in range(50)}) > 1, "it changes within an epoch"


def test_dust_of_the_cosine_decides_no_patch() -> None:
    """Two thirds down to 0.8 the rate is 0.85 on paper, 0.8500000000000001 in floats: 17 patches of 20, not 18."""
    rate = 0.8 + (1 - 0.8) * (math.cos(math.pi * 2 / 3) + 1) / 2
    assert Budget.from_stage_keep(rate, 20, 1).k == 18
    assert KeepSchedule(Budget.from_stage_keep("0.8", 20, 1), 0, 3).budget(2).k == 17


def test_milestones_hold_from_their_epoch_on() -> None:
    """The run's own share before the first, then each one's; the plan names them, and few graphs are compiled."""
    own, half, every = (Budget.from_keep(share, 196, 3) for share in ("0.7", "0.5", "1.0"))
    schedule = KeepMilestones(own, ((10, half), (280, every)))
    assert [schedule.budget(epoch, 7).k for epoch in (0, 9, 10, 279, 280, 299)] == [138, 138, 98, 98, 196, 196]
    assert schedule.budget(280).keeps_all
    assert str(schedule) == "138 of 196 patches, 98 from epoch 10 on, 196 from epoch 280 on"
    assert schedule.most_sizes == 3
    assert str(KeepMilestones(own, ((0, half), (280, every)))) == "98 of 196 patches, 196 from epoch 280 on"


def test_a_selector_ranks_with_the_budget_it_is_asked_for() -> None:
    """`select(images, budget)` is what a selector made with that rate selects, and leaves its own budget as it was."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vit = tiny_vit()
    one = Selector(vit, "0.6", (0, 1, 2))
    schedule = KeepSchedule(one.budget, 0, 4)
    before = one.rank(images)
    for epoch in range(5):
        budget = schedule.budget(epoch)
        asked, made = one.select(images, budget), Selector(vit, budget.stage_keep, (0, 1, 2)).select(images)
        assert torch.equal(asked.patches, made.patches)
        assert torch.equal(asked.gap, made.gap)
    assert torch.equal(one.rank(images), before)
    assert not torch.equal(one.rank(images, schedule.budget(2)), before)
    with pytest.raises(InputError, match="a budget for 16 patches in 2 stages does not fit 16 patches and 3"):
        one.rank(images, Budget.from_keep("0.5", 16, 2))
