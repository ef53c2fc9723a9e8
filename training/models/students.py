"""Which kinds of students there are; a new one is a file of its own and a line here."""

from torch import nn

from dlth.training.models.student import Student
from dlth.training.models.ticket_vit import TicketViT

STUDENTS: list[type[Student]] = [TicketViT]
"""Kinds of students, the first that takes a model before the others."""


def make_student(model: nn.Module) -> Student:
    """A model as the student that it can be. Raises InputError, with what can, if its patches cannot be left out."""
    kind = next((kind for kind in STUDENTS if kind.takes(model)), STUDENTS[0])  # the first says why none does
    return kind(model)
