"""The long forms of the reliability tests: `make torture`, or a part with smaller counts.

    python tests/torture.py [--mutants 100000] [--kills 1000] [--flips 10000] … [--only NAME,…] [--write]

Runs each script, prints its counts, and with `--write` puts what was really run, with commit and machine, into
docs/reliability.json and the table of docs/reliability.md; parts that were not run keep their earlier rows. Exit code
1 when anything was found.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from makers import ROOT
from makers.campaign import run_script
from makers.pictures import write_shards

TABLE = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- counts: written by tests/torture.py -->", "<!-- end of counts -->"
Counts = dict[str, Any]


def script(name: str, *arguments: object) -> Counts:
    """Run a script of the tests; `findings` is kept, a crash becomes one."""
    try:
        return {"findings": [], **run_script(name, *arguments)[1]}
    except (AssertionError, ValueError) as error:
        return {"findings": [str(error)[-500:]]}


def small_shards(folder: Path) -> str:
    """Two shards of real JPEGs, three and two samples."""
    return write_shards(folder, 2, (3, 2)).spec


def began(told: Counts, *words: str) -> int:
    """How many outcomes began with one of these words."""
    return sum(count for name, count in told.get("outcomes", {}).items() if name.startswith(words))


def mutants(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("hostile/mutants.py", "--count", arguments.mutants, "--processes", os.cpu_count() or 1)
    text = f"{told.get('mutants', 0):,} mutants, {told.get('signed', 0):,} signed anew"
    text = f"{text}: {began(told, 'refused'):,} refused, {began(told, 'opened'):,} opened under another identity"
    return f"{text}, {began(told, 'accepted unchanged'):,} unchanged and accepted", told


def checkpoints(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("hostile/checkpoints.py", "--count", arguments.checkpoints)
    text = f"{told.get('mutants', 0):,} mutants of checkpoints: {began(told, 'refused'):,} refused"
    text = f"{text}, {began(told, 'loaded under'):,} loaded under another digest"
    return f"{text}, {began(told, 'loaded,'):,} with the same weights", told


def run_folders(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("hostile/run_folders.py", "--count", arguments.run_folders)
    text = f"{told.get('mutants', 0):,} spoilt folders of runs: {began(told, 'refused'):,} refused"
    text = f"{text}, {began(told, 'the same'):,} with the same numbers"
    return f"{text}, {began(told, 'other weights'):,} as other weights", told


def decoders(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("hostile/decoders.py", "--count", arguments.images, "--processes", os.cpu_count() or 1)
    text = f"{told.get('mutants', 0):,} mutants of JPEG, PNG and WebP against the real decoders"
    return f"{text}: {began(told, 'decoded'):,} decoded, {began(told, 'refused'):,} refused", told


def bits(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = [script("hostile/bits.py", "--form", form, "--stride", arguments.stride) for form in ("full", "top", "mask")]
    flips, all_bits = (sum(part.get(name, 0) for part in told) for name in ("flips", "bits"))
    findings = [finding for part in told for finding in part["findings"]]
    return f"{flips:,} of {all_bits:,} single bits of three small files flipped", {"findings": findings, "parts": told}


def exploits(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("hostile/exploits.py")
    cases = {name: case for name, case in told.items() if name.startswith("T")}
    bad = [
        f"{name}: {case}"
        for name, case in cases.items()
        if case["canary"] or case["events"] or not (case["outcome"].startswith("refused") or case["harmless"])
    ]
    return f"{len(cases)} exploits by hand, T1 to T17, dangerous variables set", {"findings": told["findings"] + bad}


def answers(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("hostile/answers.py", "--count", arguments.answers)
    text = f"{told.get('answers', 0):,} answers of a web server, of right and wrong parts"
    return f"{text}: {began(told, 'refused'):,} refused, {began(told, 'whole'):,} with the bytes asked for", told


def steps(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("faults/kill_select.py", small_shards(folder), folder, arguments.step_stride)
    return f"select killed at {told.get('kills', 0)} of its {told.get('steps', 0)} file-system steps", told


def moments(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("faults/kill_moments.py", small_shards(folder), folder, arguments.kills)
    text = f"select killed at {told.get('kills', 0):,} random moments, {told.get('unfinished', 0):,} of them unfinished"
    return f"{text}; {told.get('files', 0):,} files, all with an unbroken run's bytes", told


def disk(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("faults/full_disk.py", folder, 20)
    return f"{told.get('runs', 0)} disk sizes ({told.get('method')}), {told.get('full', 0)} of them full", told


def disk_train(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("faults/full_disk_train.py", folder, 20)
    text = f"{told.get('runs', 0)} disk sizes under train ({told.get('method')})"
    return f"{text}, {told.get('full', 0)} of them full", told


def disk_tools(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("faults/full_disk_tools.py", folder, 10)
    text = f"{told.get('tools', 0)} ways to write of the ticket tools at ten disk sizes ({told.get('method')})"
    return f"{text}: {told.get('full', 0)} of {told.get('runs', 0)} full", told


def read_only(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("faults/read_only.py", folder)
    return f"a read-only disk ({told.get('method')})", told


def paths(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = [script("hostile/paths.py", arguments.path_stride, *denied) for denied in ((), ("--denied",))]
    bad, denied = (part.get("commands", 0) for part in told)
    findings = [finding for part in told for finding in part["findings"]]
    share = "every" if arguments.path_stride == 1 else f"each {arguments.path_stride}th"
    text = f"{share} pair of a command's path and something bad in its place: {bad:,} commands"
    return f"{text}, {denied:,} as a user who may not read or write there", {"findings": findings}


def tars(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script("faults/tars.py", "--flips", arguments.flips)
    return f"shards cut at {told.get('cuts', 0)} 64-byte steps and {told.get('flips', 0):,} bits flipped", told


def odd_tars(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    program = shutil.which("tar") or ""
    told = script("hostile/odd_tars.py", "--count", arguments.odd_tars, "--tar", program if is_gnu(program) else "")
    others = "Python's tarfile and GNU tar" if is_gnu(program) else "Python's tarfile"
    text = f"{told.get('count', 0):,} odd tars: {began(told, 'refused'):,} refused"
    return f"{text}, {began(told, 'the same members'):,} with the members that {others} find", told


def is_gnu(program: str) -> bool:
    """Whether this tar program is GNU's."""
    return bool(program) and b"GNU" in subprocess.run([program, "--version"], capture_output=True).stdout


