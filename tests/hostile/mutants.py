"""Seeded mutants of ticket files: change a sound file in one of many ways, open it, and say what came of it.

    python mutants.py --count 10000 --processes 2 [--first 0] [--only CLASS] [--weaken BUILD]

Mutant n is a function of n alone, so a number from a report is made again by `--first n --count 1`. Odd numbers are
signed anew by the attacker. A mutant is right when it is refused with an error of dlth's family, or when it opens under
another identity with values that an independent reading by plain zarr confirms; an unchanged file must open. Everything
else is a finding: the same identity for another tree, an exception of another kind, a file opened outside the folder, a
process, a connection, more than 5 s, more memory. Each process runs under an alarm and an address-space limit; one that
dies is a finding too. `--weaken` switches one defence off, and then findings must come. Prints one JSON object; exit
code 1 with findings.

In one process rather than one fork a mutant: 20 times faster, and a crash or a hang is seen all the same.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import zarr
from hostile import ways, weak
from makers.campaign import HangError, within
from makers.tampering import Tree, put, signed_anew
from makers.tickets import make_store, tree_bytes

from dlth.tickets import Grid, TicketStore
from dlth.tickets.errors import DlthError, InputError, shown

MEMORY = 256 * 2**20
SECONDS = 5
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "socket.connect")

escapes: list[str] = []
allowed = ""


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: note processes, connections and files opened outside the folder, while `allowed` names one."""
    if allowed and (event in FORBIDDEN or (event == "open" and not isinstance(args[0], int))):
        path = os.fsdecode(args[0]) if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)) else event
        if event in FORBIDDEN or not path.startswith(allowed):
            escapes.append(f"{event} {path}")


def sound_files(folder: Path) -> list[Tree]:
    """Four small files, so that every form and both index types are met; the first two differ in content alone."""
    made = [
        make_store(folder / "full.zarr", skipped=[4]),
        make_store(folder / "other.zarr", skipped=[1], creator="another lab"),
        make_store(folder / "top.zarr", form="top", rows=(2, 4)),
        make_store(folder / "mask.zarr", form="mask", rows=(4, 1), skipped=[0]),
        make_store(folder / "wide.zarr", rows=(2, 2), grid=Grid(16, 16), k=6),
    ]
    return [tree_bytes(path) for path in made]


class Trial:
    """A folder for each sound file, in which its mutants are put in place and judged, only what differs written."""

    def __init__(self, folder: Path, weaken: str | None) -> None:
        self.classes = [name for name in sorted(ways.WAYS) if weaken in (None, weak.CLASS_FAILS_IN.get(name))]
        self.seconds = 0.5 if weaken else SECONDS
        self.secret = folder / "secret"
        self.secret.write_bytes(b"nothing of this may be read" * 40)
        self.trees = sound_files(folder)
        self.identities = [TicketStore(folder / name).identity for name in
                           ("full.zarr", "other.zarr", "top.zarr", "mask.zarr", "wide.zarr")]  # fmt: skip
        self.places = [folder / f"mutant{base}.zarr" for base in range(len(self.trees))]
        self.now: list[Tree] = [{} for _ in self.trees]
        for place in self.places:
            place.mkdir()

    def make(self, number: int, only: str | None) -> tuple[str, bool, int, Tree]:
        """(class, signed anew, which sound file it was, mutated tree) of one number."""
        rng = random.Random(number)
        name = only or rng.choice(self.classes)
        base = rng.randrange(len(self.trees))
        others = [tree for index, tree in enumerate(self.trees) if index != base]
        tree = ways.WAYS[name](dict(self.trees[base]), rng, ways.Material(others, self.secret))
        signed = number % 2 == 1
        return name, signed, base, signed_anew(tree) if signed else tree

    def judge(self, base: int, tree: Tree) -> str:
        """What came of a mutant of a sound file: a good outcome, or 'FINDING: …'."""
        global allowed
        path = self.places[base]
        put(path, self.now[base], tree)
        self.now[base] = tree
        same = [index for index, sound in enumerate(self.trees) if sound == tree]  # a mix may end as the other file
        changed = not same
        escapes.clear()
        allowed = str(path)
        try:
            with within(self.seconds):
                outcome = self._use(path, same)
        except DlthError as error:
            outcome = f"refused {error.code}" if changed else f"FINDING: a sound file was refused: {error}"
            if not str(error).isprintable() and "\n" not in str(error):
                outcome = "FINDING: control characters in a message"
        except HangError:
            outcome = f"FINDING: hung for more than {self.seconds} s"
        except Exception as error:  # whatever it is, it is no answer to a user
            outcome = f"FINDING: {type(error).__name__}: {error}"
        finally:
            allowed = ""
        return f"FINDING: escaped: {escapes[0]}" if escapes else outcome

    def _use(self, path: Path, same: list[int]) -> str:
        store = TicketStore(path)
        shards = [store.read(shard) for shard in range(len(store.shards))]
        for finding in store.verify():
            raise finding
        if same:
            fine = store.identity == self.identities[same[0]]
            return "accepted unchanged" if fine else "FINDING: another identity than its own"
        if store.identity in self.identities:
            return "FINDING: a changed file opened under a known identity"
        try:
            confirm(path, store, shards)
        except ValueError as error:
            if "Stored and computed checksum do not match" not in str(error):
                raise
            return "opened under another identity, its crc32c wrong: plain zarr refuses it"
        return "opened under another identity"


