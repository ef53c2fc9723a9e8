"""The benchmarks' device section, on a CPU: it runs, keeps to its deadline, counts what it says, and writes where it
should.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import bench_device
import gpu_classes
import pytest
import torch
from device import authors, counts, from_jpegs, page, right, timing
from device.scope import TINY
from makers import ROOT
from rounds import markdown

from dlth.tickets import Budget
from dlth.tickets.errors import DlthError, InputError


def run(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the tables as JSON."""
    code = bench_device.main(["--device", "cpu", "--json", str(tmp_path / "out.json"), *words])
    return code, json.loads((tmp_path / "out.json").read_text())


def test_everything_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each table has its rows, all of them measured; a CPU's figures are printed, and never written into the page."""
    results, target = tmp_path / "tests.json", tmp_path / "page.md"
    results.write_text(json.dumps({"tests": [], "rows": []}))
    target.write_text(marked := "\nnothing yet\n".join(page.marks(page.DEVICE)))
    code, found = run(tmp_path, "--tests", str(results), "--write", "--page", str(target))
    out, told = capsys.readouterr()
    tables = found["tables"]
    assert code == 0
    assert timing.NO_TIME not in out
    assert "**The tests (`tests/gpu`) were not run beside this.**" in out
    assert target.read_text() == marked
    assert "not written into page.md: these are figures of a CPU" in told
    assert [row["step"] for row in tables["steps"]] == ["dense", "ticket 0.9", "ticket 0.7", "ticket 0.5"]
    assert [row["selector"] for row in tables["selectors"]] == ["dense", "keep 0.9", "keep 0.7", "keep 0.5"]
    assert [row["recipe"] for row in tables["from JPEGs"]] == ["deit", "crop and mirror"]
    assert all(row["rate"]["median"] > 0 for row in tables["limits"])
    shares = [row["FLOPs / dense"] for row in tables["steps"]]
    assert shares[0] == 1 > shares[1] > shares[2] > shares[3] > 0.5  # the last of 16 patches keeps 8, and a class token
    assert all(0 <= row[name] < 1 for row in tables["from JPEGs"] for name in from_jpegs.SHARES)
    assert found["right"] == json.loads(results.read_text())


def test_what_failed_and_was_not_run_stands_first(tmp_path: Path) -> None:
    """The section's first line counts tests and names those that failed; its tables have each claim, also of tests that
    measure nothing, and mark the difference that does not hold.
    """
    ended = {"a[0]": ("passed", ""), "a[1]": ("failed", ""), "b": ("passed", ""), "c": ("not run", "needs 2 GPUs")}
    row = {"what": "logits", "precision": "bf16", "worst": 0.5, "unit": "relative"}
    rows = [row | {"tolerance": 0.25, "holds": False}, row | {"tolerance": None, "holds": None}]
    tests = [{"test": test, "claim": "It is.", "result": result, "why": why} for test, (result, why) in ended.items()]
    (tmp_path / "tests.json").write_text(json.dumps({"tests": tests, "rows": rows}))
    found = right.Right.read(tmp_path / "tests.json")
    heading, first, *_ = page.section({"device": "G"}, "make gpu", found.verdict, found.tables(), []).split("\n\n")
    assert heading.startswith("## On a GPU: G")
    told = "4 tests: 2 passed, 1 failed, 1 not run (needs 2 GPUs)"
    assert first == f"**NOT RIGHT HERE.** {told}. Failed: `a[1]`."
    of_tests, differences = (markdown(table.rows).splitlines()[2:] for table in found.tables())
    assert of_tests == [
        "| It is. | `a` | 1 | **1** | 0 |",
        "| It is. | `b` | 1 | 0 | 0 |",
        "| It is. | `c` | 0 | 0 | 1: needs 2 GPUs |",
    ]
    assert differences == [
        "| logits | bf16 | 0.500 | relative | 0.250 | **NO** |",
        "| logits | bf16 | 0.500 | relative | told |  |",
    ]


