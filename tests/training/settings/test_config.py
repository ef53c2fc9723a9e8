"""Settings of stage 2: who wins, what is refused, and the way to TOML and back."""

from datetime import date
from pathlib import Path

import pytest
import torch

from dlth.data.loading.order import DEFAULT_WINDOW
from dlth.tickets.errors import InputError, MissingFileError
from dlth.training.runs.optim import learning_rate, lowest_rate, make_optimizer, make_schedule
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.layering import checked, layered
from dlth.training.settings.recipes import RECIPES
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.toml_text import to_toml
from dlth.training.settings.train_config import TrainConfig

NEEDED = {"data": "train", "out": "run", "tickets": "tickets.zarr"}


def test_flags_win_over_the_file_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    """Each layer overrides the ones below it, and only where it speaks."""
    file = tmp_path / "run.toml"
    file.write_text("epochs = 30\nmixup = 0.4\nweight_decay = 0.1\n")
    config = layered(NEEDED | {"epochs": 3, "warmup_epochs": 1}, recipe="deit", config_file=file)
    assert (config.epochs, config.mixup, config.cutmix, config.momentum) == (3, 0.4, 1.0, 0.9)
    assert (config.weight_decay, config.recipe) == (0.1, "deit")


def test_a_recipe_named_in_the_file_counts(tmp_path: Path) -> None:
    """`recipe` may stand in the file, as it does in the config.toml of a run."""
    file = tmp_path / "run.toml"
    file.write_text('recipe = "smoke"\n')
    assert layered(NEEDED, config_file=file).epochs == RECIPES["smoke"]["epochs"]


def test_the_lvvit_recipe_holds_the_papers_numbers_and_names_a_student_where_nobody_does() -> None:
    """Its model gives way to a user's; MixToken stands in the place of mixup and cutmix."""
    config = layered(NEEDED, recipe="lvvit")
    assert (config.student, config.model) == ("lvvit_small", None)
    assert layered(NEEDED | {"model": "lvvit_tiny"}, recipe="lvvit").student == "lvvit_tiny"
    assert learning_rate(config, 1024) == pytest.approx(1.6e-3)
    assert (config.mix_token, config.mixup, config.cutmix, config.patch_weight) == (1.0, 0.0, 0.0, 1.0)
    assert (config.epochs, config.drop_path, config.model_ema_decay, config.batch_size) == (300, 0.1, 0.99992, 128)


def test_the_deit_recipe_holds_the_papers_numbers() -> None:
    """A changed number here changes what 'the paper's recipe' means in every result that names it."""
    config = layered(NEEDED, recipe="deit")
    assert learning_rate(config, 1024) == pytest.approx(1e-3)
    numbers = (config.opt, config.weight_decay, config.warmup_epochs, config.sched, config.epochs, config.aa)
    assert numbers == ("adamw", 0.05, 5, "cosine", 300, "rand-m9-mstd0.5-inc1")
    regularisation = (config.mixup, config.cutmix, config.reprob, config.smoothing, config.drop_path)
    assert regularisation == (0.8, 1.0, 0.25, 0.1, 0.1)
    assert (config.model_ema, config.model_ema_decay, config.batch_size * 4) == (True, 0.99996, 1024)
    assert (config.aug_repeats, config.drop_last, config.mix_group, config.crop_pct) == (3, True, 128, 0.875)


