"""Where a run begins and whose weights it keeps on the way: what pruning asks of an ordinary run, checked."""

from dlth.tickets.errors import InputError
from dlth.training.settings.train_config import TrainConfig


def check_steps(config: TrainConfig, steps_per_epoch: int) -> None:
    """Raises InputError for a first step, or a rewinding point, at which no step of the run is left to take."""
    last = config.epochs * steps_per_epoch - 1
    run = f"{config.epochs} epochs of {steps_per_epoch} steps, {last + 1} in all"
    if config.start_step > last:
        raise InputError(
            f"--start-step {config.start_step} is at or beyond the end of the run, which has {run}: no step would be"
            f" taken. Give at most {last}"
        )
    if config.rewind_step is not None and not config.start_step <= config.rewind_step <= last:
        raise InputError(
            f"--rewind-step {config.rewind_step} is no step from which a run can go on: it begins at step"
            f" {config.start_step} and has {run}. Give {config.start_step} to {last}"
        )