def test_nothing_is_begun_after_the_deadline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a minute every row says that there was no time, the words count them, and nothing is made."""
    code, found = run(tmp_path, "--minutes", "0", "--folder", str(tmp_path))
    rows = [row for table in found["tables"].values() for row in table]
    assert code == 0
    assert all(timing.NO_TIME in row.values() for row in rows)
    assert f"{len(rows)} rows, of which some stand for a group, say {timing.NO_TIME}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_minutes_count_from_when_they_are_told(tmp_path: Path) -> None:
    """Of nine minutes that began an hour ago nothing is left."""
    _, found = run(tmp_path, "--minutes", "9", "--since", str(time.time() - 3600))
    assert all(timing.NO_TIME in row.values() for row in found["tables"]["limits"])


def test_rounds_are_over_by_the_deadline() -> None:
    """Candidates whose first call takes 40 s, the others 1 s: of three and five rounds two are ready in 120 s."""
    now, calls = [0.0], dict.fromkeys("abc", 0)

    def step(name: str) -> timing.Step:
        def run() -> None:
            now[0] += 1 if calls[name] else 40
            calls[name] += 1

        return run

    limited = dataclasses.replace(TINY, rounds=5)
    deadline = timing.Deadline(120, lambda: now[0])
    times = timing.timed({name: step(name) for name in calls}, limited, torch.device("cpu"), deadline)
    assert (list(times), calls["c"]) == (["a", "b"], 0)
    assert now[0] <= deadline.at


def test_what_was_measured_outlives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends it after the limits finds them in the file, and that all else is missing."""

    class Ended(BaseException):
        pass

    def ended(*_: object) -> None:
        raise Ended

    monkeypatch.setattr(bench_device, "make_files", ended)
    with pytest.raises(Ended):
        run(tmp_path)
    left = json.loads((tmp_path / "out.json").read_text())
    assert all(row["rate"]["median"] > 0 for row in left["tables"]["limits"])
    assert "Ended early: 4 groups of rows are not here." in left["notes"]


