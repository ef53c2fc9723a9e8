"""The plan of a study: its grid, what makes a run that run, what is refused, and what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.pictures import write_shards
from makers.tickets import select_tickets

from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan, read_study, write_study
from dlth.pipeline.project.settings import compare_settings
from dlth.pipeline.studies.asked import asked_text
from dlth.pipeline.studies.grid import grid
from dlth.pipeline.studies.plan_table import plan_table
from dlth.pipeline.studies.planning import finished_rates, plan_study
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.pipeline.studies.study_controls import make_controls
from dlth.tickets import TicketStore
from dlth.tickets.errors import InputError
from dlth.training.runs.loop import train
from dlth.training.runs.survey import survey
from dlth.training.settings.layering import checked
from dlth.training.settings.train_config import TrainConfig

Run = Callable[..., tuple[int, str, str]]
SELECTOR = {"selector": "vit_tiny_patch16_224", "selector_pretrained": True}


def planned(shared: dict[str, Any], out: Path, train: dict[str, Any] | None = None, **study: Any) -> StudyPlan:
    """A plan without measured steps."""
    config = checked(CompareConfig, {"out": str(out), "measure": 0, **study})
    return plan_study(config, shared | (train or {}))


def only(plan: StudyPlan) -> PlannedRun:
    """The run of a plan that has one."""
    (run,) = plan.runs
    return run


def keys(study: dict[str, Any], train: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    """The arms of a grid and its notes, with nothing opened."""
    cells, notes = grid(checked(CompareConfig, {"out": "study", **study}), train)
    return [str(cell.key) for cell in cells], notes


def test_the_grid_has_every_arm_and_the_dense_one_once(shared: dict[str, Any], tmp_path: Path) -> None:
    """arms x keeps x seeds, dense once per seed; names are readable, end in a digest, and are all different."""
    plan = planned(shared, tmp_path, keep="0.5,0.25", seeds="0,1")
    arms = [ArmKey("ticket", "0.5", "projected"), ArmKey("ticket", "0.25", "projected")]
    arms += [ArmKey("random", "0.5", "projected"), ArmKey("random", "0.25", "projected"), ArmKey("dense")]
    assert [(run.arm, run.seed) for run in plan.runs] == [(arm, seed) for arm in arms for seed in (0, 1)]
    assert len({run.name for run in plan.runs}) == 10
    assert plan.runs[0].name.startswith("ticket-keep0.5-projected-seed0-")
    assert plan.may_differ == ("keep",)


def test_what_makes_no_sense_is_left_out_and_said(shared: dict[str, Any]) -> None:
    """Random patches and controls are not run online beside projected ones; frozen views are every sparse arm's."""
    study = {"mode": "projected,frozen,online", "control": "centre"}
    arms, notes = keys(study, shared | SELECTOR | {"keep": "0.5"})
    sparse = [f"{arm}, keep 0.5, {mode}" for arm in ("random", "control-centre") for mode in ("projected", "frozen")]
    tickets = [f"ticket, keep 0.5, {mode}" for mode in ("projected", "frozen", "online")]
    assert arms == [*tickets, *sparse[:2], "dense", *sparse[2:]]
    assert any("random" in note for note in notes)
    assert any("control-centre" in note for note in notes)
    assert keys({"mode": "online", "arms": "random"}, SELECTOR | {"keep": "0.5"})[0] == ["random, keep 0.5, online"]
    assert "seed, out" in keys({}, shared | {"seed": 3, "out": "here"})[1][0]


def test_an_arm_has_the_settings_of_its_kind_alone(shared: dict[str, Any]) -> None:
    """The dense arm is told of no share, schedule or selector, which it would refuse, projected ones of no selector."""
    given = shared | SELECTOR | {"keep_schedule": "cosine"}
    cells = grid(checked(CompareConfig, {"out": "study", "mode": "projected,online"}), given)[0]
    values = {str(cell.key): cell.values for cell in cells}
    assert not {"keep", "keep_schedule", *SELECTOR} & values["dense"].keys()
    assert values["ticket, projected"].keys() & SELECTOR.keys() == set()
    assert SELECTOR.items() <= values["ticket, online"].items()


