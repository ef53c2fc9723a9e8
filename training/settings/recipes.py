"""The recipes of stage 2: the numbers that papers trained with, as *differences from the defaults* of `TrainConfig`.

The defaults are plain (no augmentation but crop and flip, nothing averaged), so that what a recipe adds can be read in
its few lines; `layering.py` says who wins. Where a recipe deviates from its source is said beside it.
"""

from typing import Any

_DEIT: dict[str, Any] = {
    "batch_size": 256,
    "drop_path": 0.1,
    "smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "aa": "rand-m9-mstd0.5-inc1",
    "reprob": 0.25,
    "aug_repeats": 3,
    "drop_last": True,
    "crop_pct": 0.875,
    "model_ema": True,
    "model_ema_decay": 0.99996,
}

RECIPES: dict[str, dict[str, Any]] = {
    # DeiT's, which is the paper's: 4 processes of 256 images make its global batch of 1,024.
    "deit": _DEIT,
    # LV-ViT's, as the paper's authors run it: 8 processes of 128 images. Deviates in that the learning rate follows the
    # global batch, MixToken draws a box for each mix group, by today's rule of timm, and pairs neighbours, crops are
    # bicubic, not at random, and the ten epochs at the lowest rate that theirs adds are left out (--epochs says 300).
    "lvvit": {
        "lr_base": 1.6e-3,
        "lr_base_size": 1024,
        "drop_path": 0.1,
        "smoothing": 0.1,
        "mix_token": 1.0,
        "aa": "rand-m9-mstd0.5-inc1",
        "reprob": 0.25,
        "drop_last": True,
        "model_ema": True,
        "model_ema_decay": 0.99992,
    },
    # The authors' for CIFAR-10: as for ImageNet, at 224 px, with 8 processes of 32 images, which is one of 256 here.
    # At 32 px, with patches of 4, DeiT's code crops the image padded by 4 px and keeps its size; here crops are scaled
    # as at 224 px, and the evaluation crop is still 0.875 unless --crop-pct 1 is given.
    "cifar10": _DEIT,
    # EViT's fine-tuning, 8 processes of 256 images in the paper's scripts: the learning rate of 2e-5 is for 512 images,
    # as their code scales it; 2e-6, at its end, is for any number. They train in evaluation mode, so without drop path.
    # EViT's own script fuses what falls (--fuse-tokens), theirs do not.
    "evit": _DEIT
    | {
        "epochs": 30,
        "lr_base": 2e-5,
        "min_lr": 2e-6,
        "warmup_epochs": 0,
        "weight_decay": 1e-6,
        "drop_path": 0.0,
    },
    # Swin-T's, as its authors train it: 8 processes of 128 images, no weights averaged. Deviates as the recipe deit
    # does (order, seeds, float32: docs/training.md).
    "swin": {
        "drop_path": 0.2,
        "sched_on_updates": True,
        "warmup_epochs": 20,
        "warmup_lr": 1e-6,
        "clip_grad": 5.0,
        "smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "aa": "rand-m9-mstd0.5-inc1",
        "reprob": 0.25,
        "drop_last": True,
        "crop_pct": 0.875,
    },
    # The paper's contrast: 8 processes of 128 images, 90 epochs, lr 0.2048, the rest as their script has it by default.
    # Deviates in that crops are bicubic, not at random, and the ten epochs at the lowest rate that theirs adds are left
    # out.
    "resnet50": {
        "epochs": 90,
        "opt": "sgd",
        "lr_base": 0.2048,
        "lr_base_size": 1024,
        "warmup_epochs": 3,
        "warmup_lr": 1e-4,
        "min_lr": 1e-6,
        "weight_decay": 2e-5,
        "smoothing": 0.1,
        "color_jitter": 0.4,
        "drop_last": True,
        "crop_pct": 0.95,
    },
    # ResNet-20's for CIFAR, as the lottery ticket papers train it: 160 epochs of 128 images, a tenth of the rate from
    # half and from three quarters of them on (He et al.: 32,000 and 48,000 of 64,000 steps, 82 and 123 epochs of 164).
    # Deviates in that their crops are of the image padded by 4 px and keep its size, where here crops of as much of the
    # image are enlarged to it; and in that norms and biases are not decayed.
    "resnet20": {
        "epochs": 160,
        "opt": "momentum",  # timm's sgd is Nesterov's
        "lr_base": 0.1,
        "lr_base_size": 128,
        "sched": "multistep",
        "decay_milestones": (80, 120),
        "warmup_epochs": 0,
        "weight_decay": 1e-4,
        "scale": (0.766, 1.0),
        "ratio": (0.875, 1.143),
        "crop_pct": 1.0,
    },
    # A minute on a CPU for a few thousand small images.
    "smoke": {
        "epochs": 6,
        "batch_size": 128,
        "lr": 2e-3,
        "warmup_epochs": 1,
        "sched_on_updates": True,
        "scale": (0.8, 1.0),
        "hflip": 0.0,
        "workers": 1,
        "shuffle_window": 1024,
        "log_interval": 10,
    },
}
"""What each recipe sets otherwise than the defaults."""

SELECTORS_RECIPES = ("evit", "deit", "cifar10", "smoke")
"""Recipes of a selector's training: no other's model can select, or its numbers are of what a selector has not."""
STUDENTS_RECIPES = tuple(name for name in RECIPES if name != "evit")
"""Recipes of a student's training: EViT's fine-tuning is a selector's."""

RECIPE_MODEL = {
    "lvvit": "lvvit_small",
    "swin": "swin_tiny_patch4_window7_224",
    "resnet50": "resnet50",
    "resnet20": "resnet20",
}
"""The student of a recipe's run that names none and starts from no weights that do."""

RECIPE_BATCH = {
    **{"deit": 1024, "lvvit": 1024, "evit": 2048, "cifar10": 256, "swin": 1024},
    **{"resnet50": 1024, "resnet20": 128},
}
"""Images of a step that a recipe's numbers are meant for."""

UNLESS_SAID = "deit"
"""The recipe of a run on the command line that names none: the paper's."""
SELECTORS_UNLESS_SAID = "evit"
"""The same of a selector's training."""