@pytest.mark.parametrize(
    ("option", "name", "content", "told"),
    [
        ("--tests", "none.json", None, "cannot be read"),
        ("--tests", "cut.json", '[{"what"', "cannot be read"),
        ("--tests", "no_rows.json", '{"what": 1}', "is not what pytest tests/gpu --gpu-table writes"),
        ("--folder", "none", None, "is no folder"),
        ("--json", "file/out.json", None, "cannot be written"),
        ("--authors", "broken", "def broken(:", "does not run"),
        ("--authors", "empty", "", "has no VisionTransformer"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    tmp_path: Path, option: str, name: str, content: str | None, told: str
) -> None:
    """A file or folder that is missing, broken or in the way is one clear error."""
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    if content is not None:
        file = path / authors.FILE if option == "--authors" else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    with pytest.raises(DlthError, match=told):
        bench_device.main(["--device", "cpu", "--minutes", "0", option, str(path)])


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf", "soon"])
def test_minutes_are_a_number(minutes: str) -> None:
    """Others are refused, with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        bench_device.main([f"--minutes={minutes}"])
    assert ended.value.code == 2


def test_what_does_not_fit_is_a_row() -> None:
    """Out of memory at one batch is told, and half of it is tried; at the smallest there is nothing else to try."""

    def measure(batch: int) -> list[timing.Row]:
        if batch > 64:
            raise torch.OutOfMemoryError
        return [{"batch": batch}]

    told = timing.that_fits(measure, 256, {"model": "large"})
    assert [(row["batch"], row.get("images/s")) for row in told] == [
        (256, "out of memory"),
        (128, "out of memory"),
        (64, None),
    ]


def test_operations_and_bytes_are_counted() -> None:
    """A product of [4, 8] and [8, 16] is 2·8·16 operations a row, on 4·(8 + 128 / 4 + 16) bytes; views move none."""
    left, right = torch.randn(4, 8), torch.randn(8, 16)
    layer = torch.nn.Linear(8, 16, bias=False)
    cost = counts.cost_of_forward(lambda: (left @ right).view(-1), layer, left)
    assert (cost.flops, cost.traffic) == (2 * 8 * 16, 4 * (8 + 128 / 4 + 16))
    assert cost.least == 4 * (8 + 128 / 4)
    stacked = counts.cost_of_forward(lambda: left.view(2, 2, 8) @ right, layer, left)  # views of a product
    assert stacked.traffic == cost.traffic


def test_the_authors_keep_as_many_patches() -> None:
    """At each block that drops some as many as ours does, which a rounded rate per stage would not always give."""
    budget = Budget.from_keep("0.7", 196, 3)
    tokens = authors.tokens_of(budget, (3, 6, 9), 12)
    assert tuple(tokens[block] for block in (3, 6, 9)) == budget.stage_tokens
    assert tokens[9] == budget.k
    assert [block for block, kept in enumerate(tokens) if kept is None] == [0, 1, 2, 4, 5, 7, 8, 10, 11]


def test_busy_time_is_a_union() -> None:
    """Kernels that run at the same time count once, and gaps between them count as idle."""
    assert from_jpegs.idle_share([(0, 4), (2, 6), (8, 10), (8.5, 9)], 10) == pytest.approx(0.2)


def test_a_wait_before_the_first_kernel_is_idle() -> None:
    """Of ten microseconds the device waited six, ran two and waited two."""
    assert from_jpegs.idle_share([(6, 8)], 10) == 0.8


@pytest.mark.parametrize("workers", [1, 7, 12, 16])
def test_a_window_has_as_many_steps_of_every_worker(workers: int) -> None:
    """Both windows are whole turns of the workers, after the two batches that each has in hand at the start."""
    begin, end, last = from_jpegs.windows(96, workers)
    assert 2 * workers <= begin < end < last <= 96
    assert (end - begin) % workers == (last - end) % workers == 0
    assert begin % ((last - end) // 2) == end % ((last - end) // 2) == 0  # steps that the log tells of


def test_the_section_is_put_between_its_marks(tmp_path: Path) -> None:
    """In a copy of docs/benchmarks.md all else stays as it is, twice the same is the same, and a page without the marks
    is refused.
    """
    begin, end = page.marks(page.DEVICE)
    before = (ROOT / "docs" / "benchmarks.md").read_text()
    copy = tmp_path / "benchmarks.md"
    copy.write_text(before)
    page.put_into(copy, "## On a GPU: measured")
    once = copy.read_text()
    assert "## On a GPU: measured" in once
    assert once.partition(begin)[0] == before.partition(begin)[0]
    assert once.partition(end)[2] == before.partition(end)[2]
    page.put_into(copy, "## On a GPU: measured")
    assert copy.read_text() == once
    copy.write_text("no marks")
    with pytest.raises(InputError, match="each once"):
        page.put_into(copy, "")
    assert copy.read_text() == "no marks"


def test_the_authors_file_is_run_without_being_registered(tmp_path: Path) -> None:
    """A file that registers a model under a name of timm's own is run all the same, and timm's model stays; a folder
    without one is refused.
    """
    import timm

    file = tmp_path / authors.FILE
    with pytest.raises(InputError, match="is no copy of the authors' repository"):
        authors.load(tmp_path)
    file.parent.mkdir()
    file.write_text(
        "from timm.models.registry import register_model\n"
        "default_cfgs = {'deit_tiny_patch16_224': {'no such field': 1}}\n\n\n"
        "@register_model\ndef deit_tiny_patch16_224(pretrained=False, **kwargs):\n    return 'theirs'\n"
        "class VisionTransformer:\n    pass\n"
    )
    assert authors.load(tmp_path).deit_tiny_patch16_224() == "theirs"
    assert timm.is_model("deit_tiny_patch16_224")
    assert isinstance(timm.create_model("deit_tiny_patch16_224", depth=1), torch.nn.Module)


def test_the_arithmetic_by_class_is_that_of_the_page() -> None:
    """DeiT-T's counts are those of docs/gpu.md, whose tables follow from its counts to the byte; a step is nearly three
    forwards; the share is of the bound, and where nobody published any it is said to be assumed.
    """
    begin, end = page.marks("classes")
    written = (ROOT / "docs" / "gpu.md").read_text().partition(f"{begin}\n")[2].partition(f"\n{end}")[0]
    counted, memory = (rows_of(table) for table in written.split("\n\n")[1:4:2])
    assert gpu_classes.text(counted, memory) == written
    whole, kept = (gpu_classes.counts_of("deit_tiny", keep) for keep in ("1", "0.7"))
    table = markdown(gpu_classes.counted_rows({("DeiT-T", "1"): whole, ("DeiT-T", "0.7"): kept})).splitlines()
    assert set(table) <= set(written.splitlines())
    assert 2.9 < whole.step / whole.forward < 3
    half = gpu_classes.Gpu("any", 100, 1, 1, "us", {"B": (1_000, 2_500)})
    row = gpu_classes.class_row(half, {"A": 40.0, "B": 20.0})
    assert list(row.values())[4:] == ["2,500 / 5,000", "– / 1,000 to 2,500", "– / 20 to 50", "us"]
    assert all(("assumed" in gpu.note) == (not gpu.reached) for gpu in gpu_classes.GPUS)


def rows_of(table: str) -> list[dict[str, str]]:
    """A table of Markdown, its cells as they stand."""
    head, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    return [dict(zip(head, cells, strict=True)) for cells in body]
