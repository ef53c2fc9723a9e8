"""Seeded mutants of images against the real decoders: none ends its process, hangs, takes memory or raises oddly.

    python decoders.py --count 200000 --processes 2 [--first 0] [--weaken]

Mutant n is a function of n alone, so a number from a report is made again by `--first n --count 1`. It is decoded and
shown in a view, in a forked process that says which number it is at: when that process dies, or does not come on for
ten seconds, the number is a finding, and another process goes on behind it. Findings are also an exception other than
BadImageError, pixels of another size than the header claims, and growth of memory by more than 64 bytes for each pixel
of the bound. `--weaken` gives PNGs to libpng as they are, and then findings must come. Prints one JSON object; the exit
code is 1 with findings.
"""

import faulthandler
import json
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hostile import pictures
from makers.campaign import numbered

from dlth.data.images import decode as decoding
from dlth.data.images.decode import BadImageError, decode, image_size
from dlth.data.images.views import render
from dlth.tickets import ViewSpec

MAX_PIXELS = 1_000_000
MEMORY = 64 * MAX_PIXELS
SECONDS = 10
VIEWS = (ViewSpec("center", 32, 32, "0.875"), ViewSpec("whole", 24, 40))
FORK = get_context("fork")
SOUND = pictures.sound()


def mutant(number: int) -> tuple[str, bytes]:
    """Its format and way in words, and its bytes."""
    rng = random.Random(f"image mutant {number}")
    form = rng.choice(list(SOUND))
    data, other = rng.choice(SOUND[form]), rng.choice(SOUND[form])
    way = rng.choice(list(pictures.WAYS))
    data = pictures.WAYS[way](data, other, rng)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        data = pictures.flip(data, other, rng)
    return f"{form} {way}", data


def judge(data: bytes) -> str:
    """What came of decoding and showing an image."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        pixels = decode(data, where="k", max_pixels=MAX_PIXELS)
        if pixels.shape != (3, *image_size(data)) or pixels.dtype != torch.uint8:
            return f"FINDING: pixels {pixels.dtype} {tuple(pixels.shape)}, the header says {image_size(data)}"
        for view in VIEWS:
            if render(pixels, view).shape != (3, view.height, view.width):
                return f"FINDING: {view} is of another size"
        outcome = "decoded"
    except BadImageError:
        outcome = "refused"
    except Exception as error:
        return f"FINDING: {type(error).__name__}: {error}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"FINDING: memory grew by {grown} bytes" if grown > MEMORY else outcome


def work(numbers: range, told: Connection, weaken: bool) -> None:
    """Judge mutants one after the other; tell each number before and its outcome after."""
    torch.set_num_threads(1)
    if weaken:
        decoding.sound_png = bytes
    for form in SOUND.values():  # warm: what is loaded at the first use; sound images must decode
        for data in form:
            assert judge(data) in ("decoded", "refused"), judge(data)
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg has a word on each
    for number in numbers:
        signal.alarm(SECONDS)
        way, data = mutant(number)
        told.send((number, way, ""))
        told.send((number, way, judge(data)))


def judged(numbers: range, weaken: bool) -> Iterator[tuple[str, str]]:
    """Way and outcome of each mutant, in processes that may die."""
    while numbers:
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=work, args=(numbers, there, weaken))
        process.start()
        there.close()
        number, way, outcome = numbers.start - 1, "start", ""
        try:
            while True:
                number, way, outcome = here.recv()
                if outcome:
                    yield way, f"{outcome} ({number})" if outcome.startswith("FINDING") else outcome
        except EOFError:
            process.join()
        if process.exitcode:
            yield way, f"FINDING: the process ended with {process.exitcode} ({number})"
        numbers = range(number + 1, numbers.stop)


def part(first: int, count: int, weaken: bool) -> dict[str, Any]:
    """Counts and findings of a range of mutants."""
    outcomes: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    findings = []
    for way, outcome in judged(range(first, first + count), weaken):
        ways[way] += 1
        outcomes[outcome.split(":")[0]] += 1
        if outcome.startswith("FINDING"):
            findings.append(f"{way} {outcome[9:300]}")
    return {"mutants": ways.total(), "outcomes": outcomes, "ways": ways, "findings": findings}


def tell_part(told: Connection, *arguments: Any) -> None:
    told.send(part(*arguments))


def main() -> int:
    parser = numbered(__doc__, 10_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    size, running = -(-arguments.count // arguments.processes), []
    for start in range(arguments.first, arguments.first + arguments.count, size):
        here, there = FORK.Pipe(duplex=False)
        count = min(size, arguments.first + arguments.count - start)
        process = FORK.Process(target=tell_part, args=(there, start, count, arguments.weaken))
        process.start()
        there.close()
        running.append(here)
    total: dict[str, Any] = {"mutants": 0, "outcomes": Counter(), "ways": Counter(), "findings": []}
    for here in running:
        for name, value in here.recv().items():
            total[name] = total[name] + value
    print(json.dumps(total, sort_keys=True))
    return 1 if total["findings"] else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
