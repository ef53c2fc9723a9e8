"""`dlth demo`: the whole pipeline as one study."""

from typing import Any

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.studies.demo_config import DemoConfig
from dlth.tickets.errors import shown


@with_flags(DemoConfig)
def demo(overrides: dict[str, Any]) -> None:
    """The whole pipeline in minutes on a CPU: shards, a selector, tickets, a study of three arms, its report."""
    from dlth.pipeline.cli.study_progress import study_progress
    from dlth.pipeline.cli.training import ConsoleReporter
    from dlth.pipeline.studies.demo import Demo
    from dlth.training.settings.layering import checked

    config = checked(DemoConfig, overrides)
    report = Demo(config, console.note, ConsoleReporter(), console.counting, study_progress).run()
    console.note(f"open {shown(report)} in a browser")