def confirm(path: Path, store: TicketStore, shards: list[Any]) -> None:
    """Plain zarr must read the same values, and they must be usable: in range, distinct, keys unique."""
    group = zarr.open_group(str(path), mode="r", zarr_format=3)
    grid = store.header.grid.num_patches
    name = store.layout.choice.name
    seen: set[str] = set()
    for index, shard in enumerate(shards):
        stored = group[name][index][: shard.num_rows]
        if name == "patches":
            assert (stored == shard.patches).all(), "zarr reads other patches"
        for row, skipped in zip(shard.patches.tolist(), shard.skipped, strict=True):
            assert skipped or (len(set(row)) == len(row) and max(row) < grid), "an unusable ticket"
        keys = [bytes(key).rstrip(b"\0").decode() for key in group["keys"][index][: shard.num_rows]]
        assert tuple(keys) == shard.keys, "zarr reads other keys"
        assert not seen & set(keys), "a key twice"
        assert (group["images"][index][: shard.num_rows] == shard.images).all(), "zarr reads other hashes"
        assert group["gap"][index][: shard.num_rows].tobytes() == shard.gap.tobytes(), "zarr reads other gaps"
        seen |= set(keys)
    assert not any(entry.name.startswith(".z") for entry in path.rglob("*")), "Zarr v2 metadata"


def limit_memory() -> int:
    """At most 256 MiB more than now; gives the resident size now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(first: int, count: int, only: str | None, weaken: str | None, progress: Path) -> dict[str, Any]:
    """Mutants first … first + count - 1, in this process."""
    counts: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    findings: list[str] = []
    num_signed = 0
    with tempfile.TemporaryDirectory(dir=progress.parent) as folder:
        trial = Trial(Path(folder), weaken)
        for base, tree in enumerate(trial.trees):  # warm: imports and caches before limits; sound files must open
            assert trial.judge(base, tree) == "accepted unchanged"
        str(InputError(shown("\x1b")))  # the codec that escapes
        for path in trial.places:
            confirm(path, store := TicketStore(path), [store.read(shard) for shard in range(len(store.shards))])
        weak.BUILDS[weaken]() if weaken else None

        sys.addaudithook(watch)
        resident = limit_memory()
        for number in range(first, first + count):
            progress.write_text(str(number))
            name, signed, base, tree = trial.make(number, only)
            outcome = trial.judge(base, tree)
            counts["finding" if outcome.startswith("FINDING") else outcome] += 1
            classes[name] += 1
            num_signed += signed
            if outcome.startswith("FINDING"):
                findings.append(f"{number} {name}{' signed' if signed else ''}: {outcome[9:300]}")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
        for path, now in zip(trial.places, trial.now, strict=True):
            put(path, now, {})
    if grown > MEMORY:
        findings.append(f"memory grew by {grown} bytes")
    return {"mutants": count, "signed": num_signed, "outcomes": counts, "classes": classes, "findings": findings,
            "grown": grown}  # fmt: skip


def share_out(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Split the numbers over processes and add up; a process that died names the mutant it died of."""
    begun = time.perf_counter()
    size = -(-arguments.count // arguments.processes)
    running = []
    for part in range(arguments.processes):
        first = arguments.first + part * size
        count = min(size, arguments.first + arguments.count - first)
        progress = folder / f"part{part}" / "number"
        progress.parent.mkdir()
        command = [sys.executable, __file__, "--first", str(first), "--count", str(count), "--part", str(progress)]
        command += ["--only", arguments.only] if arguments.only else []
        command += ["--weaken", arguments.weaken] if arguments.weaken else []
        environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        running.append((progress, subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)))
    total: dict[str, Any] = {"mutants": 0, "signed": 0, "outcomes": Counter(), "classes": Counter(), "findings": []}
    total["grown"] = 0
    for progress, process in running:
        text, _ = process.communicate()
        if process.returncode:
            at = progress.read_text() if progress.exists() else "start"
            total["findings"].append(f"{at}: the process died with {process.returncode}")
            continue
        part_total = json.loads(text)
        for name in ("mutants", "signed"):
            total[name] += part_total[name]
        for name in ("outcomes", "classes"):
            total[name].update(part_total[name])
        total["findings"] += part_total["findings"]
        total["grown"] = max(total["grown"], part_total["grown"])
    return total | {"seconds": round(time.perf_counter() - begun, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=sorted(ways.WAYS))
    parser.add_argument("--weaken", choices=sorted(weak.BUILDS))
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(work(arguments.first, arguments.count, arguments.only, arguments.weaken, arguments.part)))
        return 0
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        total = share_out(arguments, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(total, sort_keys=True))
    return 1 if total["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
