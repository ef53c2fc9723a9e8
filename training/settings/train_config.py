"""The settings of stage 2, under timm's names where timm has them.

Checked when made, so that a run with an impossible setting ends before data are opened. The papers' numbers stand in
`recipes.py`.
"""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from dlth.data.shards.scan import MAX_CLASSES
from dlth.tickets.ranking.budget import exact_rate
from dlth.training.settings.fields import (
    COSINE,
    FUSE_TOKENS,
    MAX_BATCH,
    MAX_EPOCHS,
    MAX_SIDE,
    NO_SCHEDULE,
    TF32,
    WHERE,
    WHICH_BLOCKS,
    WHICH_RANKER,
    Deviations,
    Integers,
    Keep,
    Means,
    Milestones,
    Pair,
    Pairs,
    ScheduleText,
    Settings,
    read_milestones,
    refuse_own_flags,
    setting,
)
from dlth.training.settings.recipes import RECIPE_MODEL, RECIPES, STUDENTS_RECIPES

Arm = Literal["ticket", "random", "dense"]
Mode = Literal["projected", "frozen", "online"]
How = Literal["sparse", "zero", "small-dense"]

WHAT, TOKENS, MODEL, OPTIM, SCHEDULE = "What is trained", "Tokens", "Model", "Optimizer", "Learning rate"
PRUNING = "Pruned weights"
AUGMENT, SELECTOR, RUN, OUTPUT = "Augmentation", "Selector (online mode)", "How it runs", "Output and checkpoints"

HOW = "How patches are left out: sparse (not computed), zero (in the image), small-dense (others as a smaller image)"
PATCH_SIZE = "Side of a patch in pixels for models without patches of one size; as the tickets', or 16, if absent."

DEFAULT_MODEL, NO_POLICY = "deit_small", "none"
OWN_FLAGS = {
    "name": "--model",
    "num_classes": "--num-classes",
    "img_size": "--img-size",
    "drop_path": "--drop-path",
    "drop_path_rate": "--drop-path",
    "pretrained": "--pretrained",
    **WHERE,
}
SELECTORS_OWN_FLAGS = {
    "name": "--selector",
    "num_classes": "--selector-checkpoint, whose head says it",
    "img_size": "--img-size",
    "pretrained": "--selector-pretrained",
    **WHERE,
}
"""Arguments of a timm model that are settings, and by which flag."""


