"""What a weights file of dlth says of itself, and what becomes of it when the user says otherwise.

A run writes a note into its weights (JSON under "dlth" in safetensors' metadata): the model and how it was built, and
how its images were made. Whoever loads weights asks here, so that a selector or an evaluation sees images as the model
was trained to see them: timm's defaults in place of another mean and deviation changed a third of a ticket's patches.
The rule is one: what the file records is used; a flag that says otherwise is named, and wins.

A stranger may have written the file, so types, lengths and ranges are checked, and arguments by which timm would read
files or fetch weights are refused. Names that are not known here are left alone: other versions may say more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from torch import nn

from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, MismatchError, MissingFileError, shown
from dlth.tickets.store.disk import reading
from dlth.training.models.registry import build, held_to, outline, same_model
from dlth.training.models.weights import check_fits, head_classes, read_weights
from dlth.training.settings.fields import Deviation, Keep, Mean

KEY = "dlth"
"""Name of the metadata entry that holds the note."""
MODEL_FILE, EMA_FILE = "model.safetensors", "model_ema.safetensors"
"""A run's weights, and their moving average, in its folder."""
ABOUT_MODEL = ("model", "model_kwargs", "num_classes", "img_size")
ABOUT_STUDENT = ("how", "patch_size")
ABOUT_IMAGES = ("mean", "std", "crop_pct", "interpolation")
ABOUT_SELECTION = ("blocks", "fuse_tokens")
"""What a note records and a setting may say otherwise; of a selector also its stage rate (`settle_rates`)."""