@pytest.fixture(scope="module")
def dense_name(shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the dense run with seed 0."""
    return only(planned(shared, tmp_path_factory.mktemp("name"), arms="dense", seeds="0")).name


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"lr": 2e-3}, False),
        ({"model_kwargs": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}}, False),
        ({"batch_size": 4}, False),
        ({"batch_size": 4, "grad_accum_steps": 2}, True),
        ({"workers": 1, "log_interval": 7, "val_interval": 2}, True),
        ({"weight_decay": 0.05}, True),
    ],
    ids=str,
)
def test_a_name_holds_what_decides_the_result(
    shared: dict[str, Any], dense_name: str, tmp_path: Path, change: dict[str, Any], same: bool
) -> None:
    """What touches the result changes a run's name; how a step is cut, workers, or a default said aloud do not."""
    study = {"arms": "dense", "seeds": "0"}
    assert (only(planned(shared, tmp_path, change, **study)).name == dense_name) is same


def test_a_name_holds_the_content_of_files_not_their_place(shared: dict[str, Any], tmp_path: Path) -> None:
    """The same tickets elsewhere make the same run, other tickets of the same images another; two processes of half a
    batch each make the same step as one of a whole one.
    """
    study = {"arms": "ticket", "seeds": "0"}
    name = only(planned(shared, tmp_path, **study)).name
    index = open_index(shared["data"])
    moved = select_tickets(index, tmp_path / "same.zarr")
    other = select_tickets(index, tmp_path / "other.zarr", name="other")
    assert only(planned(shared, tmp_path, {"tickets": str(moved.path)}, **study)).name == name
    assert only(planned(shared, tmp_path, {"tickets": str(other.path)}, **study)).name != name
    assert only(planned(shared, tmp_path, {"batch_size": 4}, **study, gpus=2)).name == name


def test_all_that_is_wrong_is_told_at_once(shared: dict[str, Any], tmp_path: Path) -> None:
    """Problems of several arms come in one error, each with the arms it is of, those that all share once."""
    study = {"sweep": {"momentum": [0.8, 0.9]}, "arm": {"dense": {"lr": 0}}}
    with pytest.raises(InputError) as refused:
        planned(shared, tmp_path, {"tickets": None, "val_tickets": None}, **study)
    problems = {"ticket, projected": "the ticket arm needs", "random, projected": "nothing says how", "dense": "--lr"}
    wanted = [f"{arm}, momentum=0.8; {arm}, momentum=0.9: {problem}" for arm, problem in problems.items()]
    told = str(refused.value).splitlines()
    assert [line[: len(text)] for line, text in zip(told, wanted, strict=True)] == wanted
    with pytest.raises(InputError, match=r"^every arm: .*no-such-shards"):
        planned(shared, tmp_path, {"data": str(tmp_path / "no-such-shards")})
    with pytest.raises(InputError, match=r"^every arm: .*never be judged.*--val"):
        planned(shared, tmp_path, {"val": None, "val_tickets": None})


def test_a_plan_says_what_will_be_judged(shared: dict[str, Any], tmp_path: Path) -> None:
    """Clauses, margin, seeds, matching, what needs validation tickets, and flags that do nothing, as they are."""
    plain = planned(shared, tmp_path).notes
    assert plain[0].startswith("judged: ticket as good as dense, ticket better than random, dense better than random")
    assert not any("--seeds" in note or "--val-tickets" in note or "--match" in note for note in plain)
    study = {"arms": "ticket,dense", "seeds": "0", "match": "tokens", "margin": 0.5, "selector_runs": 9}
    told = planned(shared, tmp_path, {"val_tickets": None}, **study).notes
    wanted = ["dense (--margin 0.5 points)", "--seeds 0", "ticket: judged on all patches", "the dense arm", "-runs say"]
    assert [text in note for note, text in zip(told, wanted, strict=True)] == [True] * 5
    assert planned(shared, tmp_path, arms="dense", seeds="0").notes[0].startswith("nothing is judged")


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"data": "relabelled"}, r"training images' labels: \w{12} \(arm dense, seed 0\), \w{12} \(arm random"),
        ({"val": "train"}, "validation images' labels: "),
        ({"epochs": 2}, r"warmup_epochs: 3 \(arm dense, seed 0\), 1 \(arm random, seed 0\)"),
    ],
    ids=str,
)
def test_what_could_never_be_judged_is_refused(
    shared: dict[str, Any], tmp_path: Path, own: dict[str, Any], named: str
) -> None:
    """An arm with other labels, images or warm-up than the rest would be trained in vain; both sides are named."""
    folder = Path(shared["data"]).parent
    write_shards(tmp_path, 3, [7, 5, 9], split="relabelled", num_classes=5)
    places = {"relabelled": str(tmp_path / "relabelled"), "train": str(folder / "train")}
    given = {name: value for name, value in shared.items() if name not in ("tickets", "val_tickets", "warmup_epochs")}
    own = {name: places.get(value, value) for name, value in own.items()}
    with pytest.raises(InputError, match=f"could not be judged.*{named}"):
        planned(given | {"keep": "0.5"}, tmp_path, arms="random,dense", arm={"random": own})


