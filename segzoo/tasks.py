"""What a model's output means: how it is scored in training and in evaluation.

`train.py` knows tasks, not models: a task turns logits and a batch into a loss and into an additive
tally of integers, and a summed tally into scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from segzoo import metrics
from segzoo.errors import SegzooError
from segzoo.layers import center_crop
from segzoo.losses import Loss

Example = dict[str, Any]
ARRAYS: tuple[str, ...] = ("image", "label", "weight")
"""What of an example goes to the device."""


class Task(Protocol):
    """The three things training and evaluation ask of a task."""

    @property
    def definition(self) -> str:
        """What the scores mean, to be printed with them."""
        ...

    def loss(
        self, logits: jax.Array, example: Example, loss: Loss, class_weights: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over valid, count of valid), float32 scalars."""
        ...

    def tally(self, logits: jax.Array, example: Example) -> jax.Array:
        """Returns integers that add up over batches and devices."""
        ...

    def scores(self, tally: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns scores by name, from a tally summed over a whole split."""
        ...


@dataclasses.dataclass(frozen=True)
class Semantic:
    """One class per pixel; the tally is the confusion matrix over pixels.

    Attributes:
        num_classes: the dataset's number of classes; a model of one logit tells two apart.
    """

    num_classes: int
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
class Classification:
    """One class per image; the tally is the confusion matrix over images."""

    num_classes: int
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


def for_dataset(task: str, num_classes: int) -> Task:
    """Returns the task of a dataset.

    Raises:
        SegzooError: for a task that this training loop does not know.
    """
    if task == "semantic":
        return Semantic(num_classes)
    if task == "classification":
        return Classification(num_classes)
    raise SegzooError(f"task {task!r} cannot be trained; expected 'semantic' or 'classification'.")
