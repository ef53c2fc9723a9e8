"""How many patches are kept, wherever the number comes from: the flag, the ticket file, the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.tickets import select_tickets
from safetensors.torch import load_file

from dlth.data.shards.index import open_index
from dlth.tickets import Budget, TicketStore, ViewSpec, num_kept
from dlth.tickets.errors import InputError
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.runs import checkpoint
from dlth.training.runs.loop import planned, train
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0}


def tokens(result: Any) -> dict[str, int]:
    """Patches kept in evaluation, by kind of tokens."""
    table = result.evaluation["model"] if hasattr(result, "evaluation") else result.table()
    return {kind: row["tokens"] for kind, row in table.items()}


def settings(config: TrainConfig, **overrides: object) -> EvalConfig:
    values = {"checkpoint": config.out, "val": config.val, "val_tickets": config.val_tickets}
    return EvalConfig(**{**values, "workers": 0, "batch_size": 4, "device": "cpu", **overrides})


@pytest.mark.parametrize(
    ("budget", "form"),
    [
        (Budget.from_stage_keep("0.7", 9, 1), "full"),
        (Budget.from_stage_keep("0.7", 9, 1), "top"),
        (Budget.from_tokens(6, 9, 1), "full"),
    ],
    ids=["stage keep", "stage keep, validation top", "tokens"],
)
def test_k_is_the_ticket_files_own_and_not_its_rounded_share_times_the_patches(
    make_run: MakeRun, tmp_path: Path, budget: Budget, form: str
) -> None:
    """7 of 9 patches are written as 0.777778, whose ceiling is 8: training and evaluation keep 7."""
    assert num_kept(budget.keep, 9) == budget.k + 1
    config = make_run(img_size=24, **SHORT)
    tickets = {
        name: str(
            select_tickets(
                open_index(data), tmp_path / f"{name}.zarr", view=view, split=split, budget=budget, form=kind
            ).path
        )
        for name, data, view, split, kind in (
            ("tickets", config.data, ViewSpec("whole", 24, 24), "train", "full"),
            ("val_tickets", config.val, ViewSpec("center", 24, 24, "0.9", "bicubic"), "val", form),
        )
    }
    config = make_run(img_size=24, **SHORT, **tickets)
    result = train(config)
    assert result.k == budget.k
    assert tokens(result) == {"dense": 9, "ticket": budget.k, "random": budget.k}
    note = WeightsNote.read(Path(config.out) / "model.safetensors")
    assert note is not None
    assert note.k == budget.k
    assert tokens(evaluate(settings(config))) == tokens(result)
    plain = tmp_path / "plain.safetensors"
    checkpoint.write_tensors(plain, load_file(Path(config.out) / "model.safetensors"))
    named = {"checkpoint": str(plain), "model": config.model, "model_kwargs": config.model_kwargs, "img_size": 24}
    assert tokens(evaluate(settings(config, **named))) == tokens(result)


def test_the_flag_wins_over_the_files(make_run: MakeRun) -> None:
    """--keep 0.3 of 16 patches is 5, in training and in evaluation, whatever tickets and weights say."""
    config = make_run(keep="0.3", **SHORT)
    assert tokens(train(config)) == {"dense": 16, "ticket": 5, "random": 5}
    assert tokens(evaluate(settings(config))) == {"dense": 16, "ticket": 5, "random": 5}
    assert tokens(evaluate(settings(config, keep="0.25"))) == {"dense": 16, "ticket": 4, "random": 4}


def test_a_dense_run_is_measured_on_as_many_tokens_as_the_validation_tickets_have(make_run: MakeRun) -> None:
    """Dense training keeps all; its evaluation measures ticket and random tokens of the validation file's k."""
    config = make_run(arm="dense", tickets=None, **SHORT)
    assert planned(config)["tokens"] == "16 of 16 patches"
    result = train(config)
    assert result.k == 16
    assert tokens(result) == {"dense": 16, "ticket": 8, "random": 8}
    table = evaluate(settings(config)).table()
    assert {kind: row["top1"] for kind, row in table.items()} == {
        kind: row["top1"] for kind, row in result.evaluation["model"].items()
    }
    assert TicketStore(config.val_tickets).header.k == 8
    assert tokens(evaluate(settings(config, val_tickets=None))) == {"dense": 16}


def test_weights_that_name_an_impossible_number_of_patches_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """What a weights file says of itself is checked: 99 of 16 patches is an error, unless --keep says otherwise."""
    config = make_run(val=None, val_tickets=None, **SHORT)
    train(config)
    weights = Path(config.out) / "model.safetensors"
    odd = tmp_path / "odd.safetensors"
    note = WeightsNote.read(weights)
    assert note is not None
    checkpoint.write_tensors(odd, load_file(weights), note.to_json() | {"k": 99})
    whole = make_run()
    with pytest.raises(InputError, match=r"trained on 99 of 16 patches: give --keep"):
        evaluate(settings(whole, checkpoint=str(odd)))
    assert tokens(evaluate(settings(whole, checkpoint=str(odd), keep="0.5")))["ticket"] == 8
