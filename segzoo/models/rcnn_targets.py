"""What Mask R-CNN learns from: some of its anchors and of its proposals, and what to say of them.

Boxes belong to the object they overlap most. An anchor is positive from an IoU of 0.7 on, or as the
best of an object, and negative below 0.3 (Ren et al. 2015, arXiv:1506.01497, section 3.1.2); a
region is positive from 0.5 on and negative below (He et al. 2017, arXiv:1703.06870, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from segzoo.errors import SegzooError
from segzoo.models.roi_heads import WEIGHTS
from segzoo.ops import boxes as box_ops
from segzoo.ops.masks import crop_masks
from segzoo.ops.matching import NEGATIVE, NEITHER, match, sample

Array = jax.Array

POSITIVE_ANCHORS, POSITIVE_REGIONS = 0.5, 0.25  # of those learned from, at most


def anchors_to_learn(
    key: Array, anchors: Array, targets: Mapping[str, Array], size: Array, count: int
) -> tuple[Array, dict[str, Array]]:
    """Draws the anchors of an image that are learned from.

    Args:
        key: draws them.
        anchors: `[A, 4]`.
        targets: of the image, see `MaskRCNN`.
        size: of the image before padding, int `[2]`: nothing is learned from anchors on padding.
        count: how many are drawn, half of them positive where there are so many.

    Returns:
        Which, int `[count]`, and of these `target` `[count, 4]`, the offsets of their objects,
        `positive` and `valid`, bool `[count]`.
    """
    boxes = targets["boxes"].astype(jnp.float32)
    index, kind = match(
        anchors,
        boxes,
        targets["valid"],
        high=0.7,
        low=0.3,
        best_of_each=True,
        ignore=targets.get("crowd"),
    )
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    beyond = jnp.any((center < 0) | (center >= size), axis=-1)
    kind = jnp.where(beyond & (kind == NEGATIVE), NEITHER, kind)
    place, positive, valid = sample(key, kind, count, POSITIVE_ANCHORS)
    target = box_ops.encode(boxes[index[place]], anchors[place])
    return place, {"target": target, "positive": positive, "valid": valid}


def regions_to_learn(
    key: Array,
    proposals: Array,
    there: Array,
    targets: Mapping[str, Array],
    *,
    count: int,
    cells: int,
) -> dict[str, Array]:
    """Draws the regions of an image that are learned from: its proposals, and the true boxes.

    Args:
        key: draws them.
        proposals: `[N, 4]`.
        there: which there are, bool `[N]`.
        targets: of the image, see `MaskRCNN`.
        count: how many are drawn, a quarter of them positive where there are so many.
        cells: along a side of a mask.

    Returns:
        `region` `[count, 4]`, the positive ones first; `label` int32 `[count]`, their classes, 0
        for the background; `target` `[count, 4]`, the offsets of their objects; `valid` bool
        `[count]`; and `cells` `[count / 4, cells, cells]`, the objects' masks in the first regions.
    """
    positives = int(count * POSITIVE_REGIONS)
    boxes, valid = targets["boxes"].astype(jnp.float32), targets["valid"]
    crowd = targets.get("crowd", jnp.zeros_like(valid))
    candidates = jnp.concatenate([proposals, boxes])
    there = jnp.concatenate([there, valid & ~crowd])
    index, kind = match(candidates, boxes, valid, high=0.5, low=0.5, ignore=crowd)
    kind = jnp.where(there, kind, NEITHER)
    place, positive, valid = sample(key, kind, count, POSITIVE_REGIONS)
    index, region = index[place], jnp.where(valid[:, None], candidates[place], 0.0)
    masks = crop_masks(targets["masks"], index[:positives], region[:positives], cells)
    return {
        "region": region,
        "label": jnp.where(positive, targets["classes"][index], 0).astype(jnp.int32),
        "target": box_ops.encode(boxes[index], region, WEIGHTS),
        "valid": valid,
        "cells": masks,
    }


def check_targets(targets: Mapping[str, Array], image: tuple[int, ...]) -> None:
    """Checks names and shapes.

    Args:
        targets: of `MaskRCNN`.
        image: batch, height and width of its images.

    Raises:
        SegzooError: for others than `MaskRCNN` takes.
    """
    known = {"boxes", "classes", "masks", "valid"}
    if not known <= set(targets) <= known | {"crowd"}:
        raise SegzooError(
            f"the targets are {sorted(targets)}; expected {sorted(known)}, and 'crowd' or not."
        )
    batch, *size = image
    boxes = tuple(targets["boxes"].shape)
    number = boxes[1] if len(boxes) == 3 else 0
    if boxes != (batch, number, 4) or not number:
        raise SegzooError(
            f"the targets' boxes have shape {boxes}; expected [{batch}, M, 4] with M at least 1."
        )
    shapes = {
        "classes": ((batch, number),),
        "valid": ((batch, number),),
        "crowd": ((batch, number),),
        "masks": ((batch, number, *size), (batch, *size)),
    }
    for name, expected in shapes.items():
        if name in targets and tuple(targets[name].shape) not in expected:
            listed = " or ".join(str(list(shape)) for shape in expected)
            raise SegzooError(
                f"the targets' {name} have shape {tuple(targets[name].shape)}; expected {listed}."
            )
