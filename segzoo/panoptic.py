"""Panoptic quality of objects (Kirillov et al. 2019, arXiv:1801.00868, section 4).

A segment of the prediction matches one of the truth where their IoU is above 1/2, which no two can
be of the same one as long as none overlap. Over all images of a split, for each class,

    PQ = SQ x RQ,   SQ = mean IoU of the matches,   RQ = TP / (TP + FP / 2 + FN / 2).

A crowd is nothing to be found, and an unmatched segment more than half of which lies in one of its
class is no mistake.
"""

from __future__ import annotations

import numpy as np

IOU, TP, FP, FN = range(4)  # columns of the counts

DEFINITION = (
    "PQ = SQ x RQ over the classes of objects that occur, matches above IoU 0.5, of detections "
    "that score 0.5 or more laid into one map, the surest on top, less than half covered"
)


def counts(
    truth: np.ndarray,
    truth_classes: np.ndarray,
    crowd: np.ndarray,
    found: np.ndarray,
    found_classes: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """Compares two maps of objects of one image.

    Args:
        truth: int `[H, W]`, m + 1 where object m is, 0 where none is.
        truth_classes: int `[M]`.
        crowd: bool `[M]`.
        found: int `[H, W]`, n + 1 where segment n is; numbers may be missing.
        found_classes: int `[N]`.
        num_classes: K, the background included.

    Returns:
        float64 `[K, 4]`: for each class the sum of the IoU of its matches and the numbers of true
        positives, false positives and false negatives, which add up over images.
    """
    many, more = len(truth_classes), len(found_classes)
    pairs = truth.astype(np.int64) * (more + 1) + found
    common = np.bincount(pairs.ravel(), minlength=(many + 1) * (more + 1))
    common = common.reshape(many + 1, more + 1)
    true_area, found_area = common.sum(1)[1:], common.sum(0)[1:]
    common = common[1:, 1:]
    union = true_area[:, None] + found_area - common
    alike = truth_classes[:, None] == found_classes
    iou = np.where(alike & ~crowd[:, None], common / np.maximum(union, 1), 0.0)

    matched = iou > 0.5
    in_crowd = (common * (alike & crowd[:, None])).sum(0) > 0.5 * found_area
    missed = ~crowd & (true_area > 0) & ~matched.any(1)
    wrong = (found_area > 0) & ~matched.any(0) & ~in_crowd

    result = np.zeros((num_classes, 4))
    for m, n in zip(*np.nonzero(matched), strict=True):
        result[truth_classes[m], [IOU, TP]] += iou[m, n], 1
    np.add.at(result[:, FN], truth_classes[missed], 1)
    np.add.at(result[:, FP], found_classes[wrong], 1)
    return result


def scores(summed: np.ndarray | None) -> dict[str, float | None]:
    """Returns PQ, SQ and RQ, means over the classes that occur in the truth or were found.

    Args:
        summed: `counts`, summed over a split; None where they could not be told.

    Returns:
        `pq`, `sq` and `rq` as fractions, None where no class occurs; SQ counts as 0 for a class
        without a match.
    """
    if summed is None:
        return {"pq": None, "sq": None, "rq": None}
    total = summed[:, TP] + summed[:, FP] / 2 + summed[:, FN] / 2
    occurs = total > 0
    occurs[0] = False
    if not occurs.any():
        return {"pq": None, "sq": None, "rq": None}
    chosen, total = summed[occurs], total[occurs]
    sq = chosen[:, IOU] / np.maximum(chosen[:, TP], 1)
    rq = chosen[:, TP] / total
    return {"pq": float(np.mean(sq * rq)), "sq": float(np.mean(sq)), "rq": float(np.mean(rq))}
