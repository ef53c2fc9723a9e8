"""The settings of the demo."""

from dlth.training.settings.fields import Integers, Settings, setting


class DemoConfig(Settings):
    """Settings of `dlth demo`."""

    out: str = setting("demo", "Demo", "Folder of everything that the demo makes.")
    images: int = setting(3600, "Demo", "Training images.", gt=0)
    val_images: int = setting(1000, "Demo", "Validation images.", gt=0)
    epochs: int = setting(6, "Demo", "Epochs of every training.", gt=1)
    keep: str = setting("0.25", "Demo", "Share of the 64 patches to keep.")
    blocks: Integers = setting((0,), "Demo", "Blocks that select.")
    seeds: Integers = setting(
        (0, 1, 2), "Demo", "Seeds of the students; with fewer than three nothing is said of the arms.", min_length=1
    )
