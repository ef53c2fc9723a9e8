"""Scripts in processes that have torch and its company imported: forked from one that does nothing but import.

Importing takes five seconds of a core, and many tests need a process for what it does and not for how Python starts: it
is killed, fills a disk, is one of two ranks. Each script is a process of its own that ends as any script does. Tests of
starting itself (what a command imports, the installed program, torchrun) start theirs from nothing, and dlth is
imported by each script anew.
"""

import functools
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

LIBRARIES = ("torchvision.transforms.v2", "torch.distributed", "timm", "webdataset", "zarr", "pydantic", "safetensors")


@functools.cache
def _importer() -> "subprocess.Popen[str]":
    """The process that scripts are forked from; it ends with this one, which closes its standard input."""
    command = [sys.executable, "-P", __file__]  # -P: the modules beside this one are no libraries
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_warm(
    *commands: Sequence[object], environments: Sequence[Mapping[str, str]] = ()
) -> "list[subprocess.CompletedProcess[str]]":
    """Run Python scripts at the same time, each a path and its arguments; how each ended and what it wrote.

    Variables of `environments`, one mapping a script, are added to those of this process. What is read once at the
    start of a library, as OMP_NUM_THREADS, is what it was when the first script ran.
    """
    importer = _importer()
    assert importer.stdin is not None
    assert importer.stdout is not None
    with tempfile.TemporaryDirectory() as name:
        jobs = []
        for number, words in enumerate(commands):
            added = environments[number] if environments else {}
            job = {"words": list(map(str, words)), "environment": os.environ | added, "folder": os.getcwd()}
            jobs.append(job | {"streams": [f"{name}/{number}.out", f"{name}/{number}.err"]})
        try:
            print(json.dumps(jobs), file=importer.stdin, flush=True)
            codes = json.loads(importer.stdout.readline())
        except BaseException:  # a test that ran out of time leaves no answer for the next
            _importer.cache_clear()
            importer.kill()
            raise
        return [
            subprocess.CompletedProcess(job["words"], code, *(Path(path).read_text() for path in job["streams"]))
            for job, code in zip(jobs, codes, strict=True)
        ]


def rank_variables(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each of the ranks that it starts: its number, and a free port where they meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    return [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _serve() -> dict[str, object] | None:
    """Fork a child for each job and tell how all ended, until nobody asks any more; a child gets its job."""
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            child = os.fork()
            if child == 0:
                return job
            children.append(child)
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
    return None


def _become(words: list[str], environment: dict[str, str], folder: str, streams: list[str]) -> None:
    """Run the script as the main module of this process."""
    writing = os.O_WRONLY | os.O_CREAT
    for number, (path, mode) in enumerate([(os.devnull, os.O_RDONLY), *((path, writing) for path in streams)]):
        os.dup2(os.open(path, mode, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:] = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        import_module(library)
    if found := _serve():
        _become(**found)
