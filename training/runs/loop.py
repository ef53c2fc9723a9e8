"""Stage 2: train one arm with one seed, so that a kill at any moment costs at most the steps since the last save.

    open and check everything → resume → for each epoch: steps, save, evaluate → weights and result

The loop holds no randomness and no position beyond (epoch, batch): order, augmentation and random tokens are functions
of the seed, the epoch and the image, drop path one of the seed and the step. So resuming is loading the weights, the
optimizer and two numbers, and on one CPU it is exact to the bit. An epoch's checkpoint is written *before* it is
evaluated: a run that is killed while evaluating evaluates again and trains nothing twice.
"""

import json
import math
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from dlth.tickets import Budget
from dlth.tickets.errors import shown
from dlth.tickets.store.locks import owned
from dlth.training.device.facts import device_name, device_versions, forget_peak, peak_memory
from dlth.training.device.numerics import numerics
from dlth.training.distributed.agreement import agree
from dlth.training.distributed.process_group import World, joined
from dlth.training.distributed.signals import StopRequest, stop_on_signals
from dlth.training.models.weights import weights_digest
from dlth.training.models.weights_metadata import EMA_FILE, MODEL_FILE
from dlth.training.pruning.recipe import REWIND
from dlth.training.reporter import Reporter
from dlth.training.run_files import write_text
from dlth.training.runs import checkpoint
from dlth.training.runs.pruned import check_kept, keep_mask
from dlth.training.runs.result import DivergedError, RunResult, diverged, read_result, versions, write_result
from dlth.training.runs.resume import (
    BEST,
    CHECKPOINTS,
    LOG,
    VAL_RESULTS,
    facts_to_resume,
    mark_of,
    resume_path,
    take_over,
)
from dlth.training.runs.run_progress import RunProgress, Totals
from dlth.training.runs.runlog import METRICS, RESULT, Mark, RunLog
from dlth.training.runs.setup import HEADLINE, Parts, as_student, prepare
from dlth.training.runs.step import StepResult
from dlth.training.settings.fields import settings_digest
from dlth.training.settings.toml_text import CONFIG, to_toml
from dlth.training.settings.train_config import TrainConfig


def train(config: TrainConfig, *, reporter: Reporter | None = None, stop: StopRequest | None = None) -> RunResult:
    """Train a student as configured, or go on training it; under torchrun, together with the other ranks.

    SIGTERM and SIGINT let it finish its step and save; the result's status is then "stopped". A caller that listens to
    signals itself, as one that trains several does, gives its own `stop`.

    Raises:
        DlthError: data, tickets, model and settings do not fit together, or a checkpoint is of another run
        RankError: another rank ended
        DivergedError: loss or gradient were not finite for `nan_patience` steps; checkpoints hold the last good weights
    """
    listening = stop_on_signals() if stop is None else nullcontext(stop)
    with numerics(config.tf32, config.deterministic), joined(config.device) as world, listening as asked:
        return Training(config, world, reporter if reporter is not None and world.leads else Reporter()).run(asked)