@pytest.mark.parametrize(
    ("study", "named"),
    [
        ({"sweep": {"lrr": [1]}}, "did you mean 'lr'"),
        ({"sweep": {"lr": 1e-3}}, "values in brackets"),
        ({"sweep": {"lr": [1, 1.0]}}, "different values"),
        ({"sweep": "lr=[1,2],lr=[3]"}, "lr is given twice"),
        ({"sweep": {"seed": [1, 2]}}, "the study's own"),
        ({"arm": {"random": {"tickets": "x"}}, "arms": "dense"}, "the study has dense"),
        ({"arm": {"dense": {"arm": "ticket"}}}, "the study's own"),
        ({"seeds": "1,1"}, "twice"),
        ({"keep": "0.5,0.50"}, "twice"),
        ({"control": "middle"}, "centre"),
        ({"control": "centre", "arms": "random,dense"}, "ticket arm"),
        ({"match": "hours", "measure": 0}, "--measure"),
        ({"keep": "0.5,1.5"}, "at most 1"),
    ],
    ids=str,
)
def test_settings_of_a_study_that_cannot_be_are_refused(study: dict[str, Any], named: str) -> None:
    """Before anything is opened, and with what would do."""
    with pytest.raises(InputError, match=named):
        checked(CompareConfig, {"out": "study", **study})


def test_a_sweep_and_settings_of_one_arm(shared: dict[str, Any], tmp_path: Path) -> None:
    """Each combination of swept values is a variant with all arms of its own; an arm's own settings win over them."""
    study = {"arms": "random,dense", "seeds": "0", "sweep": {"lr": [1e-3, 2e-3]}, "arm": {"random": {"lr": 4e-3}}}
    plan = planned(shared, tmp_path, **study)
    assert [(str(run.arm), run.settings["lr"]) for run in plan.runs] == [
        ("random, keep 0.5, projected, lr=0.001", 4e-3),
        ("dense, lr=0.001", 1e-3),
        ("random, keep 0.5, projected, lr=0.002", 4e-3),
        ("dense, lr=0.002", 2e-3),
    ]
    assert plan.may_differ == ("lr",)


def test_controls_are_made_once_and_trained_as_tickets(shared: dict[str, Any], tmp_path: Path) -> None:
    """A control is a run of the ticket arm on a file of the same tickets, made once, that training takes as it is."""
    plan = planned(shared, tmp_path, arms="ticket", seeds="0", control="centre,random")
    assert not (tmp_path / "tickets").exists()
    assert [run.arm.arm for run in plan.runs] == ["ticket", "control-centre", "control-random"]
    ticket, centre, _ = plan.runs
    assert len(make_controls(tmp_path, plan.settings)) == 2
    assert make_controls(tmp_path, plan.settings) == []
    store = TicketStore(centre.settings["tickets"])
    assert store.header.selector.model == "control: centre"
    assert store.path.name == f"centre-{TicketStore(ticket.settings['tickets']).identity[:10]}.zarr"
    assert (centre.settings["arm"], centre.settings["val_tickets"]) == ("ticket", ticket.settings["val_tickets"])
    found = survey(checked(TrainConfig, {**centre.settings, "out": "-"}))
    assert found.contents["tickets"] == store.identity
    with pytest.raises(InputError, match="give --tickets"):
        planned(shared, tmp_path, {"tickets": None}, control="centre")