def test_the_resnet20_recipe_holds_the_papers_numbers() -> None:
    """A tenth of the rate from the first step of epochs 80 and 120 on, whether it is set by epoch or by step; momentum
    is plain, not Nesterov's.
    """
    config = layered(NEEDED, recipe="resnet20")
    assert (config.student, config.momentum, config.weight_decay) == ("resnet20", 0.9, 1e-4)
    assert (config.batch_size, config.epochs, config.warmup_epochs) == (128, 160, 0)
    for by_step in (False, True):
        one = config.model_copy(update={"sched_on_updates": by_step})
        optimizer, lowest = make_optimizer(torch.nn.Linear(2, 2), one, 128), lowest_rate(one, 128, pytest.fail)
        assert [(group["momentum"], group["nesterov"]) for group in optimizer.param_groups] == [(0.9, False)] * 2
        set_rate = make_schedule(optimizer, one, 7, lowest)
        falls = [(0, 0), (79, 6), (80, 0), (119, 6), (120, 0), (159, 6)]
        rates = [set_rate(epoch, 7 * epoch + step) for epoch, step in falls]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_milestones_follow_the_length_of_a_run_unless_a_user_gave_them() -> None:
    """They stay at the shares of the recipe's length, or of the defaults', and that is said; a user's own, none too,
    are taken as they are, and refused where the run has no such epoch.
    """
    notes: list[str] = []
    short = layered(NEEDED | {"epochs": 3}, recipe="resnet20", note=notes.append)
    assert short.decay_milestones == (1, 2)
    assert notes == ["decay_milestones is 1,2 in a run of 3 epochs, not the 80,120 of recipe resnet20"]
    assert layered(NEEDED | {"epochs": 1}, recipe="resnet20").decay_milestones == ()
    assert layered(NEEDED | {"epochs": 100, "sched": "multistep"}).decay_milestones == (30, 60, 90)
    given = {"epochs": "9", "sched": "multistep"}
    for text, falls in (("4,8", (4, 8)), ("", ())):
        assert layered(NEEDED | given | {"decay_milestones": text}, recipe="resnet20").decay_milestones == falls
    refused = {"8,4": "must rise, found 8,4", "0,4": "at epoch 0 of 9", "4,9": "at epoch 9 of 9: give epochs from 1 to"}
    for text, why in refused.items():
        with pytest.raises(InputError, match=f"--decay-milestones.*{why}"):
            layered(NEEDED | given | {"decay_milestones": text})


@pytest.mark.parametrize(
    ("given", "batch", "ends_at"),
    [
        ({}, 32, 1.25e-6),
        ({}, 64, 2e-6),
        ({"min_lr": 1e-5}, 32, 1.25e-6),
        ({"lr": 1e-6}, 2048, 1e-6),
        ({"lr": 1e-6, "min_lr": 1e-5}, 32, 1e-5),
    ],
    ids=str,
)
def test_the_learning_rate_does_not_end_above_its_peak(given: dict[str, float], batch: int, ends_at: float) -> None:
    """The peak follows the batch and min_lr does not: where it is above, the rate stays and that is said; but both
    rates of a user are taken as they are.
    """
    config = layered({"data": "d", "out": "run"} | given, recipe="evit", kind=SelectorTrainConfig)
    notes: list[str] = []
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config, batch)
    set_rate = make_schedule(optimizer, config, 3, lowest_rate(config, batch, notes.append))
    rates = [set_rate(epoch, 3 * epoch) for epoch in range(31)]
    assert rates[-1] == pytest.approx(ends_at)
    assert len(notes) == (ends_at < config.min_lr)
    assert rates == sorted(rates, reverse="min_lr" not in given or "lr" not in given)


def test_toml_and_back_is_the_same_configuration(tmp_path: Path) -> None:
    """What --print-config shows, --config reads: every kind of value survives, awkward text too."""
    overrides = {
        "model_kwargs": "patch_size=8,depths=[2,1],no_embed_class=true,window=(7, 7),act_layer=gelu",
        "keep": 0.7,
        "selector_blocks": "1,2",
        "opt_betas": "0.9,0.95",
        "init_from": 'a "quoted"\\path\u007f\u00e9.pth',
        "lr": 1e-8,
        "selector_kwargs": {"\U0001f600": 1, "day": date(2020, 1, 31), "deep": {"a b": [1, [2.5]]}},
    }
    config = layered(NEEDED | overrides, recipe="deit")
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert layered({}, config_file=file) == config
    assert config.keep == "0.7"
    kwargs = {"patch_size": 8, "depths": [2, 1], "no_embed_class": True, "window": [7, 7], "act_layer": "gelu"}
    assert config.model_kwargs == kwargs
    assert layered(NEEDED | {"selector_kwargs": overrides["model_kwargs"]}).selector_kwargs == kwargs


@pytest.mark.parametrize("off", ["none", ""])
def test_a_recipes_augmentation_policy_can_be_switched_off(off: str, tmp_path: Path) -> None:
    """`--aa none` and an empty text are no policy, and are read back from what the run writes."""
    config = layered(NEEDED | {"aa": off}, recipe="deit")
    assert config.rand_augment == ""
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert layered({}, config_file=file) == config


