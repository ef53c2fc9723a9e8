"""The paper's experiments as rows: which there are, what they set, and what they say of themselves."""

import json
import re
from collections import Counter
from collections.abc import Callable

import pytest

from dlth.pipeline.reproduction.experiment import matched_epochs, share_of
from dlth.pipeline.reproduction.experiments import EXPERIMENTS, chosen
from dlth.pipeline.reproduction.row_settings import row_settings
from dlth.pipeline.reproduction.table import table
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.budget import Budget
from dlth.training.settings.layering import layered
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

KEPT = {"0.95": 170, "0.9": 144, "0.85": 121, "0.8": 101, "0.75": 84}
"""Patches of 196 that the authors' rates keep."""


def test_a_share_keeps_what_the_rate_keeps() -> None:
    """The share given to a run keeps the paper's number of patches, at every stage where any share does."""
    for rate, k in KEPT.items():
        budget = Budget.from_keep(share_of(rate), 196, 3)
        assert budget.k == k
        assert rate == "0.75" or budget.stage_tokens == Budget.from_stage_keep(rate, 196, 3).stage_tokens


def test_matched_epochs_are_the_authors() -> None:
    """The random arm's epochs at matched computation are those of the authors' scripts, for ResNet's 90 their share."""
    assert [matched_epochs(rate) for rate in KEPT] == [350, 412, 489, 586, 711]
    assert {row.epochs for row in chosen(["deit-s/rc-matched/*"])} == {412, 489, 586, 711}
    assert {row.epochs for row in chosen(["deit-ti/rc-matched/*"])} == {350, 412, 489, 586, 711}
    assert {row.epochs for row in chosen(["deit-b/rc-matched/*"])} == {350, 412}


def test_every_model_of_the_table_is_there() -> None:
    """Each model has the rows of the paper's table; the names that people type are among them."""
    count = Counter(name.partition("/")[0] for name in EXPERIMENTS)
    assert count == {
        **{"deit-s": 34, "deit-ti": 22, "deit-b": 10, "deit-576": 4, "cifar10": 5, "lvvit-s": 4, "swin-t": 7},
        **{"resnet50": 3, "resnet20": 2},
    }
    for name in ("deit-s/lt/0.9", "deit-s/rc-matched/0.9", "swin-t/small-dense/rc/0.9", "resnet20/imp/lt"):
        assert name in EXPERIMENTS
    assert {name: row.reference.top1 for name, row in EXPERIMENTS.items() if row.reference is not None} == {
        "deit-ti/dense": 72.2,
        "deit-s/dense": 79.8,
        "deit-b/dense": 81.8,
        "swin-t/dense": 81.2,
        "lvvit-s/dense": 83.3,
    }


@pytest.mark.parametrize("name", [name for name, row in EXPERIMENTS.items() if not row.missing])
def test_a_rows_settings_are_settings(name: str) -> None:
    """What a row sets is what `dlth train`, or `train-selector`, takes, with its selector among the rows."""
    row = EXPERIMENTS[name]
    kind = TrainConfig if row.is_student else SelectorTrainConfig
    config = layered(
        row_settings(row) | {"data": "a", "out": "b"} | ({"tickets": "c"} if row.trained_as == "ticket" else {}),
        kind=kind,
    )
    assert (config.epochs, config.arm) == (row.epochs, row.trained_as)
    assert not row.selector or EXPERIMENTS[row.selector].rate in ("", row.rate)
    assert config.student == row.settings["model"]


def test_what_cannot_be_run_says_why() -> None:
    """Rows that this version lacks are listed with the reason; all others have caveats and say what they need."""
    missing = [name for name, row in EXPERIMENTS.items() if row.missing]
    assert missing == ["deit-s/products-qv/lt/0.9"]
    assert EXPERIMENTS[missing[0]].remarks[0].startswith("cannot be run: no student here has attention of other")
    for name in ("deit-s/imp/lt", "deit-s/imp/rr", "resnet20/imp/lt", "resnet20/imp/rr"):
        assert any("the paper gives none" in text for text in EXPERIMENTS[name].caveats)
        assert f"{21 if name.endswith('rr') else 11} trainings with each seed" in EXPERIMENTS[name].remarks
    assert "token labels" in EXPERIMENTS["lvvit-s/lt/0.85"].needs
    assert all(row.caveats for row in EXPERIMENTS.values())


def test_patterns_choose_rows() -> None:
    """A pattern means all that match, each once, in the table's order; one that means nothing names the nearest."""
    assert [row.name for row in chosen(["swin-t/zero/*", "swin-t/zero/lt/*", "deit-ti/dense"])] == [
        *("deit-ti/dense", "swin-t/zero/lt/0.8", "swin-t/zero/lt/0.9", "swin-t/zero/rc/0.8", "swin-t/zero/rc/0.9")
    ]
    with pytest.raises(InputError, match=r"no experiment is called 'deit-s/lt/0\.91' \(did you mean 'deit-s/lt/0\.9'"):
        chosen(["deit-s/lt/0.91"])


def test_the_list_is_shown_and_read(dlth: Callable[..., tuple[int, str, str]]) -> None:
    """`dlth reproduce list` prints rows, each name whole on a line of its own, with their published number, and as JSON
    all that a row is."""
    code, out, err = dlth("reproduce", "list", "deit-ti/dense", "--json")
    (row,) = json.loads(out)["experiments"]
    assert (code, row["reference"]["top1"], row["epochs"], row["k"]) == (0, 72.2, 300, 196)
    code, out, err = dlth("reproduce", "list", "*/products-qv/*")
    assert code == 0
    assert "deit-s/products-qv/lt/0.9: cannot be run: no student here" in err
    assert re.search(r"products-qv/lt/0.9 +144 +300 +1,024 +-\n", out), "what is not known is not made up"
    (pruned, _) = table(chosen(["resnet20/*"]), ())
    assert (pruned.k, pruned.epochs, pruned.weights, pruned.dense) == (4, 160, "0.1074", None)
    names = [line.split()[0] for line in dlth("reproduce", "list")[1].splitlines()]
    assert names == ["row", *EXPERIMENTS]


def test_rows_are_those_of_the_authors_scripts() -> None:
    """Whose weights select, and EViT's rates, constant from the first step on, are what the scripts say."""
    whose = {name: EXPERIMENTS[name].selector for name in ("cifar10/lt/0.9", "cifar10/rc/0.95", "swin-t/zero/lt/0.8")}
    assert list(whose.values()) == ["cifar10/dense", "cifar10/dense", "deit-s/selector/0.8"]
    assert EXPERIMENTS["deit-s/ti-selects/lt/0.85"].selector == "deit-ti/lt/0.85"
    evit = [EXPERIMENTS[f"deit-s/evit/{gmacs}"] for gmacs in ("2.26", "2.73", "3.28")]
    assert [row.rate for row in evit] == ["0.54", "0.67", "0.79"]
    assert {row.settings.get("keep_schedule", "none") for row in evit} == {"none"}
