"""`dlth demo`: the whole pipeline as one study."""

from typing import Any

from dlth.pipeline import console
from dlth.pipeline.demo_config import DemoConfig
from dlth.pipeline.flags import with_flags
from dlth.tickets.errors import shown


@with_flags(DemoConfig)
def demo(overrides: dict[str, Any]) -> None:
    """The whole pipeline in minutes on a CPU: shards, a selector, tickets, three arms, a report."""
    from dlth.pipeline.cli_train import ConsoleReporter
    from dlth.pipeline.demo import Demo
    from dlth.training.settings.layering import checked

    config = checked(DemoConfig, overrides)
    report = Demo(config, console.note, ConsoleReporter(), console.counting).run()
    console.note(f"open {shown(report)} in a browser")