def pytest_part(*arguments: str, examples: int = 0) -> list[str]:
    environment = os.environ | ({"DLTH_EXAMPLES": str(examples)} if examples else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    return [done.stdout[-500:]] if done.returncode else []


def machine(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    findings = pytest_part("--timeout=0", "tests/tickets/store/test_state_machine.py", examples=arguments.examples)
    return f"state machine, {arguments.examples:,} lives of up to 25 steps", {"findings": findings}


def writers(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    findings = []
    for _ in range(arguments.rounds):
        findings += pytest_part("tests/tickets/store/test_kill.py", "-k", "several_writers")
    return f"2, 4 and 8 writers at once, {arguments.rounds} rounds of each", {"findings": findings}


def study(arguments: argparse.Namespace, folder: Path) -> tuple[str, Counts]:
    told = script(
        "faults/killed_study.py", folder, "--images", arguments.study_images, "--kills", arguments.study_kills
    )
    text = f"a study of {told.get('runs', 0)} runs by two workers, {told.get('kills', 0)} times one of them killed"
    return f"{text}: tables, logs, per-image results and weights of one that nobody disturbed", told


PARTS: dict[str, Callable[[argparse.Namespace, Path], tuple[str, Counts]]] = {
    part.__name__: part
    for part in (
        mutants,
        checkpoints,
        run_folders,
        decoders,
        bits,
        exploits,
        answers,
        steps,
        moments,
        disk,
        disk_train,
        disk_tools,
        read_only,
        paths,
        tars,
        odd_tars,
        machine,
        writers,
        study,
    )
}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def write_page(rows: dict[str, dict[str, str]]) -> None:
    """The table between its two marks."""
    TABLE.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    lines = ["| part | what was run | found | time | commit | machine |", "|---|---|---|---|---|---|"]
    fields = ("text", "found", "time", "commit", "machine")
    lines += ["| " + " | ".join([f"`{name}`", *(rows[name][field] for field in fields)]) + " |" for name in PARTS
              if name in rows]  # fmt: skip
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--answers", type=int, default=5_000)
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--run-folders", type=int, default=1_000)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--stride", type=int, default=1, help="flip every n-th bit only")
    parser.add_argument("--step-stride", type=int, default=1)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--path-stride", type=int, default=1, help="try every n-th bad path only")
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--odd-tars", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--study-images", type=int, default=480)
    parser.add_argument("--study-kills", type=int, default=2)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--write", action="store_true", help="put the counts into docs/reliability.*")
    arguments = parser.parse_args()
    num_found = 0
    for name in arguments.only.split(","):
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            text, told = PARTS[name](arguments, Path(folder))
        seconds = f"{time.perf_counter() - begun:.0f} s"
        num_found += len(told["findings"])
        print(
            f"{name}: {text}; found {len(told['findings'])}; {seconds}", *told["findings"][:10], sep="\n  ", flush=True
        )
        place = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
        found = str(len(told["findings"]))
        row = {"text": text, "found": found, "time": seconds, "commit": commit(), "machine": place}
        if arguments.write:
            write_page({**(json.loads(TABLE.read_text()) if TABLE.exists() else {}), name: row})
    return 1 if num_found else 0


if __name__ == "__main__":
    sys.exit(main())