def test_a_run_costs_what_its_plan_says(shared: dict[str, Any], tmp_path: Path) -> None:
    """Steps, images, tokens and operations of the plan are those that the run's result has; then it is there, and its
    rate is taken for the next plan.
    """
    short = {"val_tickets": None, "epochs": 2}
    plan = planned(shared, tmp_path, short, arms="ticket", seeds="3")
    run = only(plan)
    assert run.cost.seconds is None
    folder = plan.folder(tmp_path, run)
    result = train(checked(TrainConfig, {**run.settings, "out": str(folder)}))
    cost = run.cost
    assert (result.epochs, result.steps) == (cost.epochs, cost.steps) == (2, 6)
    assert (result.train_images, result.train_tokens) == (cost.images, cost.tokens)
    assert result.train_flops == cost.flops
    images = (int(open_index(shared[name]).image_size.sum()) for name in ("data", "val"))
    assert cost.bytes_read == 2 * sum(images)
    written = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert cost.bytes_written == pytest.approx(written, rel=0.2)
    table = plan_table(tmp_path, plan)
    assert [(row.runs, row.there) for row in table.arms] == [(1, 1)]
    assert table.what == "1 runs of 1 arms, 1 of them there"
    assert table.totals[0].startswith("left to do: 0 runs, 0 images, 0 tokens, 0 FLOP;")
    rates = finished_rates(tmp_path, plan)
    again = plan_study(
        checked(CompareConfig, {"out": str(tmp_path), "arms": "ticket", "seeds": "3,4", "keep": "0.5"}),
        shared | short,
        known=plan,
    )
    evaluated = 2 * survey(checked(TrainConfig, {**again.runs[1].settings, "out": "-"})).val_flops
    assert again.runs[1].cost.seconds == pytest.approx((cost.flops + evaluated) / rates[run.arm])


def test_steps_are_measured_and_leave_nothing(shared: dict[str, Any], tmp_path: Path) -> None:
    """A measured study has hours for every run, and no file was written."""
    plan = planned(shared, tmp_path / "study", measure=0.05, seeds="0")
    assert all(run.cost.seconds is not None and run.cost.seconds > 0 for run in plan.runs)
    assert not (tmp_path / "study").exists()


STUDY = """
data = "train"
val = "val"
[train]
recipe = "none"
tickets = "train.zarr"
model = "vit_tiny_patch16_224"
model_kwargs = {patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2}
img_size = 32
epochs = 2
warmup_epochs = 0
batch_size = 8
workers = 0
device = "cpu"
[compare]
keep = ["0.25"]
seeds = [0, 1]
out = "study"
[compare.sweep]
lr = [1e-3, 2e-3]
[compare.arm.random]
tickets = "train.zarr"
epochs = 3
"""


@pytest.fixture
def study_file(shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of settings beside shards and tickets, in another folder than the one that is worked in."""
    for path in Path(shared["data"]).parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def test_a_study_is_planned_from_its_file(study_file: Path, dlth: Run) -> None:
    """`dlth compare --config FILE --dry-run --json` gives the plan, and writes nothing; its paths mean the same from
    anywhere, and flags win.
    """
    code, out, err = dlth("compare", "--config", study_file, "--dry-run", "--json", "--measure", 0, "--seeds", 7)
    assert code == 0, err
    plan = json.loads(out)
    assert [arm["runs"] for arm in plan["arms"]] == [1] * 6
    assert {run["seed"] for run in plan["runs"]} == {7}
    assert {run["settings"]["tickets"] for run in plan["runs"]} == {str(study_file.parent / "train.zarr")}
    assert {run["cost"]["epochs"] for run in plan["runs"] if run["arm"]["arm"] == "random"} == {3}
    assert Path(plan["out"]) == study_file.parent / "study"
    assert not Path(plan["out"]).exists()


def test_what_was_asked_for_can_be_asked_again(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """study.toml, read back from another folder, asks for the very same."""
    chosen = compare_settings({}, {}, study_file)
    text = asked_text(chosen.study.config(), chosen.train)
    study_file.with_name("again.toml").write_text(text)
    monkeypatch.chdir("/")
    again = compare_settings({}, {}, study_file.with_name("again.toml"))
    assert asked_text(again.study.config(), again.train) == text


def test_a_plan_is_written_and_read_as_it_is(shared: dict[str, Any], tmp_path: Path) -> None:
    """The plan that the processes of a study follow is the one that was made."""
    plan = planned(shared, tmp_path, seeds="0")
    write_study(tmp_path, plan)
    assert read_study(tmp_path) == plan


@pytest.mark.parametrize(
    "table",
    ["[train]\n{} = 'evil:run'", "[compare.sweep]\n{} = ['evit', 'evil:run']", "[compare.arm.ticket]\n{} = 'evil:run'"],
    ids=["train", "sweep", "arm"],
)
def test_a_file_that_was_found_names_no_code_to_import(
    table: str, dlth: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dlth.toml that nobody named may have come with somebody's shards: also deep in a study's tables."""
    monkeypatch.chdir(tmp_path)
    Path("dlth.toml").write_text(table.format("selector_ranker"))
    code, _, err = dlth("compare", "--data", "shards", "--out", "study")
    assert code == 2
    assert "names code to import" in err
