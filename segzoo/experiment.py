"""What a run is: one frozen description, written into the run's folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from segzoo.data.augment import Augment
from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.files import write_atomically
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.transfer import Transfer

ModelValue = int | float | bool | str | tuple[float, ...]
T = TypeVar("T")
# A field that says which row of which table a run is: declared, not given on the command line.
Fixed = Annotated[T, tyro.conf.Fixed, tyro.conf.Suppress]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published number to stand beside ours."""

    metric: str
    """Which score, as named in `results.json`: "miou", "pixel_accuracy", ..."""
    value: float
    """The score, as a fraction."""
    source: str
    """Where it was published."""
    protocol: str = ""
    """How it was measured, where that differs from ours."""
    others: dict[str, float] = dataclasses.field(default_factory=dict)
    """Further scores of the same network, by the same names."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run: a model, a dataset and a protocol.

    Raises:
        SegzooError: for values that cannot work, when it is made.
    """

    name: Fixed[str]
    """The experiments module this belongs to."""
    model: str
    """A registered model (`segzoo list`)."""
    dataset: str
    """A registered dataset, or "folder" for own data."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Examples per step, over all devices and processes."""
    model_args: dict[str, ModelValue] = dataclasses.field(default_factory=dict)
    """Overrides of the model, as NAME VALUE pairs; merged with those of the preset."""
    row: Fixed[str] = ""
    """The row of the table; the model's name if empty."""
    preset: str = "full"
    """The size: "full" as the table asks for, or one of the module's cheaper ones."""
    data_dir: str | None = None
    """Where prepared datasets are kept; the tfds default if not given."""
    manual_dir: str | None = None
    """Where the dataset's original files lie; for "folder", the folder."""
    train_split: str = "train"
    """The split trained on, in tfds notation."""
    val_split: str = "val"
    """The split that picks the best checkpoint."""
    test_split: str = "test"
    """The split reported, once."""
    image_size: tuple[int, ...] | None = None
    """Bring images to this size (height, width) on the host; None keeps their own."""
    image_fit: Literal["resize", "pad", "crop", "sides"] = "resize"
    """How: stretch, scale and pad with void, cut, or to a shorter side and at most a longer one."""
    border_weight: bool = False
    """Weigh pixels by U-Net's border map (arXiv:1505.04597, eq. 2)."""
    loss: Loss = dataclasses.field(default_factory=Loss)
    """The weighted sum of losses."""
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    """The optimizer and its schedule."""
    augment: Augment = dataclasses.field(default_factory=Augment)
    """Augmentation of the training images, on the device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of computation; parameters stay float32."""
    accumulate: int = 1
    """Split each batch into that many parts to save memory; the gradient is the same."""
    ema: float = 0.0
    """Decay of a running average of the parameters, used for evaluation; 0 is off."""
    init_from: str | None = None
    """A run folder or weights file whose parameters to start from."""
    init_row: str | None = None
    """A row of the same study whose run to start from."""
    transfer: Transfer = dataclasses.field(default_factory=Transfer)
    """What of the model is trained, and how fast: from scratch, fixed encoder, fine-tuning."""
    seed: int = 0
    """Seeds initialisation, the order of the data, augmentation and drop-out."""
    log_every: int = 20
    """Steps between lines of `metrics.jsonl`."""
    eval_every: int = 200
    """Steps between evaluations on the validation split; each is also a checkpoint."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    monitor: str = "miou"
    """The validation score that picks the best checkpoint; of "loss" and "error" the lowest."""
    patience: int | None = None
    """Stop when the monitored score has not improved for that many evaluations."""
    loader_threads: int = 2
    """Threads that read and decode images."""
    loader_workers: int = 0
    """Worker processes that read and decode images, instead of threads."""
    pictures: int = 4
    """How many examples of the test split to draw."""
    boundary_f1: bool = False
    """Score boundary F1 too (semantic): half a second of a CPU for an image of 360x480."""
    flip_test: bool = False
    """Score the test split once more with each image's mirror image averaged in."""
    published: Fixed[Published | None] = None
    """The published number of this row."""

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "accumulate", "log_every", "eval_every"):
            check_positive_int(field, getattr(self, field))
        check_positive_int("checkpoint_every", self.checkpoint_every)
        check_positive_int("loader_threads", self.loader_threads)
        check_positive_int("seed", self.seed, minimum=0)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.patience is not None:
            check_positive_int("patience", self.patience)
        if self.batch_size % self.accumulate:
            raise SegzooError(
                f"accumulate is {self.accumulate}; expected a divisor of batch_size "
                f"({self.batch_size})."
            )
        if not 0.0 <= self.ema < 1.0:
            raise SegzooError(f"ema is {self.ema}; expected a decay in [0, 1).")
        source = self.init_from or self.init_row
        if source is not None and self.transfer.scenario == "scratch":
            raise SegzooError(
                f"transfer.scenario is 'scratch', but the run would start from {source!r}; "
                "expected 'fixed' or 'fine_tune', or no weights to start from."
            )
        if self.transfer.cache and self.augment != Augment():
            raise SegzooError(
                "transfer.cache keeps the features of the images as they are; expected no "
                "augmentation."
            )

    @property
    def label(self) -> str:
        """The run's name: module, row and preset."""
        return f"{self.name}.{self.row or self.model}.{self.preset}"

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether a high or a low monitored score is good."""
        return "min" if self.monitor in ("loss", "error") else "max"


# What may change when a run goes on: how it is run, not what it computes.
_FREE = (
    "data_dir",
    "manual_dir",
    "log_every",
    "loader_threads",
    "loader_workers",
    "pictures",
    "boundary_f1",
    "flip_test",
)


def save(experiment: Experiment, path: Path) -> None:
    """Writes an experiment as JSON."""
    write_atomically(path, (json.dumps(dataclasses.asdict(experiment), indent=2) + "\n").encode())


def load(path: Path) -> Experiment:
    """Reads what `save` wrote.

    Raises:
        SegzooError: when the file is missing, is not JSON or holds unknown fields.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise SegzooError(f"{path} does not exist; expected the config.json of a run.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SegzooError(f"{path}: not valid JSON ({error}).") from None
    try:
        return _build(Experiment, values)
    except (TypeError, KeyError, AttributeError) as error:
        raise SegzooError(f"{path}: not an experiment of this version ({error}).") from None


def _build(cls: type[Any], values: dict[str, Any]) -> Any:
    hints = get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        kinds = [hints[name], *getattr(hints[name], "__args__", ())]
        nested = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if nested is not None and value is not None:
            if not isinstance(value, dict):
                raise TypeError(f"{name} is {value!r}")
            value = _build(nested, value)  # type: ignore[arg-type]
        arguments[name] = _as_declared(value)
    return cls(**arguments)


def _as_declared(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {name: _as_declared(one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


def differences(one: Experiment, other: Experiment) -> list[str]:
    """Returns the fields that differ and change the numbers of a run."""
    fields = [field.name for field in dataclasses.fields(Experiment) if field.name not in _FREE]
    return [name for name in fields if getattr(one, name) != getattr(other, name)]


def moved(
    experiment: Experiment, *, data_dir: str | None = None, manual_dir: str | None = None
) -> Experiment:
    """Returns the experiment with its data at other places; None leaves a place as it is."""
    return dataclasses.replace(
        experiment,
        data_dir=data_dir or experiment.data_dir,
        manual_dir=manual_dir or experiment.manual_dir,
    )


def shortened(experiment: Experiment, steps: int) -> Experiment:
    """Returns the experiment cut down to its first steps, from random weights.

    The last of them is evaluated and saved, each is logged, and patience is endless. The optimizer
    has no warm-up, for which there is no time, but the rate of its first step, and clips gradients:
    from random weights, under norms frozen to those it would start from, more may be too much.
    """
    optimizer = experiment.optimizer
    return dataclasses.replace(
        experiment,
        steps=steps,
        log_every=1,
        eval_every=steps,
        checkpoint_every=steps,
        patience=None,
        init_from=None,
        init_row=None,
        optimizer=dataclasses.replace(
            optimizer,
            learning_rate=optimizer.learning_rate / (optimizer.warmup_steps + 1),
            warmup_steps=0,
            clip_norm=optimizer.clip_norm or 1.0,
        ),
    )


def check_same(experiment: Experiment, path: Path) -> None:
    """Makes sure that a run that goes on is the one that was begun.

    Raises:
        SegzooError: when a field that changes the numbers differs from the file.
    """
    begun = load(path)
    changed = [
        f"{name} was {getattr(begun, name)!r} and is {getattr(experiment, name)!r}"
        for name in differences(begun, experiment)
    ]
    if changed:
        raise SegzooError(
            f"{path.parent} holds another run ({'; '.join(changed)}); "
            "give another --run-dir, or the settings it was begun with."
        )