@pytest.mark.parametrize(
    ("overrides", "recipe", "message"),
    [
        ({"mix_group": 3}, None, r"--mix-group: .*multiple of 2"),
        ({"learning_rate": 1}, None, r"unknown setting among the flags: 'learning_rate'"),
        ({"weigth_decay": 1}, None, r"did you mean 'weight_decay'\?"),
        (
            {},
            "diet",
            rf"there is no recipe 'diet'; there are {', '.join(TrainConfig.recipes)}. \(did you mean 'deit'\?\)",
        ),
        ({}, "evit", r"recipe evit is not for a student \(dlth train\); deit, lvvit, .* are"),
        ({"keep": "70%"}, None, r"--keep: .*got '70%'$"),
        ({"lr": "fast"}, None, r"--lr: .*found fast"),
        ({"drop_path": 1.5}, None, r"--drop-path: .*less than 1"),
        ({"lr": float("nan")}, None, r"--lr: .*finite"),
        ({"tickets": None}, None, r"the ticket arm needs a ticket file.* --arm dense"),
        ({"mode": "online"}, None, r"name the selector"),
        ({"arm": "random", "tickets": None}, None, r"how many patches the random arm keeps"),
        ({"arm": "dense", "mode": "frozen"}, None, r"the dense arm uses none"),
        (
            {"mode": "frozen", "frozen_views": 2},
            "deit",
            r"--frozen-views 2 of them are replayed: .* at least .*-views 3",
        ),
        ({"arm": "dense", "keep_schedule": "cosine"}, None, r"has no meaning"),
        ({"epochs": 3, "warmup_epochs": 5}, None, r"5 epochs of warm-up do not fit in 3"),
        ({"model_kwargs": "depth=2,num_classes=5"}, None, r"--model-kwargs num_classes has a flag .*: --num-classes"),
        ({"model_kwargs": "img_size=64"}, None, r"--model-kwargs img_size has a flag of its own: --img-size"),
        ({"model_kwargs": "device=meta"}, None, r"--model-kwargs device has a flag of its own: --device"),
        ({"selector_kwargs": "dtype=float16"}, None, r"--selector-kwargs dtype has a flag of its own: --amp-dtype"),
        ({"selector_blocks": ""}, None, r"--selector-blocks: .*at least 1 item"),
        ({"selector_kwargs": "img_size=64"}, None, r"--selector-kwargs img_size has a flag of its own: --img-size"),
        ({"selector_kwargs": "num_classes=5"}, None, r"--selector-kwargs num_classes .*: --selector-checkpoint"),
        ({"keep_schedule": "cosine", "keep_schedule_start": 300}, None, r"from epoch 300 on never begins in 300"),
        ({"keep_schedule": "0:0.7,300:1.0"}, None, r"from epoch 300 on never begins in 300"),
        ({"keep_schedule": "0:0.7,9:0.8,9:1"}, None, r"--keep-schedule: epochs of milestones must rise, .* 9 after 9"),
        ({"keep_schedule": "0:1.7"}, None, r"--keep-schedule: .*at most 1, got 1.7"),
        ({"keep_schedule": "linear"}, None, r"--keep-schedule: expected none, cosine, or .* 0:0.7,280:1.0, .*linear"),
        ({"keep_schedule": "0:0.7,١:1"}, None, r"--keep-schedule: expected none, cosine, or "),
        ({"arm": "dense", "keep_schedule": "0:0.7"}, None, r"has no meaning"),
        ({"arm": "random", "tickets": None, "keep_schedule": "5:1.0"}, None, r"how many patches the random arm keeps"),
        ({"model_kwargs": "depth"}, None, r"expected name=value, found 'depth'"),
        ({"model_kwargs": "depths=[1,2"}, None, r"--model-kwargs: a bracket is not closed"),
        ({"model_kwargs": "depths=1],a=2"}, None, r"--model-kwargs: expected brackets in pairs"),
        ({"model_kwargs": "depths=" + "[" * 9_000}, None, r"brackets in pairs, at most 4 within"),
        ({"model_kwargs": "depths=[[1,nan]]"}, None, r"depths is nan, which is no number"),
        ({"epochs": True}, None, r"--epochs: true and false are no value of this setting, found True"),
        ({"lr": False}, None, r"--lr: true and false are no value"),
        ({"mean": "123.7,116.3,103.5"}, None, r"--mean, value 1: .*less than or equal to 1, found 123.7"),
        ({"std": "58.4,57.1,57.4"}, None, r"--std, value 1: .*less than or equal to 1"),
        ({"mean": "0.5,0.5"}, None, r"--mean, value 3: Field required"),
        ({"aug_repeats": 10**20}, None, r"--aug-repeats: .*less than or equal to 1000"),
        ({"momentum": 1e300}, None, r"--momentum: .*less than 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) and value else None,
)
def test_what_cannot_be_is_refused_by_name(overrides: dict, recipe: str | None, message: str) -> None:
    """A wrong setting is named as the flag it is, with what to do, before anything is opened."""
    with pytest.raises(InputError, match=message):
        layered(NEEDED | overrides, recipe=recipe)


@pytest.mark.parametrize(
    ("overrides", "recipe", "expected", "note"),
    [
        (
            {"epochs": 1},
            "smoke",
            {"warmup_epochs": 0},
            "warmup_epochs is 0 in a run of 1 epochs, not the 1 of recipe smoke",
        ),
        ({"epochs": 3}, None, {"warmup_epochs": 2}, "not the 5 of the defaults"),
        (
            {"epochs": 6, "keep_schedule": "cosine"},
            None,
            {"keep_schedule_start": 0, "keep_schedule_epochs": 2},
            "keep_schedule_epochs is 2 in a run of 6 epochs, not the 100 of the defaults",
        ),
        (
            {"epochs": 300, "keep_schedule": "cosine"},
            "deit",
            {"keep_schedule_start": 10, "keep_schedule_epochs": 100},
            "",
        ),
    ],
    ids=["recipe's warm-up", "default warm-up", "keep schedule", "all fits"],
)
def test_what_a_recipe_sets_gives_way_to_what_the_user_sets(
    overrides: dict, recipe: str | None, expected: dict, note: str
) -> None:
    """A short run is not refused for epochs that nobody asked for: they are cut to fit, and that is said."""
    said: list[str] = []
    config = layered(NEEDED | overrides, recipe=recipe, note=said.append)
    assert {name: getattr(config, name) for name in expected} == expected
    assert note in "\n".join(said)
    assert bool(said) == bool(note)


def test_a_run_is_about_the_share_that_it_begins_with() -> None:
    """--keep, else a milestone at epoch 0 that drops patches, else the ticket file's: of it evaluations speak."""
    shares = {"0:0.5,200:0.7,280:1.0": "0.5", "280:1.0": None, "0:1.0,9:0.7": None, "none": None, "cosine": None}
    assert {text: layered(NEEDED | {"keep_schedule": text}).share for text in shares} == shares
    assert layered(NEEDED | {"keep": 0.9, "keep_schedule": "0:0.5"}).share == "0.9"
    assert layered(NEEDED | {"tickets": None, "arm": "random", "keep_schedule": "0:0.7, 280:1"}).milestones == (
        (0, "0.7"),
        (280, "1"),
    )


def test_epochs_that_a_file_asks_for_do_not_give_way(tmp_path: Path) -> None:
    """What the user wrote stays, wherever it was written: the contradiction is an error, and what gives way is not."""
    file = tmp_path / "run.toml"
    file.write_text("warmup_epochs = 5\n")
    with pytest.raises(InputError, match="5 epochs of warm-up do not fit in 3"):
        layered(NEEDED | {"epochs": 3}, config_file=file)


def test_no_recipe_can_be_asked_for(tmp_path: Path) -> None:
    """`none` among the flags takes away the recipe that the file names; an error in a file says which file."""
    file = tmp_path / "run.toml"
    file.write_text('recipe = "deit"\n')
    config = layered(NEEDED | {"recipe": "none"}, config_file=file)
    assert (config.recipe, config.mixup) == ("", 0.0)
    file.write_text('lr = "fast"\n')
    with pytest.raises(InputError, match=r"--lr: .*found fast, in .*run\.toml"):
        layered(NEEDED, config_file=file)


def test_evaluation_refuses_model_arguments_that_are_flags() -> None:
    """As training does: the flag is named, where timm would be given the argument twice."""
    with pytest.raises(InputError, match=r"--model-kwargs img_size has a flag of its own: --img-size"):
        checked(EvalConfig, {"checkpoint": "run", "val": "val", "model_kwargs": "img_size=64"})


def test_the_shuffle_window_is_the_loaders_own() -> None:
    """One number, written twice as settings must not import torch."""
    assert layered(NEEDED).shuffle_window == DEFAULT_WINDOW


def test_unknown_keys_in_a_file_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """A misspelt key in a file would otherwise silently be a default."""
    file = tmp_path / "run.toml"
    file.write_text("batchsize = 3\n")
    with pytest.raises(InputError, match=r"unknown setting in .*'batchsize' \(did you mean 'batch_size'\?\)"):
        layered(NEEDED, config_file=file)
    file.write_text("epochs = = 3\n")
    with pytest.raises(InputError, match="is not TOML"):
        layered(NEEDED, config_file=file)
    with pytest.raises(MissingFileError, match="there is no configuration file"):
        layered(NEEDED, config_file=tmp_path / "none.toml")


def test_every_setting_has_a_help_text_and_a_panel() -> None:
    """Fields become flags: none may come without a description."""
    for name, field in TrainConfig.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["panel"], name