_MAX_NOTE = 1 << 16
NOT_THE_MODELS = (
    *("name", "model_name", "num_classes", "img_size", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir", "scriptable", "exportable", "features_only", "device", "dtype"),
)
"""Arguments of timm's `create_model` that are said elsewhere, or that read files and fetch weights; on a device of its
own (meta) a model has no weights that could be read or run.
"""

Text = Annotated[str, Field(max_length=1_000)]
Size = Annotated[int, Field(ge=1, le=65_536)]


class SelectionNote(BaseModel):
    """How weights were trained to select: blocks from 0, the share that each of their stages keeps, and whether what
    falls is fused into one token.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    blocks: Annotated[tuple[Annotated[int, Field(ge=0, le=1_000)], ...], Field(min_length=1, max_length=64)]
    stage_keep: Annotated[Keep, Field(max_length=40)]
    fuse_tokens: bool = False


class ModelNote(BaseModel):
    """Which model something is about, so that timm builds it (img_size in pixels, None: the model's own)."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())

    model: Annotated[Text, Field(min_length=1)]
    model_kwargs: Annotated[dict[Text, Any], Field(max_length=64)] = {}
    num_classes: Annotated[int, Field(ge=0, le=10**7)] | None = None
    img_size: Size | None = None

    @field_validator("model_kwargs")
    @classmethod
    def _only_the_models(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in NOT_THE_MODELS:
                raise ValueError(f"{name} is no argument of a model")
        return value

    def outline(self) -> nn.Module:
        """The model on the meta device. Raises InputError as `registry.build`."""
        return outline(self.model, num_classes=self.num_classes, img_size=self.img_size, **self.model_kwargs)


class WeightsNote(ModelNote):
    """What weights say of themselves; what is None or empty is not said.

    how, patch_size: how its student left patches out, and their side in pixels
    mean, std, crop_pct, interpolation: how its images were made, mean and std of values in [0, 1]
    crop_chosen: whether the run's user chose crop_pct, and not a recipe, the tickets or the model
    arm, mode, k, keep, num_patches, tickets: what it was trained on (k of num_patches patches, the file's identity)
    seed, config_sha256, epoch, step: which run wrote it, and when
    selection: of a selector, how it was trained to select
    mask: identity of the mask of weights under which it was trained
    """

    how: Annotated[str, Field(pattern=r"^[a-z-]{1,20}$")] | None = None
    patch_size: Size | None = None
    mean: tuple[Mean, Mean, Mean] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Annotated[str, Field(pattern=r"^[a-z-]{1,20}$")] | None = None
    crop_chosen: bool = False
    arm: Text = ""
    mode: Text = ""
    k: Annotated[int, Field(ge=1)] | None = None
    keep: Text = ""
    num_patches: Annotated[int, Field(ge=1)] | None = None
    tickets: Text = ""
    seed: Annotated[int, Field(ge=0)] | None = None
    config_sha256: Text = ""
    epoch: int = 0
    step: int = 0
    selection: SelectionNote | None = None
    mask: Text = ""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The note of a weights file; None where a file has none (other programs' safetensors, a .pth).

        Raises:
            InputError: no whole safetensors file, or a note that cannot be: the file, the field and what it holds
        """
        if path.suffix != ".safetensors" or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(KEY)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{shown(path)} is no whole safetensors file: {shown(error)}") from error
        if text is None:
            return None
        if len(text) > _MAX_NOTE:
            raise InputError(f"{path.name}: its note of {len(text)} characters is too long; notes end at {_MAX_NOTE}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'the note'}: {problem['msg']}, found {shown(problem['input'])}"
                for problem in error.errors()
            )
            raise InputError(f"{path.name} says of itself what cannot be: {shown(wrong, 500)}") from error

    def to_json(self) -> dict[str, Any]:
        """The note as JSON holds it."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class WeightsFile:
    """Weights on disk: what the user called them, the file, its note, and whether to take averages from within it."""

    name: str
    path: Path
    note: WeightsNote | None
    use_ema: bool = False

    @classmethod
    def find(cls, name: str, use_ema: bool = False) -> Self:
        """The weights that a path means: a file, or a run's folder (with `use_ema` its averaged weights).

        Raises:
            MissingFileError: nothing there, or no such weights in the folder
            InputError: as `WeightsNote.read`
        """
        path = Path(name)
        with reading(name):
            is_folder, is_file = path.is_dir(), path.is_file()
        if is_folder:
            path /= EMA_FILE if use_ema else MODEL_FILE
            if not path.is_file():
                why = "the run kept no averages (--model-ema)" if use_ema else "only a finished run has it"
                raise MissingFileError(f"{shown(name)} holds no {path.name}: {why}; a file's own path is taken as well")
            use_ema = False
        elif not is_file:
            raise MissingFileError(f"there is no weights file {shown(name)}")
        return cls(name, path, WeightsNote.read(path), use_ema)

    def settle(self, given: Mapping[str, Any], note: Note, flags: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What holds of each name in `given`: what the user gave, else what the file records (None: neither).

        Args:
            given: settings by name, of those that are `ABOUT_…` something; None or empty is not given
            note: told every flag which contradicts the file
            flags: the flag of a name, where it is not the name itself
        """
        recorded = {} if self.note is None else dict(self.note) | dict(self.note.selection or {})
        values, against = {}, []
        for name, value in given.items():
            own = recorded.get(name)
            is_given = value is not None and value != {}
            values[name] = value if is_given else own
            same = same_model(value, own) if name == "model" and value and own else value == own
            if is_given and own is not None and not same:
                against.append(f"{_flag(name, flags)} {_text(value)} (recorded: {_text(own)})")
        self._tell(against, note)
        return values

    def settle_rates(
        self, rates: Mapping[str, Any], note: Note, flags: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The rates `stage_keep`, `keep` and `tokens`, of which one at most is given; the recorded stage rate if none.

        `note` is told of one that is given against what the file records; `flags` as `settle` takes them.
        """
        recorded = self.note.selection.stage_keep if self.note is not None and self.note.selection is not None else None
        given = {name: rate for name, rate in rates.items() if rate is not None}
        if recorded is None:
            return dict(rates)
        if given != {"stage_keep": recorded}:
            against = [f"{_flag(name, flags)} {rate} (recorded: stage keep {recorded})" for name, rate in given.items()]
            self._tell(against, note)
        return dict(rates) if given else {**rates, "stage_keep": recorded}

    def _tell(self, against: list[str], note: Note) -> None:
        if against:
            note(f"against what {shown(self.name)} records of itself: {', '.join(against)}; the flags win")

    def build(self, name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
        """The model with the file's weights, which are read once; it is in memory only when its shapes are the file's.

        A note may name a model of any size: without that look, four numbers in a small file take all memory.

        Args:
            name, options: as `registry.build` takes them
            num_classes: classes of the head; absent means those of the file's linear head, if it has one
        Raises:
            DlthError: as `registry.build` and `load_weights`
        """
        loaded = read_weights(self.path, self.use_ema)
        classes = head_classes(loaded) if num_classes is None else num_classes
        depth = options.get("depth")
        if isinstance(depth, int) and depth > len(loaded):  # each block would have weights
            raise MismatchError(f"{shown(self.name)} holds {len(loaded)} tensors, too few for a model of depth {depth}")
        fitting = partial(check_fits, weights=loaded, name=self.path.name)
        with held_to(len(loaded), shown(self.name)):
            vit = build(name, fitting, num_classes=classes, **options)
        vit.load_state_dict(fitting(vit), strict=True)
        return vit


def _flag(name: str, flags: Mapping[str, str] | None) -> str:
    return (flags or {}).get(name, "--" + name.replace("_", "-"))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return shown(",".join(f"{name}={item}" for name, item in value.items()) or "none")
    return shown(",".join(map(str, value)) if isinstance(value, tuple) else value)
