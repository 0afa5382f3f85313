"""What a model's output means: how it is scored in training and in evaluation.

`train.py` knows tasks, not models: a task says what a model is told beside the image, and turns its
answers into a loss, into a tally of each batch, and the tally of a whole split into scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from segzoo import instance_losses, instance_scores, metrics, parallel, targets
from segzoo.data.spec import Source
from segzoo.errors import check_choice
from segzoo.instance_scores import InstanceTally
from segzoo.layers import center_crop
from segzoo.losses import Loss

Example = dict[str, Any]
Size = tuple[int, ...]


class Task(Protocol):
    """What training and evaluation ask of a task."""

    @property
    def definition(self) -> str:
        """What the scores mean, to be printed with them."""
        ...

    @property
    def arrays(self) -> tuple[str, ...]:
        """What of an example goes to the device."""
        ...

    @property
    def asks_twice(self) -> bool:
        """Whether the model answers in one way to learn and in another to be scored."""
        ...

    def inputs(self, example: Example, *, learning: bool) -> dict[str, Any]:
        """Returns what the model is told beside the image, by keyword: to learn, or to predict."""
        ...

    def loss(
        self, answers: Any, example: Example, loss: Loss, class_weights: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over valid, count of valid), float32 scalars."""
        ...

    def tally(self, answers: Any, example: Example) -> Any:
        """Returns what the scores are made of, from one device's share of a batch."""
        ...

    def gather(self, tally: Any) -> Any:
        """Returns the tally of all devices, equal on every one of them."""
        ...

    def begin(self, source: Source, seen: Callable[[Size], Size]) -> Any:
        """Returns the tally of a split before its first batch, on the host.

        Args:
            source: the split's examples, as they are scored.
            seen: from the size of such an image to the size at which the model sees it.
        """
        ...

    def add(self, total: Any, tally: Any) -> Any:
        """Returns the tally of a split with that of one more batch."""
        ...

    def scores(self, total: Any, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns scores by name, from the tally of a whole split."""
        ...


@dataclasses.dataclass(frozen=True)
class _Counting:
    """What the tasks have in common whose model gives logits and whose tally is a confusion matrix.

    Attributes:
        num_classes: the dataset's number of classes; a model of one logit tells two apart.
        axis_name: the axis of the devices.
    """

    num_classes: int
    axis_name: str | None = None
    asks_twice: ClassVar[bool] = False
    arrays: ClassVar[tuple[str, ...]] = ("image", "label", "weight")

    def inputs(self, example: Example, *, learning: bool) -> dict[str, Any]:
        """Returns nothing: the image is all that the model is told."""
        del example, learning
        return {}

    def gather(self, tally: jax.Array) -> jax.Array:
        """Returns the sum over the devices."""
        summed: jax.Array = parallel.psum(tally, self.axis_name)
        return summed

    def begin(self, source: Source, seen: Callable[[Size], Size]) -> np.ndarray:
        """Returns a confusion matrix of zeros, int64."""
        del source, seen
        return np.zeros([max(self.num_classes, 2)] * 2, np.int64)

    def add(self, total: np.ndarray, tally: np.ndarray) -> np.ndarray:
        """Returns the sum, int64."""
        return total + tally


@dataclasses.dataclass(frozen=True)
class Semantic(_Counting):
    """One class per pixel; the tally is the confusion matrix over pixels."""

    definition: str = metrics.DEFINITION

    def loss(
        self, logits: jax.Array, example: Example, loss: Loss, class_weights: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Scores float32 logits `[B, *S, K]` against `example["label"]` `[B, *S]`.

        Logits of a VALID model cover the centre of the image; the labels are cut to match.
        """
        size = logits.shape[1:-1]
        weight = example.get("weight")
        return loss(
            logits,
            _center(example["label"], size),
            weight=None if weight is None else _center(weight, size),
            class_weights=class_weights,
        )

    def tally(self, logits: jax.Array, example: Example) -> jax.Array:
        """Returns the confusion matrix, int32 `[K, K]`, rows truth."""
        label = _center(example["label"], logits.shape[1:-1])
        return metrics.confusion_matrix(metrics.predict_classes(logits), label, self.num_classes)

    def scores(self, tally: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns IoU, accuracies and Dice (see `segzoo.metrics.scores`)."""
        return {**metrics.scores(tally, class_names)}


def _center(array: jax.Array, size: tuple[int, ...]) -> jax.Array:
    return center_crop(array[..., None], size)[..., 0]


@dataclasses.dataclass(frozen=True)
class Classification(_Counting):
    """One class per image; the tally is the confusion matrix over images."""

    definition: str = metrics.CLASSIFICATION_DEFINITION

    def loss(
        self, logits: jax.Array, example: Example, loss: Loss, class_weights: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Scores float32 logits `[B, K]` against `example["label"]` `[B]`."""
        return loss(logits, example["label"], class_weights=class_weights)

    def tally(self, logits: jax.Array, example: Example) -> jax.Array:
        """Returns the confusion matrix, int32 `[K, K]`, rows truth."""
        prediction = jnp.argmax(logits, axis=-1)
        return metrics.confusion_matrix(prediction, example["label"], self.num_classes)

    def scores(self, tally: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns accuracy and error (see `segzoo.metrics.classification_scores`)."""
        return {**metrics.classification_scores(tally)}


@dataclasses.dataclass(frozen=True)
class Instance:
    """Objects, each with a class, a box and a mask; the tally is every image's detections.

    Attributes:
        num_classes: the dataset's number of classes, the background included.
        axis_name: the axis of the devices.
    """

    num_classes: int
    axis_name: str | None = None
    definition: str = instance_scores.DEFINITION
    asks_twice: ClassVar[bool] = True
    arrays: ClassVar[tuple[str, ...]] = (
        *("image", "size", "index"),
        *("instances", "masks", "classes", "valid", "crowd"),
    )

    def inputs(self, example: Example, *, learning: bool) -> dict[str, Any]:
        """Returns the images' sizes before padding and, to learn, the objects with their boxes."""
        sizes = {"sizes": example["size"]} if "size" in example else {}
        return {**sizes, "targets": targets.targets(example)} if learning else sizes

    def loss(
        self, answers: Any, example: Example, loss: Loss, class_weights: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the model's own five losses as one sum, over the number of images."""
        del loss, class_weights
        images: int | jax.Array = len(example["image"])
        if "size" in example:  # the last batch of a split is filled up with images of no size
            images = jnp.sum(jnp.all(example["size"] > 0, axis=-1))
        return instance_losses.total(instance_losses.terms(answers), images, self.axis_name)

    def tally(self, answers: Any, example: Example) -> Example:
        """Returns the detections, and which images' they are."""
        return {**answers, "index": example["index"]}

    def gather(self, tally: Example) -> Example:
        """Returns the detections of all devices, one after the other."""
        gathered: Example = parallel.all_gather(tally, self.axis_name)
        return gathered

    def begin(self, source: Source, seen: Callable[[Size], Size]) -> InstanceTally:
        """Returns the tally of a split without detections."""
        return InstanceTally(source, seen, self.num_classes)

    def add(self, total: InstanceTally, tally: Example) -> InstanceTally:
        """Returns `total`, to which the batch was added."""
        total.add(tally)
        return total

    def scores(self, total: InstanceTally, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns average precision and panoptic quality (see `segzoo.instance_scores`)."""
        return total.scores(class_names)


_TASKS: dict[str, Callable[[int, str | None], Task]] = {
    "semantic": Semantic,
    "classification": Classification,
    "instance": Instance,
}


def for_dataset(task: str, num_classes: int, axis_name: str | None = None) -> Task:
    """Returns the task of a dataset.

    Args:
        task: of its spec.
        num_classes: of its spec.
        axis_name: the axis of the devices that the steps are compiled for.

    Raises:
        SegzooError: for a task that this training loop does not know.
    """
    check_choice("the task to train", task, tuple(_TASKS))
    return _TASKS[task](num_classes, axis_name)
