"""The whole pipeline in minutes on a CPU: shards, a selector, tickets, a study of three arms, its report.

The images are scikit-learn's handwritten digits among clutter, so the patches that matter are known and a ticket's
recall can be scored. Every step is one of the real commands, called with the same settings; each is printed as a user
would type it. Finished steps are kept: run it again and it goes on where it was stopped.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlth.data.packing.demo_digits import make_digit_shards
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.stage import plan, select
from dlth.pipeline.studies.compare import REPORT, conclude, found_study
from dlth.pipeline.studies.demo_config import DemoConfig
from dlth.pipeline.studies.demo_sections import demo_sections
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.pipeline.studies.worker import StudyReporter, run_study
from dlth.tickets import TicketStore
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.store.locks import LOCK, owned
from dlth.training.distributed.signals import EXIT_RESUMABLE
from dlth.training.reporter import Reporter
from dlth.training.run_files import write_text
from dlth.training.runs.loop import train
from dlth.training.runs.runlog import RESULT
from dlth.training.settings.layering import checked, layered
from dlth.training.settings.toml_text import CONFIG, to_toml
from dlth.training.settings.train_config import TrainConfig

MODEL = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    "img_size": 64,
    "num_classes": 10,
}
"""A ViT small enough for a CPU: 8x8 patches of 8 px, 4 blocks, width 96."""


ARMS = ("ticket", "random", "dense")
MARGIN = 2.0
"""Points within which one arm counts as as good as another."""
TITLE = "Winning tickets among handwritten digits"


@dataclass(frozen=True)
class Demo:
    """One demo in its folder; each step returns at once if its output is there.

    note, counting: as the commands of both stages take them; reporter: listens to the selector's training, and what
    `watching(plan)` gives for a block to the study
    """

    config: DemoConfig
    note: Note
    reporter: Reporter
    counting: Callable[..., Any]
    watching: Callable[[StudyPlan], AbstractContextManager[StudyReporter]]

    @property
    def out(self) -> Path:
        """The demo's folder."""
        return Path(self.config.out)

    @property
    def study(self) -> Path:
        """The study's."""
        return self.out / "study"

    @property
    def weights(self) -> Path:
        """The selector's."""
        return self.out / "selector" / "model.safetensors"

    def run(self) -> Path:
        """All steps in order; gives the report's path. Raises LockedError while another demo works in the folder."""
        with owned(self.out):
            self._claim_folder()
            shards = (str(self.out / "shards"), self.config.images, self.config.val_images)
            drawn = f"from {make_digit_shards.__module__} import make_digit_shards; make_digit_shards{shards}"
            drawing = f"python -c {shlex.quote(drawn)}"
            self.note(f"\n# handwritten digits among clutter, as WebDataset shards\n{drawing}")
            make_digit_shards(*shards)
            do = {"train": self._train, "select": self._select, "compare": self._compare}
            steps = list(self._steps())
            for what, command, values in steps:
                self.note(f"\n# {what}\n{as_command(command, values)}")
                do[command](values)
            self.note("\n# the report")
            commands = (drawing, *(as_command(command, values) for _, command, values in steps))
            page = self.out / REPORT
            conclude(self.study, self.note, page, TITLE, demo_sections(self.out, self.weights, MODEL, commands))
            return page

    def _steps(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """What each step is, its command, and the settings of that."""
        out = str(self.out / "selector")
        values = self._train_values() | {"arm": "dense", "seed": 100, "out": out}
        yield "a small selector, trained on all patches", "train", values
        for split, view in (("train", "whole"), ("val", "center")):
            yield f"the tickets of the {split} images", "select", self._select_values(split, view)
        yield "students on tickets, on random patches and on all: a study", "compare", self._compare_values()

    def _claim_folder(self) -> None:
        record, text = self.out / "demo.toml", to_toml(self.config)
        if record.exists() and record.read_text() != text:
            raise MismatchError(
                f"{shown(self.out)} holds a demo with other settings: {shown(record.read_text(), 1000)}. Take another"
                " --out, or remove it."
            )
        if not record.exists() and any(path.name != LOCK for path in self.out.iterdir()):
            raise InputError(f"{shown(self.out)} is not empty and holds no demo: take another --out.")
        write_text(record, text)

    def _train_values(self) -> dict[str, Any]:
        shards = self.out / "shards"
        return {
            "recipe": "smoke",
            "data": str(shards / "train-*.tar"),
            "val": str(shards / "val-*.tar"),
            **MODEL,
            "epochs": self.config.epochs,
            "val_interval": 2,
            "scale": (1.0, 1.0),
            "ratio": (1.0, 1.0),
            "crop_pct": 1.0,
        }

    def _compare_values(self) -> dict[str, Any]:
        tickets = self.out / "tickets"
        return {
            "arms": ARMS,
            "seeds": self.config.seeds,
            "margin": MARGIN,
            "measure": 0.0,
            "tickets": str(tickets / "train.zarr"),
            "val_tickets": str(tickets / "val.zarr"),
            **self._train_values(),
            "out": str(self.study),
        }

    def _compare(self, values: dict[str, Any]) -> None:
        own = {name: value for name, value in values.items() if name in CompareConfig.model_fields}
        shared = {name: value for name, value in values.items() if name not in own}
        plan = found_study(checked(CompareConfig, own), shared, note=self.note, counting=self.counting)
        with self.watching(plan) as reporter:
            state = run_study(self.study, plan, reporter=reporter)
        if state.stopped:
            raise SystemExit(EXIT_RESUMABLE)
        if state.failed:
            told = "; ".join(f"{run.name}: {run.problem}" for run in state.failed)
            raise InputError(f"runs of the demo's study failed: {told}")

    def _train(self, values: dict[str, Any]) -> None:
        config: TrainConfig = layered(values | {"resume": "auto"}, recipe="smoke")
        folder = Path(config.out)
        if (folder / RESULT).exists() and (folder / CONFIG).read_text() == to_toml(config):
            self.note(f"done before: {folder}")
        elif (result := train(config, reporter=self.reporter)).status != "finished":
            raise SystemExit(result.exit_code)

    def _select_values(self, split: str, view: str) -> dict[str, Any]:
        return {
            **MODEL,
            "checkpoint": str(self.weights),
            "data": str(self.out / "shards" / f"{split}-*.tar"),
            "split": split,
            "dataset": "dlth digits",
            "view": view,
            "crop_pct": 1.0,
            "keep": self.config.keep,
            "blocks": self.config.blocks,
            "out": str(self.out / "tickets" / f"{split}.zarr"),
        }

    def _select(self, values: dict[str, Any]) -> None:
        prepared = plan(checked(SelectConfig, values))
        with self.counting(f"select {values['split']}", prepared.index.num_samples) as counter:
            report = select(prepared, counter.advance, counter.skip, self.note)
        store = TicketStore(values["out"])
        self.note(f"{store.num_rows} tickets of {store.header.k} patches, identity {report.identity[:16]}")


def as_command(command: str, values: Mapping[str, Any]) -> str:
    """A command line that does what a call with these settings does."""
    words = [command]
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, Mapping):
            text = ",".join(f"{key}={item}" for key, item in value.items())
        elif isinstance(value, tuple):
            text = ",".join(map(str, value))
        else:
            text = str(value)
        words += [flag, shlex.quote(text)]
    return "dlth " + " ".join(words)
