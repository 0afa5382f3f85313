"""Boundary F1: how well the outlines of a segmentation follow those of the truth.

Csurka et al. 2013 ("What is a good evaluation measure for semantic segmentation?"), as SegNet
reports it (arXiv:1511.00561, section 4.1). Computed on the host, with exact distances.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # whose parts come in when they are first used

from segzoo.errors import SegzooError

VOID = 255
TOLERANCE = 0.0075  # of the diagonal

DEFINITION = (
    "boundary F1: for each class in an image's truth, the F1 of precision (predicted boundary "
    "pixels within 0.75 % of the image diagonal of the true boundary) and recall (true ones near "
    "the predicted); mean over the classes of an image, then over the images; void ignored"
)


def boundary(mask: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Returns the pixels of a mask that have a direct neighbour outside of it.

    The border of the image is no boundary, and neither is the border to what is not known.

    Args:
        mask: bool `[*S]`.
        known: bool `[*S]`; None: everything is.

    Returns:
        bool `[*S]`.
    """
    outside = ~mask if known is None else ~mask & known
    cross = scipy.ndimage.generate_binary_structure(mask.ndim, 1)
    near = scipy.ndimage.binary_dilation(outside, cross)
    return mask & near


def boundary_f1(
    prediction: np.ndarray, label: np.ndarray, num_classes: int, tolerance: float = TOLERANCE
) -> np.ndarray:
    """Scores the outlines of one image, class by class.

    Args:
        prediction: integer class ids `[*S]`.
        label: integer class ids `[*S]`; 255 is void: what is predicted there does not count.
        num_classes: K; 1 (one logit) means two classes.
        tolerance: the largest distance of two pixels that match, as a share of the diagonal.

    Returns:
        float64 `[K]`; NaN for a class that is not in the truth, or has no boundary in either. A
        class whose boundary is in one of them only has 0.

    Raises:
        SegzooError: when the shapes differ.
    """
    if prediction.shape != label.shape:
        raise SegzooError(
            f"predictions of shape {prediction.shape} do not fit labels of shape {label.shape}."
        )
    known = label != VOID
    reach = tolerance * math.hypot(*label.shape)
    scores = np.full(max(num_classes, 2), np.nan)
    for k in np.unique(label[known]):
        truth = boundary(known & (label == k), known)
        guess = boundary(known & (prediction == k), known)
        if truth.any() and guess.any():
            precision = (_distance(truth)[guess] <= reach).mean()
            recall = (_distance(guess)[truth] <= reach).mean()
            total = precision + recall
            scores[k] = 2 * precision * recall / total if total else 0.0
        elif truth.any() or guess.any():
            scores[k] = 0.0
    return scores


def _distance(mask: np.ndarray) -> np.ndarray:
    """The Euclidean distance of every pixel to the nearest one of a mask."""
    return scipy.ndimage.distance_transform_edt(~mask)


class BoundaryTally:
    """Collects the boundary F1 of many images.

    Args:
        num_classes: K; 1 (one logit) means two classes.
    """

    def __init__(self, num_classes: int):
        self._num_classes = num_classes
        self._images: list[float] = []

    def add(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Scores one image; one without any boundary is left out."""
        scores = boundary_f1(prediction, label, self._num_classes)
        if not np.isnan(scores).all():
            self._images.append(float(np.nanmean(scores)))

    def score(self) -> float | None:
        """Returns the mean over the images, a fraction; None without any."""
        return float(np.mean(self._images)) if self._images else None
