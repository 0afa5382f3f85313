"""Segmentation scores: an additive integer confusion matrix, and every number read off it.

The matrix is int32 on the device, summed over devices and batches, and int64 on the host, so the
scores of a dataset are exact on any number of devices. Rows are the truth, columns the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from segzoo.errors import SegzooError

DEFINITION = (
    "dataset-level: one confusion matrix over all pixels of the split, void (255) ignored; "
    "IoU = TP / (TP + FP + FN) per class; means are over the classes that occur in the truth or in "
    "the prediction, so a class that is only predicted counts as IoU 0; class accuracy = mean "
    "recall over the classes that occur in the truth; fractions, not percent"
)

CLASSIFICATION_DEFINITION = (
    "top-1 over all images of the split; class accuracy = mean recall over the classes that occur "
    "in the truth; fractions, not percent"
)


class Scores(TypedDict):
    """Scores of a segmentation, fractions in 0..1; None where there is nothing to divide by.

    Attributes:
        definition: what the numbers mean, to be printed with them.
        pixels: number of valid pixels.
        miou: mean of `iou` over the classes that have one.
        pixel_accuracy: correct pixels over all ("global accuracy", G in SegNet).
        class_accuracy: mean of `accuracy` over the classes that have one (C in SegNet).
        mean_dice: mean of `dice` over the classes that have one.
        fw_iou: mean of `iou` weighted by each class's share of the truth (f.w. IU in FCN).
        iou: intersection over union by class name.
        dice: `2 TP / (2 TP + FP + FN)` by class name, the F1 score.
        accuracy: recall `TP / (TP + FN)` by class name.
    """

    definition: str
    pixels: int
    miou: float | None
    pixel_accuracy: float | None
    class_accuracy: float | None
    mean_dice: float | None
    fw_iou: float | None
    iou: dict[str, float | None]
    dice: dict[str, float | None]
    accuracy: dict[str, float | None]


class ClassificationScores(TypedDict):
    """Scores of a classification, fractions in 0..1; None where there is nothing to divide by.

    Attributes:
        definition: what the numbers mean, to be printed with them.
        images: number of images with a label.
        accuracy: top-1 accuracy.
        error: `1 - accuracy`.
        class_accuracy: mean recall over the classes that occur in the truth.
    """

    definition: str
    images: int
    accuracy: float | None
    error: float | None
    class_accuracy: float | None


def predict_classes(logits: jax.Array) -> jax.Array:
    """Returns the class of the largest logit; with one logit, class 1 where it is above 0.

    Args:
        logits: float `[..., K]`.

    Returns:
        Class ids `[...]`, uint8 up to 256 classes and int32 above; the first of equal logits wins.
    """
    classes = logits.shape[-1]
    if classes == 1:
        return (logits[..., 0] > 0).astype(jnp.uint8)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8 if classes <= 256 else jnp.int32)


def confusion_matrix(prediction: jax.Array, label: jax.Array, num_classes: int) -> jax.Array:
    """Counts the pixels of each pair of true and predicted class.

    Void and other ids that are no class are not counted (`segzoo check-data` finds those). One call
    counts exactly up to 2^31 pixels of a pair; sum the matrices of many calls in int64.

    Args:
        prediction: integer class ids of any shape.
        label: integer class ids, the same shape.
        num_classes: K; 1 (one logit) means two classes.

    Returns:
        int32 `[K, K]`, rows the truth, columns the prediction.

    Raises:
        SegzooError: when the shapes differ.
    """
    if prediction.shape != label.shape:
        raise SegzooError(
            f"predictions of shape {prediction.shape} do not fit labels of shape {label.shape}."
        )
    classes = max(num_classes, 2)
    truth = label.astype(jnp.int32)
    guess = prediction.astype(jnp.int32)
    counted = (truth >= 0) & (truth < classes) & (guess >= 0) & (guess < classes)
    pair = jnp.where(counted, truth * classes + guess, classes * classes)
    counts = jnp.zeros(classes * classes, jnp.int32).at[pair.ravel()].add(1, mode="drop")
    return counts.reshape(classes, classes)


def scores(confusion: np.ndarray, class_names: Sequence[str]) -> Scores:
    """Reads the segmentation scores off a confusion matrix.

    A class that occurs neither in truth nor in prediction has no IoU (None) and is left out of the
    means; one that is predicted but never true has IoU 0, which counts.

    Args:
        confusion: integer `[K, K]`, rows the truth, columns the prediction.
        class_names: K different names.

    Returns:
        A dictionary of Python numbers that goes into JSON as it is.

    Raises:
        SegzooError: when the names do not fit the matrix.
    """
    matrix = _checked(confusion)
    if len(class_names) != len(matrix) or len(set(class_names)) != len(class_names):
        raise SegzooError(
            f"{len(class_names)} class names {tuple(class_names)!r} for {len(matrix)} classes; "
            "expected one different name for each."
        )
    right = np.diagonal(matrix)
    truth, guess = matrix.sum(1), matrix.sum(0)
    iou = _divide(right, truth + guess - right)
    dice = _divide(2 * right, truth + guess)
    recall = _divide(right, truth)
    seen = truth > 0
    return {
        "definition": DEFINITION,
        "pixels": int(matrix.sum()),
        "miou": _mean(iou),
        "pixel_accuracy": _number(_divide(right.sum(), matrix.sum())),
        "class_accuracy": _mean(recall),
        "mean_dice": _mean(dice),
        "fw_iou": _number(_divide((truth[seen] * iou[seen]).sum(), truth.sum())),
        "iou": _by_name(class_names, iou),
        "dice": _by_name(class_names, dice),
        "accuracy": _by_name(class_names, recall),
    }


def classification_scores(confusion: np.ndarray) -> ClassificationScores:
    """Reads the classification scores off a confusion matrix.

    Args:
        confusion: integer `[K, K]`, rows the truth, columns the prediction.

    Returns:
        A dictionary of Python numbers that goes into JSON as it is.
    """
    matrix = _checked(confusion)
    right = np.diagonal(matrix)
    images = matrix.sum()
    return {
        "definition": CLASSIFICATION_DEFINITION,
        "images": int(images),
        "accuracy": _number(_divide(right.sum(), images)),
        "error": _number(_divide(images - right.sum(), images)),
        "class_accuracy": _mean(_divide(right, matrix.sum(1))),
    }


def _checked(confusion: np.ndarray) -> np.ndarray:
    matrix = np.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SegzooError(f"the confusion matrix has shape {matrix.shape}; expected a square.")
    return matrix.astype(np.int64)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divides in float64; NaN where there is nothing to divide by."""
    below = np.asarray(below)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values, strict=True)}
