"""What training computes, counted: floating-point operations of every image that is shown.

Forward and backward are three forwards of the student: the backward pass has two products for each of the forward's,
one for the gradient of its input and one for that of its weights. A selector in the loop adds its own forward, in
steps that drop anything. What a step costs beside (optimizer, augmentation, evaluation) is left out.
"""

from functools import cached_property

from dlth.tickets import Budget
from dlth.training.models.registry import flops_of
from dlth.training.models.student import Student
from dlth.training.selectors.online import OnlineSelector

FORWARDS = 3
"""Forwards that the forward and backward of an image come to."""


class StepFlops:
    """Of a step; counts each budget once: a keep schedule has some dozens.

    `online`: the selector in the loop, None where no step asks one.
    """

    def __init__(self, student: Student, online: OnlineSelector | None) -> None:
        self._student, self._online = student, online
        self._known: dict[Budget, int] = {}

    def __call__(self, budget: Budget, images: float, whole: float = 0.0) -> float:
        """Of so many images in a step that keeps what `budget` says, the `whole` ones of them on all their patches.

        Raises InputError as `Student.flops`.
        """
        return (images - whole) * self._of_image(budget) + whole * (self._of_whole if whole else 0)

    @cached_property
    def _of_whole(self) -> int:
        return FORWARDS * self._student.flops()

    def _of_image(self, budget: Budget) -> int:
        if budget not in self._known:
            self._known[budget] = FORWARDS * self._student.step_flops(budget) + self._selecting(budget)
        return self._known[budget]

    def _selecting(self, budget: Budget) -> int:
        if self._online is None or budget.keeps_all:
            return 0
        ranker = self._online.selector
        return flops_of(lambda image: ranker.select(image, budget), ranker.frame.size, ranker.device)