def planned(config: TrainConfig, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Open, check and build everything that a run needs, and give back its plan; nothing is trained or written.

    What it would refuse is refused: also a folder that cannot be its own, or a checkpoint to go on from.

    Raises:
        DlthError: as `train`
    """
    with numerics(config.tf32, config.deterministic), joined(config.device) as world:
        return Training(config, world, reporter or Reporter()).plan()


class Training:
    """One run, on one rank."""

    def __init__(self, config: TrainConfig, world: World, reporter: Reporter) -> None:
        self.config, self.world, self.reporter = config, world, reporter
        self.out = Path(config.out)
        forget_peak(world.device)  # of a run before it in this process
        self.parts: Parts = prepare(config, world, reporter)
        self.progress = RunProgress.beginning(config.start_step, self.parts.inputs.steps_per_epoch)
        self.log: RunLog | None = None
        self.log_mark: Mark | None = None
        self.met: dict[int, str] = {}  # corrupt images that this rank has met since it started, and what was wrong
        self.evaluation: dict[str, dict[str, dict[str, Any]]] = {}
        self.train_loss: float | None = None
        self.step_seconds = array("d")  # of the steps since it started: none of a machine that it no longer runs on

    def run(self, stop: StopRequest) -> RunResult:
        """Train to the end, or until a signal asks to stop. Raises LockedError if another run owns the folder."""
        with self._owned():
            self._resume()
            return self._run(stop)

    def plan(self) -> dict[str, Any]:
        """What the run would do, as a person would read it. Raises what it would raise before its first step."""
        with self._owned():
            self._resume()
            return self.parts.facts() | {"starts at step": self.progress.step}

    @contextmanager
    def _owned(self) -> Iterator[None]:
        with ExitStack() as stack:
            with self.world.together():
                if self.world.leads:
                    stack.enter_context(owned(self.out))
            yield

    def _run(self, stop: StopRequest) -> RunResult:
        finished = self._finished()
        agree(self.world, {"finished already": finished is not None})
        if finished is not None:
            self.reporter.note(f"{shown(self.out)} holds this run, finished already: its result is given back as it is")
            return finished
        self.reporter.started(self.parts.facts() | {"starts at step": self.progress.step})
        with self.world.together():
            self._open_log()
            if self.world.leads:
                keep_mask(self.parts.mask, self.out)
            self._keep_rewinding_point()
        try:
            while self.progress.epoch < self.config.epochs:
                whole = self._train_epoch(stop)
                self._save()
                if not whole or self.world.any(stop.requested):
                    return self._result("stopped")
                self._end_epoch()
            return self._finish()
        finally:
            if self.log is not None:
                self.log.close()

    def _train_epoch(self, stop: StopRequest) -> bool:
        """Do the epoch's remaining steps; False if a stop was asked for before its end."""
        at, parts = self.progress, self.parts
        clock = time.perf_counter()
        for batches in parts.train_steps(at.epoch, at.batch):
            data_seconds = time.perf_counter() - clock
            for batch in batches:
                self.met |= batch.bad
            lr = parts.set_rate(at.epoch, at.step)
            budget = parts.budget(at.epoch, at.batch)
            result = parts.stepper(batches, at.step, budget)
            at.batch, at.step = at.batch + 1, at.step + 1
            seconds = time.perf_counter() - clock
            self.step_seconds.append(seconds - data_seconds)
            self._count(result, budget, data_seconds, seconds - data_seconds)
            self._report(result, lr, budget.k)
            if result.moved:
                at.bad_steps = 0
            elif result.weight:
                self._bear_with_bad_step(result)
            self._keep_rewinding_point()
            if self.world.any(stop.requested):
                return False
            if self.config.checkpoint_steps is not None and at.step % self.config.checkpoint_steps == 0:
                self._save()
            clock = time.perf_counter()
        return True

    def _count(self, result: StepResult, budget: Budget, data_seconds: float, compute_seconds: float) -> None:
        parts, known, images, whole = self.parts, math.isfinite(result.loss), result.weight, result.whole
        chosen, every = (parts.student.num_tokens(patches) for patches in (budget.k, parts.grid.num_patches))
        counted = Totals(
            loss_sum=result.loss * images if known else 0.0,
            loss_weight=images if known else 0.0,
            images=images,
            tokens=(images - whole) * chosen + whole * every,
            hidden=result.hidden,
            whole=whole,
            flops=parts.step_flops(budget, images, whole),
            data_seconds=data_seconds,
            compute_seconds=compute_seconds,
        )
        self.progress.in_epoch.add(counted)
        self.progress.in_run.add(counted)

    def _report(self, result: StepResult, lr: float, k: int) -> None:
        at, steps = self.progress, self.parts.inputs.steps_per_epoch
        record = {"epoch": at.epoch, "batch": at.batch, "num_batches": steps, "loss": result.loss, "lr": lr, "k": k}
        record["grad_norm"] = result.grad_norm
        self.reporter.stepped({"step": at.step, "num_steps": steps * self.config.epochs, **record})
        if self.log is not None and (at.step % self.config.log_interval == 0 or at.batch == steps):
            self.log.add("train", at.step, **record, hidden_share=at.in_epoch.hidden_share, **at.in_epoch.rates())

    def _bear_with_bad_step(self, result: StepResult) -> None:
        """Count a step that could not move the weights; end the run when there were too many in a row."""
        at = self.progress
        if result.rescaled:
            self.reporter.note(f"the gradient of step {at.step} overflowed in float16: the scale of the loss is halved")
            return
        at.bad_steps += 1
        self.reporter.note(
            f"the loss of step {at.step} is {result.loss}, the norm of its gradient {result.grad_norm}:"
            " weights are left as they were"
        )
        if at.bad_steps >= self.config.nan_patience:
            keys = [self.parts.inputs.files.index.key(number) for number in self.parts.stepper.bad_ids()]
            raise diverged(self.out, self.world.rank, at.step, at.bad_steps, result.loss, result.grad_norm, keys)

    def _end_epoch(self) -> None:
        """Evaluate where it is time to, write the epoch's row, and go on to the next epoch."""
        at, last = self.progress, self.progress.epoch + 1 == self.config.epochs
        self.train_loss = at.in_epoch.loss
        row: dict[str, Any] = {"epoch": at.epoch, "train_loss": self.train_loss}
        row |= at.in_epoch.counts() | {"hidden_share": at.in_epoch.hidden_share}
        if at.in_run.whole:
            row["whole_images"] = int(at.in_epoch.whole)
        if self.parts.stepper.masks is not None:
            row["remaining_weights"] = self.parts.stepper.masks.remaining()
        if self.parts.inputs.val is not None and (last or (at.epoch + 1) % self.config.val_interval == 0):
            result = self.parts.evaluate(self.parts.student)
            self.evaluation["model"] = table = result.table()
            row |= {
                f"eval_{arm}_{name}": line[name] for arm, line in table.items() for name in ("loss", "top1", "top5")
            }
            self._keep_best(table)
            if last:
                for text in result.notes():
                    self.reporter.note(text)
                if self.world.leads:
                    result.save(self.out / VAL_RESULTS)
        if self.config.bad_images == "skip":
            row["bad_images"] = len(at.bad_images)
        row["lr"] = self.parts.set_rate(at.epoch, max(at.step - 1, 0))
        row |= at.in_epoch.rates() | {"peak_memory_bytes": peak_memory(self.world.device)}
        if self.log is not None:
            self.log.add("epoch", at.step, **row)
            self.log.write_summary(last)
        self.reporter.epoch_ended(row)
        at.epoch, at.batch, at.in_epoch = at.epoch + 1, 0, Totals()

    def _share_bad_images(self) -> None:
        """Let every rank know the corrupt images that any has met since the last save; each is named once in a run."""
        inputs, known = self.parts.inputs, self.progress.bad_images
        met = torch.zeros(inputs.files.index.num_samples, dtype=torch.int32)
        met[list(self.met)] = 1
        new = sorted(set(self.world.sum_(met).nonzero().flatten().tolist()) - set(known))
        if self.world.leads:
            for key, problem in inputs.why_bad(new, self.met).items():
                self.reporter.note(f"left out: {shown(key)}: {problem}")
        self.progress.bad_images = sorted([*known, *new])

    def _keep_best(self, table: Mapping[str, Mapping[str, Any]]) -> None:
        arm = next(arm for arm in HEADLINE[self.config.arm] if arm in table)
        best = {"epoch": self.progress.epoch, "tokens": arm, "top1": table[arm]["top1"]}
        if best["top1"] > self.progress.best.get("top1", -1.0):
            self.progress.best = best
            if self.world.leads:
                checkpoint.write_tensors(self.out / BEST, self.parts.student.model.state_dict(), self._note())

    def _finish(self) -> RunResult:
        """Evaluate the averaged weights, write the weights, and last of all the result."""
        parts = self.parts
        if parts.ema is not None and parts.inputs.val is not None:
            files = parts.inputs.files
            averaged = as_student(parts.config, parts.ema.module, files.store, files.val_store)
            self.evaluation["ema"] = parts.evaluate(averaged).table()
        result = self._result("finished")
        if self.world.leads:
            checkpoint.write_tensors(self.out / MODEL_FILE, parts.student.model.state_dict(), self._note())
            if parts.ema is not None:
                checkpoint.write_tensors(self.out / EMA_FILE, parts.ema.module.state_dict(), self._note())
            write_result(self.out, result)
        self.world.wait()
        return result

    def _keep_rewinding_point(self) -> None:
        """Write the weights, and buffers, of the step that other runs are to begin with, if the run stands there."""
        if self.progress.step != self.config.rewind_step:
            return
        self.progress.rewind_weights = weights_digest(self.parts.student.model)
        if self.world.leads:
            checkpoint.write_tensors(self.out / REWIND, self.parts.student.model.state_dict(), self._note())

    def _save(self) -> None:
        """Write a checkpoint; weights that are no numbers never take the place of good ones."""
        parts = self.parts
        finite = [torch.isfinite(tensor).all() for tensor in parts.student.model.state_dict().values()]
        if not torch.stack(finite).all():  # one wait for a GPU
            raise DivergedError(
                f"weights are no longer numbers after step {self.progress.step}: not saved. The checkpoints in"
                f" {self.out / CHECKPOINTS} are good ones; a lower --lr or --clip-grad may help."
            )
        if parts.stepper.masks is not None and (revived := parts.stepper.masks.revived(parts.optimizer)):
            raise AssertionError(f"masked weights of {revived} are not zero after step {self.progress.step}: not saved")
        if self.config.bad_images == "skip":
            self._share_bad_images()
        if not self.world.leads:
            return
        tensors: dict[str, dict[str, torch.Tensor]] = {"model": parts.student.model.state_dict(), "optimizer": {}}
        if parts.ema is not None:
            tensors["ema"] = parts.ema.module.state_dict()
        optimizer = checkpoint.take_apart(parts.optimizer.state_dict(), "optimizer", tensors["optimizer"])
        state = facts_to_resume(parts) | {
            "progress": asdict(self.progress),
            "optimizer": optimizer,
            "scaler": parts.stepper.scaler.state_dict(),
            LOG: self.log.mark()._asdict() if self.log is not None else {},
        }
        step, keep = self.progress.step, self.config.checkpoint_hist
        checkpoint.save(self.out / CHECKPOINTS, step, tensors, state, keep, self._note())

    def _resume(self) -> None:
        """Go on from the checkpoint that the settings name, all ranks from the same; start anew where there is none."""
        with self.world.together():
            resumed = self._take_over()
            check_kept(self.parts.mask, self.out)
        weights = weights_digest(self.parts.student.model) if resumed else ""
        agree(self.world, {"starts at step": self.progress.step, "weights of the checkpoint": weights})

    def _take_over(self) -> bool:
        """Load the checkpoint that there is; whether there is one."""
        path = resume_path(self.config)
        if path is None:
            return False
        saved = checkpoint.load(path)
        self.progress, notes = take_over(saved, self.parts)
        if self.out / CHECKPOINTS == path.parent:  # the log of another folder's run is not here
            self.log_mark = mark_of(saved)
        for note in notes:
            self.reporter.note(note)
        self.reporter.note(f"resumed at step {self.progress.step}, epoch {self.progress.epoch}, from {shown(path)}")
        return True

    def _finished(self) -> RunResult | None:
        """The result of the run that `--resume auto` found, if it is whole and there is nothing left to do."""
        if self.config.resume != "auto" or not (self.out / MODEL_FILE).is_file():
            return None
        result, parts = read_result(self.out / RESULT), self.parts
        if result is None or (result.status, result.steps) != ("finished", self.progress.step):
            return None
        ours = json.loads(json.dumps(parts.inputs.identities()))
        theirs = {name: result.data.get(name) for name in ours}
        same = result.config_sha256 == settings_digest(self.config, result.config)
        return result if same and theirs == ours else None

    def _open_log(self) -> None:
        if self.world.leads:
            about = {name: self.parts.record[name] for name in ("tickets_are", "val_tickets_are")}
            if self.log_mark is not None and self.log_mark.lines and not (self.out / METRICS).exists():
                self.reporter.note(
                    f"{shown(self.out / METRICS)} is not there: the log begins at step {self.progress.step}"
                )
            before = self.progress.step if self.progress.step > self.config.start_step else 0  # lines of another start
            self.log = RunLog(self.out, before, self.config.log_tensorboard, about, self.log_mark)
            write_text(self.out / CONFIG, to_toml(self.config))

    def _step_seconds(self) -> dict[str, float]:
        return {"step_seconds": median(self.step_seconds)} if self.step_seconds else {}

    def _note(self) -> dict[str, Any]:
        return self.parts.note(self.progress.epoch, self.progress.step)

    def _result(self, status: Literal["finished", "stopped"]) -> RunResult:
        at, parts = self.progress, self.parts
        return RunResult(
            status=status,
            **parts.record,
            data=parts.inputs.trained_on(at.bad_images),
            epochs=at.epoch,
            steps=at.step,
            device=device_name(self.world.device),
            versions=versions() | device_versions(self.world.device),
            world_size=self.world.size,
            peak_memory_bytes=peak_memory(self.world.device),
            throughput=at.in_run.rates() | self._step_seconds(),
            evaluation=self.evaluation,
            best=at.best,
            train_images=round(at.in_run.images),
            train_tokens=round(at.in_run.tokens),
            train_flops=at.in_run.flops,
            train_loss=self.train_loss,
            hidden_share=at.in_run.hidden_share,
            whole_images=int(at.in_run.whole),
            rewind_weights=at.rewind_weights,
            weights_sha256=weights_digest(parts.student.model),
        )
