"""What weights need beside their arrays: which model, which classes, which normalisation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segzoo import registry
from segzoo.errors import SegzooError
from segzoo.files import write_atomically

if TYPE_CHECKING:
    import flax.linen as nn

FILE_NAME = "model.json"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The description that travels with weights: `model.json` in a run folder, metadata in a file.

    Attributes:
        model: the name in the registry.
        model_args: the overrides the model was built with, `num_classes` among them; JSON values.
        class_names: one name per class id.
        palette: one RGB colour per class id, 0..255.
        mean: mean of each input channel, in the units of a uint8 image (0..255).
        std: standard deviation of each input channel, in the same units.
        task: "semantic", "instance" or "classification".
        in_channels: number of channels of the input.
        image_size: `*S`, the size images were brought to for training; None for their own sizes.
        image_fit: how: "resize" (stretched), "pad" (scaled to fit), "crop" (scale unchanged) or
            "sides" (the shorter side, and the most of the longer one).
            Prediction brings pictures to the same scale, and its answer back.
        dataset: the name of the dataset trained on.
        step: the training step the weights were taken at.
        segzoo_version: the version of the package that wrote them.
        origin: of weights from elsewhere, where from: a hub id pinned to its commit, or a file.
    """

    model: str
    model_args: dict[str, Any]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: str = "semantic"
    in_channels: int = 3
    image_size: tuple[int, ...] | None = None
    image_fit: str = "crop"
    dataset: str = ""
    step: int = 0
    segzoo_version: str = ""
    origin: str = ""

    @property
    def spatial_dims(self) -> int:
        """The number of spatial axes of an input: 2 for pictures, 3 for volumes."""
        if "spatial_dims" in self.model_args:
            return int(self.model_args["spatial_dims"])
        if self.image_size is not None:
            return len(self.image_size)
        return len(registry.entry(self.model).input_shape) - 1

    def build(self) -> nn.Module:
        """Returns the model described, without parameters.

        Raises:
            SegzooError: when the registry knows no such model or override.
        """
        return registry.get(self.model, **self.model_args)

    def to_json(self) -> dict[str, Any]:
        """Returns the description as a JSON object: lists in place of tuples.

        Raises:
            SegzooError: when `model_args` holds something JSON cannot say.
        """
        try:
            return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise SegzooError(
                f"the overrides of {self.model!r} cannot be written as JSON ({error}): "
                "use numbers, strings, booleans and sequences of them."
            ) from error

    @classmethod
    def from_json(cls, read: Any, where: str = FILE_NAME) -> ModelInfo:
        """Reads what `to_json` wrote; sequences come back as tuples.

        Fields this version does not know are passed over, so that weights of later versions load.

        Args:
            read: the JSON object.
            where: the place it was read from, named in errors.

        Raises:
            SegzooError: for anything but an object, or a missing or impossible field.
        """
        if not isinstance(read, dict):
            raise SegzooError(f"{where} holds a {type(read).__name__}; expected a JSON object.")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        missing = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in read
        ]
        if missing:
            raise SegzooError(f"{where} lacks {', '.join(repr(name) for name in missing)}.")
        info = cls(**{name: _frozen(value) for name, value in read.items() if name in fields})
        info._check(where)
        return info

    @classmethod
    def from_text(cls, text: str, where: str = FILE_NAME) -> ModelInfo:
        """Reads JSON text; see `from_json`."""
        try:
            return cls.from_json(json.loads(text), where)
        except json.JSONDecodeError as error:
            raise SegzooError(f"{where} is not valid JSON: {error}.") from error

    def write(self, folder: Path | str) -> None:
        """Writes `model.json` into a run folder, atomically."""
        text = json.dumps(self.to_json(), indent=2) + "\n"
        write_atomically(Path(folder) / FILE_NAME, text.encode())

    @classmethod
    def read(cls, folder: Path | str) -> ModelInfo:
        """Reads the `model.json` of a run folder.

        Raises:
            SegzooError: when there is none, or it is damaged.
        """
        path = Path(folder) / FILE_NAME
        try:
            return cls.from_text(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise SegzooError(f"{folder} is not a run folder: it has no {FILE_NAME}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SegzooError(f"{path} cannot be read: {error}.") from error

    def _check(self, where: str) -> None:
        """Raises `SegzooError` unless the fields have the types they are declared with."""
        for name, kind in {
            "model": str,
            "model_args": dict,
            "class_names": tuple,
            "palette": tuple,
            "mean": tuple,
            "std": tuple,
            "task": str,
            "in_channels": int,
            "image_size": tuple | None,
            "image_fit": str,
            "dataset": str,
            "step": int,
            "segzoo_version": str,
            "origin": str,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise SegzooError(f"{where}: {name} is {value!r}; expected {_word(kind)}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_channels or not _numbers(values):
                raise SegzooError(
                    f"{where}: {name} is {list(values)}; expected {self.in_channels} numbers, "
                    "one per channel."
                )
        if self.image_fit not in ("resize", "pad", "crop", "sides"):
            raise SegzooError(
                f"{where}: image_fit is {self.image_fit!r}; expected 'resize', 'pad', "
                "'crop' or 'sides'."
            )
        if not all(value > 0 for value in self.std):
            raise SegzooError(f"{where}: std is {list(self.std)}; expected positive numbers.")
        if self.palette and len(self.palette) < len(self.class_names):
            raise SegzooError(
                f"{where}: palette has {len(self.palette)} colours for "
                f"{len(self.class_names)} classes."
            )
        if not all(isinstance(c, tuple) and len(c) == 3 and _numbers(c) for c in self.palette):
            raise SegzooError(f"{where}: palette must hold [red, green, blue] colours, 0..255.")


def _numbers(values: tuple[Any, ...]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _word(kind: Any) -> str:
    words = {str: "a string", dict: "an object", tuple: "a list", int: "an integer"}
    return words.get(kind, "a list or null")


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples: fields of linen modules must be hashable."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return value
