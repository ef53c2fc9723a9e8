"""Batches on their way to the device: they arrive whole while it computes, cut or not."""

from contextlib import closing
from dataclasses import replace

import torch
from makers.device_report import ABSOLUTE, Compared
from makers.device_runs import MakeRun, prepared

from dlth.data.loading.batch import StepBatches

BUSY = {"cuda": 4096, "cpu": 64}
"""Side of the matrices that keep a device busy, as long on a GPU as several batches are on their way."""


def test_a_batch_is_neither_read_before_it_came_nor_overwritten_before_it_was_used(
    make_run: MakeRun, device: torch.device, compared: Compared
) -> None:
    """What is read of each batch after work that takes longer than sending the next ones, and after it was let go, is
    what the loader gave.
    """
    busy = torch.rand(BUSY[device.type], BUSY[device.type], device=device)
    with prepared(make_run(batch_size=2)) as parts:
        expected = [step.batches[0].images for step in StepBatches.gathered(parts.loader.epoch(0))]
        read = []
        with closing(parts.train_steps(0, 0)) as steps:
            for (batch,) in steps:
                for _ in range(8):
                    busy = torch.mm(busy, busy).remainder_(1.0)
                read.append(batch.images.clone())
                del batch
        wrong = [not torch.equal(found.cpu(), images) for found, images in zip(read, expected, strict=True)]
    compared("batches that did not arrive as they were sent", "", sum(wrong), 0)


def test_cut_or_whole_the_student_sees_the_same(make_run: MakeRun, compared: Compared) -> None:
    """Logits of a batch that came cut are, to the bit, those of the same images sent whole."""
    with prepared(make_run()) as parts:
        whole = replace(parts, loader=parts.inputs.loader(parts.budget))
        sizes, logits = [], []
        for run in (parts, whole):
            with closing(run.train_steps(0, 0)) as steps, torch.no_grad():
                (batch,) = next(steps)
                sizes.append(batch.images.ndim)
                logits.append(parts.student.eval()(parts.pixels(batch.images), batch.patches))
    assert sizes == [5, 4]
    apart = float((logits[0] - logits[1]).abs().max())
    compared("logits of a cut batch against the whole one's", "", apart, 0, unit=ABSOLUTE)