class TrainConfig(Settings):
    """Settings of `dlth train`; field names are the flags' names."""

    recorded = True
    trained: ClassVar[str] = "a student (dlth train)"
    recipes: ClassVar[tuple[str, ...]] = STUDENTS_RECIPES

    data: str = setting(
        ...,
        WHAT,
        "Training shards: brace range, folder, glob, _info.json, address; dlth.toml's or ./shards if absent.",
        free=True,
        path="shards",
    )
    val: str | None = setting(
        None, WHAT, "Validation shards, likewise; without them nothing is evaluated.", free=True, path="shards"
    )
    split: str | None = setting(None, WHAT, "Split of an _info.json to train on.", free=True)
    val_split: str | None = setting(None, WHAT, "Split of an _info.json to evaluate on.", free=True)
    tickets: str | None = setting(
        None, WHAT, "Ticket file of the training shards: a folder, a .zip, or an address.", free=True, path="file"
    )
    val_tickets: str | None = setting(
        None,
        WHAT,
        "Ticket file of the validation shards, likewise; the twin of --tickets if absent.",
        free=True,
        path="file",
    )
    token_labels: str | None = setting(
        None,
        WHAT,
        "Token label file of the training shards, likewise: LV-ViT's patches learn from it.",
        free=True,
        path="file",
    )
    token_geometry: Literal["right", "authors"] = setting(
        "right", WHAT, "Cells of token labels as they lie in the image, or rows and columns exchanged as LV-ViT's code."
    )
    token_truth: Literal["none", "stated", "authors"] = setting(
        "none",
        WHAT,
        "How the image's label corrects the annotator's: not at all, as LV-ViT's code says, or as it does.",
    )
    out: str = setting(
        ...,
        WHAT,
        "Folder of the run: weights, logs, result, checkpoints; runs/ARM-… if absent.",
        free=True,
        path="file",
    )
    arm: Arm = setting("ticket", WHAT, "Tokens trained on: the tickets, as many random patches, or all patches.")
    mode: Mode = setting(
        "projected",
        WHAT,
        "How rankings meet augmented images: moved to a new view each epoch, moved to a few views that are replayed,"
        " or made anew each step in the view itself (the authors' way).",
    )
    recipe: str = setting("", WHAT, "Name of the recipe that the other settings started from.", free=True)

    keep: Keep | None = setting(None, TOKENS, "Share of the patches to keep; the ticket file's own if absent.")
    keep_schedule: ScheduleText = setting(
        NO_SCHEDULE,
        TOKENS,
        "cosine lets the stage rate fall from 1 step by step, the paper's adjusted schedule; milestones as in"
        " 0:0.7,280:1.0 say from which epoch on which share is kept.",
    )
    keep_schedule_start: int = setting(10, TOKENS, "Cosine: epoch at which the rate begins to fall.", ge=0)
    keep_schedule_epochs: int = setting(100, TOKENS, "Cosine: epochs over which the rate falls.", gt=0)
    missing: Literal["error", "dense", "random", "skip"] = setting(
        "error", TOKENS, "What to do with an image that has no ticket."
    )
    bad_images: Literal["error", "skip"] = setting(
        "error", TOKENS, "A corrupt image stops the run, or is left out, listed and counted."
    )
    random_tokens: Literal["epoch", "fixed"] = setting(
        "epoch", TOKENS, "Random arm: draw an image's ranking anew each epoch, or once for the run."
    )
    hidden: Literal["demote", "keep"] = setting(
        "demote",
        TOKENS,
        "Patches that erasing or a warp has hidden: they fall behind in every arm's ranking, or keep their rank.",
    )
    frozen_views: int = setting(1, TOKENS, "Frozen mode: seeded views of each image, replayed in turn.", gt=0)

    model: str | None = setting(
        None,
        MODEL,
        f"Student: a friendly or timm name; what --init-from records if absent, or the recipe's, {DEFAULT_MODEL}.",
    )
    model_kwargs: Pairs = setting({}, MODEL, "Further arguments of the timm model, e.g. patch_size=8,depths=[2,2].")
    how: How | None = setting(None, MODEL, HOW + "; sparse where the model can, otherwise zero.")
    patch_size: int | None = setting(None, MODEL, PATCH_SIZE, gt=0, le=MAX_SIDE)
    num_classes: int | None = setting(
        None, MODEL, "Size of the head; the training shards' classes if absent.", gt=0, le=MAX_CLASSES
    )
    img_size: int | None = setting(
        None, MODEL, "Side of the training view in pixels; the model's own if absent.", gt=0, le=MAX_SIDE
    )
    drop_path: float = setting(0.0, MODEL, "Stochastic depth rate of the last block.", ge=0, lt=1)
    pretrained: bool = setting(False, MODEL, "Start from timm's published weights.")
    init_from: str | None = setting(
        None, MODEL, "Start from these weights: a run's folder, safetensors, or .pth.", free=True, path="file"
    )
    mean: Means | None = setting(None, MODEL, "Channel means of the input; the model's own if absent.")
    std: Deviations | None = setting(None, MODEL, "Channel deviations of the input; the model's own if absent.")

    mask: str | None = setting(
        None, PRUNING, "Mask of weights (mask.safetensors) under which the model is trained.", free=True, path="file"
    )
    start_step: int = setting(
        0,
        PRUNING,
        "Step at which the run begins, with schedule, order and augmentation from there on; its weights are"
        " --init-from's.",
        ge=0,
    )
    rewind_step: int | None = setting(
        None, PRUNING, "Step whose weights are kept in rewind.safetensors, to begin pruned runs with.", ge=0
    )
    init_seed: int | None = setting(None, PRUNING, "Seed of the first weights alone; --seed's if absent.", ge=0)

    epochs: int = setting(300, SCHEDULE, "Passes over the training images.", gt=0, le=MAX_EPOCHS)
    lr: float | None = setting(None, SCHEDULE, "Learning rate; lr-base · global batch / lr-base-size if absent.", gt=0)
    lr_base: float = setting(5e-4, SCHEDULE, "Learning rate at a global batch of lr-base-size.", gt=0)
    lr_base_size: int = setting(512, SCHEDULE, "Global batch that lr-base is meant for.", gt=0)
    sched: Literal["cosine", "tanh", "step", "multistep", "poly"] = setting(
        "cosine", SCHEDULE, "Schedule of the learning rate."
    )
    sched_on_updates: bool = setting(False, SCHEDULE, "Change the learning rate each step, not each epoch.")
    warmup_epochs: int = setting(5, SCHEDULE, "Epochs of linear warm-up.", ge=0)
    warmup_lr: float = setting(1e-6, SCHEDULE, "Learning rate at which the warm-up begins.", ge=0)
    min_lr: float = setting(
        1e-5, SCHEDULE, "Learning rate at which the schedule ends; at most the peak, unless --lr is given too.", ge=0
    )
    decay_epochs: float = setting(90, SCHEDULE, "Epochs between the steps of the step schedule.", gt=0)
    decay_milestones: Milestones = setting(
        (90, 180, 270), SCHEDULE, "Epochs from whose first step on the multistep schedule is a step lower."
    )
    decay_rate: float = setting(
        0.1, SCHEDULE, "Factor of the step and multistep schedules, power of the poly schedule.", gt=0
    )

    opt: str = setting("adamw", OPTIM, "Optimizer, any of timm's.")
    opt_eps: float | None = setting(None, OPTIM, "Epsilon of the optimizer; its own if absent.", gt=0)
    opt_betas: Pair | None = setting(None, OPTIM, "Betas of the optimizer; its own if absent.")
    momentum: float = setting(0.9, OPTIM, "Momentum of optimizers that have it.", ge=0, lt=1)
    weight_decay: float = setting(0.05, OPTIM, "Weight decay (biases and norms are left out).", ge=0)
    clip_grad: float | None = setting(None, OPTIM, "Largest norm of the gradient; not clipped if absent.", gt=0)
    layer_decay: float | None = setting(None, OPTIM, "Factor on the learning rate per layer, from the head down.", gt=0)
    batch_size: int = setting(
        128,
        OPTIM,
        "Images per process and forward; times processes and accumulation is a step.",
        gt=0,
        le=MAX_BATCH,
        free=True,
    )
    grad_accum_steps: int = setting(1, OPTIM, "Forwards whose gradients make one step.", gt=0, le=MAX_BATCH, free=True)
    model_ema: bool = setting(False, OPTIM, "Keep a moving average of the weights, evaluated at the end.")
    model_ema_decay: float = setting(0.9998, OPTIM, "Decay of the moving average.", ge=0, lt=1)
    model_ema_warmup: bool = setting(False, OPTIM, "Let the decay of the moving average grow from zero.")
    patch_weight: float = setting(1.0, OPTIM, "LV-ViT: weight of its patch tokens' loss beside the image's.", ge=0)
    nan_patience: int = setting(
        5, OPTIM, "Steps in a row with a loss or gradient that is not finite, after which the run ends.", gt=0
    )

    smoothing: float = setting(0.0, AUGMENT, "Label smoothing.", ge=0, lt=1)
    mixup: float = setting(0.0, AUGMENT, "Alpha of mixup; 0 is off.", ge=0)
    cutmix: float = setting(0.0, AUGMENT, "Alpha of cutmix; 0 is off.", ge=0)
    mix_token: float = setting(0.0, AUGMENT, "Alpha of MixToken: cutmix of embedded patches (ViTs); 0 is off.", ge=0)
    mixup_prob: float = setting(1.0, AUGMENT, "Share of groups that are mixed.", ge=0, le=1)
    mixup_switch_prob: float = setting(0.5, AUGMENT, "Share of cutmix where both are on.", ge=0, le=1)
    mixup_off_epoch: int = setting(0, AUGMENT, "Epoch from which nothing is mixed; 0 is never.", ge=0)
    mix_group: int = setting(
        128,
        AUGMENT,
        "Images that are mixed alike, with one weight and box; as many by any processes.",
        gt=0,
        multiple_of=2,
    )
    aug_repeats: int = setting(
        0, AUGMENT, "Views of an image in an epoch, which then shows as many images fewer; 0 is off.", ge=0, le=1_000
    )
    drop_last: bool = setting(False, AUGMENT, "Leave out what does not fill the last batch, unless it is the only one.")
    aa: str | None = setting(None, AUGMENT, "RandAugment, e.g. rand-m9-mstd0.5-inc1; none switches a recipe's off.")
    color_jitter: float = setting(0.0, AUGMENT, "Strength of colour jitter (brightness, contrast, saturation).", ge=0)
    reprob: float = setting(0.0, AUGMENT, "Share of images in which a box is erased.", ge=0, le=1)
    scale: Pair = setting((0.08, 1.0), AUGMENT, "Least and most area of a crop, as a share of the image.")
    ratio: Pair = setting((0.75, 4 / 3), AUGMENT, "Least and most aspect ratio of a crop.")
    hflip: float = setting(0.5, AUGMENT, "Share of images that are mirrored.", ge=0, le=1)
    train_interpolation: Literal["bilinear", "bicubic"] = setting("bicubic", AUGMENT, "Resampling of training crops.")
    crop_pct: float | None = setting(
        None,
        AUGMENT,
        "Share of the evaluation crop; that of --val-tickets if absent, or of --init-from, or the model's own.",
        gt=0,
        le=1,
    )
    shuffle_window: int = setting(
        16_384, AUGMENT, "Images among which the order is shuffled; shards are shuffled too.", gt=0
    )

    selector: str | None = setting(
        None,
        SELECTOR,
        "Selector of the online mode, which may differ from the student; what its weights record if absent.",
    )
    selector_checkpoint: str | None = setting(
        None, SELECTOR, "Weights of the selector: a run's folder, safetensors, or .pth.", free=True, path="file"
    )
    selector_pretrained: bool = setting(False, SELECTOR, "Take timm's published weights for the selector.")
    selector_kwargs: Pairs = setting({}, SELECTOR, "Further arguments of the selector's timm model.")
    selector_ranker: str | None = setting(None, SELECTOR, WHICH_RANKER)
    selector_blocks: Integers | None = setting(None, SELECTOR, WHICH_BLOCKS)
    selector_fuse_tokens: bool | None = setting(None, SELECTOR, FUSE_TOKENS)

    seed: int = setting(42, RUN, "Seed of weights, order, augmentation and random tokens.", ge=0)
    device: str = setting("auto", RUN, "cuda, cpu, cuda:1; auto takes a GPU where there is one.", free=True)
    amp: bool = setting(False, RUN, "Compute in --amp-dtype where it is safe.")
    amp_dtype: Literal["bfloat16", "float16"] = setting("bfloat16", RUN, "Precision under --amp.")
    tf32: bool = setting(False, RUN, TF32)
    deterministic: bool = setting(False, RUN, "Take only kernels that give the same bits at each call.", free=True)
    torchcompile: str | None = setting(None, RUN, "Compile the model with this backend, e.g. inductor.")
    channels_last: bool = setting(False, RUN, "Keep images in channels-last memory.")
    workers: int = setting(
        4,
        RUN,
        "Processes that read and augment, for each of training. With 0 a decoder's crash ends all.",
        ge=0,
        free=True,
    )
    validation_batch_size: int | None = setting(
        None, RUN, "Images per forward of evaluation.", gt=0, le=MAX_BATCH, free=True
    )

    val_interval: int = setting(
        1, OUTPUT, "Epochs between evaluations; the last epoch is always evaluated.", gt=0, free=True
    )
    resume: str | None = setting(
        None, OUTPUT, "Go on from a checkpoint: auto (the newest in --out, if any) or its path.", free=True, path="file"
    )
    checkpoint_hist: int = setting(2, OUTPUT, "Checkpoints kept.", gt=0, free=True)
    checkpoint_steps: int | None = setting(
        None, OUTPUT, "Save every so many steps, besides each epoch's end.", gt=0, free=True
    )
    log_interval: int = setting(50, OUTPUT, "Steps between log lines.", gt=0, free=True)
    log_tensorboard: bool = setting(False, OUTPUT, "Write TensorBoard events as well.", free=True)

    @property
    def student(self) -> str:
        """Name of the student's model."""
        return self.model or RECIPE_MODEL.get(self.recipe, DEFAULT_MODEL)

    @property
    def told_mode(self) -> str:
        """The mode as results tell it: empty where nothing but chance is ranked in the usual way."""
        return self.mode if self.arm == "ticket" or self.mode != "projected" else ""

    @property
    def rand_augment(self) -> str:
        """The augmentation policy; empty for none."""
        return "" if self.aa is None or self.aa == NO_POLICY else self.aa

    @property
    def milestones(self) -> tuple[tuple[int, str], ...]:
        """(epoch, share kept from it on) of each milestone of the keep schedule; empty where it has a name."""
        return () if self.keep_schedule in (NO_SCHEDULE, COSINE) else read_milestones(self.keep_schedule)

    @property
    def share(self) -> str | None:
        """The share of the patches that the run is about and evaluates with: that of `keep`, else of a milestone at
        epoch 0 that drops any; None: the ticket file's own.
        """
        if self.keep is not None:
            return self.keep
        return next((share for epoch, share in self.milestones if epoch == 0 and exact_rate(share) < 1), None)

    @property
    def users_crop_pct(self) -> float | None:
        """The share of the evaluation crop if the user gave one: a recipe's own gives way to what files say."""
        return None if self.crop_pct == RECIPES.get(self.recipe, {}).get("crop_pct") else self.crop_pct

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse_own_flags(self.model_kwargs, "--model-kwargs", OWN_FLAGS)
        refuse_own_flags(self.selector_kwargs, "--selector-kwargs", SELECTORS_OWN_FLAGS)
        no_selector = self.selector is None and self.selector_checkpoint is None
        if self.mode == "online" and self.arm == "ticket" and no_selector:
            raise ValueError("mode online selects in the loop: name the selector (--selector, --selector-checkpoint)")
        if self.mode != "online" and self.arm == "ticket" and self.tickets is None:
            raise ValueError(
                "the ticket arm needs a ticket file (--tickets), or --mode online with a --selector; or --arm dense,"
                " which uses none"
            )
        if self.mode != "projected" and self.arm == "dense":
            raise ValueError(f"mode {self.mode} is a way of choosing patches; the dense arm uses none")
        if self.mode == "frozen" and self.frozen_views < self.aug_repeats:
            raise ValueError(
                f"an epoch shows each image in {self.aug_repeats} views (--aug-repeats), and --frozen-views"
                f" {self.frozen_views} of them are replayed: equal pictures would count as several. Give at least"
                f" --frozen-views {self.aug_repeats}, or --aug-repeats 0"
            )
        recorded = self.mode == "online" and self.selector_checkpoint is not None  # a trained selector has a rate
        if self.arm in ("ticket", "random") and self.tickets is None and self.share is None and not recorded:
            raise ValueError(f"nothing says how many patches the {self.arm} arm keeps: give --keep, or --tickets")
        if self.mix_token and (self.mixup or self.cutmix):
            raise ValueError("--mix-token takes the place of --mixup and --cutmix: set those to 0")
        if self.arm == "dense" and self.keep_schedule != NO_SCHEDULE:
            raise ValueError("the dense arm keeps all patches: a keep schedule has no meaning there")
        starts = [self.keep_schedule_start] if self.keep_schedule == COSINE else [epoch for epoch, _ in self.milestones]
        if starts and starts[-1] >= self.epochs:
            raise ValueError(f"a keep schedule from epoch {starts[-1]} on never begins in {self.epochs}")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(f"{self.warmup_epochs} epochs of warm-up do not fit in {self.epochs} epochs")
        if self.sched == "multistep":
            self._check_decay_milestones()
        return self

    def _check_decay_milestones(self) -> None:
        """Raises ValueError for milestones that do not rise, or that no epoch between the first and the end is."""
        falls = self.decay_milestones
        if list(falls) != sorted(set(falls)):
            raise ValueError(f"--decay-milestones must rise, found {','.join(map(str, falls))}")
        if falls and not (falls[0] > 0 and falls[-1] < self.epochs):
            wrong = falls[0] if falls[0] <= 0 else falls[-1]
            raise ValueError(
                f"--decay-milestones: the learning rate cannot fall at epoch {wrong} of {self.epochs}: give epochs"
                f" from 1 to {self.epochs - 1}, counted from 0"
            )
