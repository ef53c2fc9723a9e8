"""One training run: inputs, set-up, the loop and its step, schedule, checkpoints, resuming, the log and the result.

May import: settings, device, distributed, models, selectors, evaluation, pruning.
"""
