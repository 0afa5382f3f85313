"""The five losses of Mask R-CNN, each `(sum, count)`, and their sum.

They score what an instance model answers where it is given targets (see "Instance model" in
docs/architecture.md). The sums and counts of several devices or batches add up; each loss is a mean
over its own count, so unlike those of `segzoo.losses` they share none:

- `objectness`: binary cross-entropy of the sampled anchors, over their number
  (Ren et al. 2015, arXiv:1506.01497, eq. 1);
- `proposal`: smooth L1 of the offsets from positive anchors, over the number of sampled anchors;
- `class`: cross-entropy of the sampled regions, over their number
  (Girshick 2015, arXiv:1504.08083, eq. 1);
- `box`: smooth L1 of the offsets from positive regions, over the number of sampled regions;
- `mask`: binary cross-entropy of the cells of the true class's masks, over the cells of all
  positive regions (He et al. 2017, arXiv:1703.06870, section 3).

What is not sampled adds nothing to either number, and the gradient there is exactly 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from segzoo.losses import SumAndCount
from segzoo.parallel import psum

Array = jax.Array
TERMS = ("objectness", "proposal", "class", "box", "mask")
BETA = 1 / 9  # where the smooth L1 loss turns from a parabola into a line


def terms(answers: Mapping[str, Any]) -> dict[str, SumAndCount]:
    """Scores what an instance model answered to targets.

    Args:
        answers: the model's, see "Instance model" in docs/architecture.md.

    Returns:
        For each of `TERMS` its sum and count, float32 scalars.
    """
    anchors, regions, masks = answers["anchors"], answers["regions"], answers["masks"]
    sampled, found = anchors["valid"], anchors["positive"]
    kept, labels = regions["valid"], regions["label"]
    cells = jnp.broadcast_to(masks["valid"][..., None, None], masks["logits"].shape)
    return {
        "objectness": _binary(anchors["logits"], found, sampled),
        "proposal": (_smooth_l1(anchors, sampled & found), _count(sampled)),
        "class": _softmax(regions["logits"], labels, kept),
        "box": (_smooth_l1(regions, kept & (labels > 0)), _count(kept)),
        "mask": _binary(masks["logits"], masks["target"], cells),
    }


def total(
    scored: Mapping[str, SumAndCount],
    images: int | Array,
    axis_name: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> SumAndCount:
    """The sum of the losses as one `(sum, count)` that adds up over devices.

    Every loss is divided by its count on all devices together, and counted once for each image:
    summed over devices and divided once, as every loss of the house, this is exactly the weighted
    sum of the five means over the global batch.

    Args:
        scored: from `terms`.
        images: in the batch of this device.
        axis_name: the mapped axis of the devices.
        weights: factors of the losses, 1 where not named.

    Returns:
        The sum, and the number of images, float32 scalars.
    """
    count = jnp.asarray(images, jnp.float32)
    everywhere = psum((count, {name: number for name, (_, number) in scored.items()}), axis_name)
    everywhere = jax.lax.stop_gradient(everywhere)
    result = jnp.zeros((), jnp.float32)
    for name, (value, _) in scored.items():
        factor = 1.0 if weights is None else weights.get(name, 1.0)
        result = result + factor * value * everywhere[0] / jnp.maximum(everywhere[1][name], 1.0)
    return result, count


def _count(valid: Array) -> Array:
    return jnp.sum(valid, dtype=jnp.float32)


def _only(values: Array, valid: Array) -> Array:
    """Values where they count, 0 elsewhere: replaced before any arithmetic, so is the gradient."""
    missing = values.ndim - valid.ndim
    return jnp.where(valid.reshape(*valid.shape, *(1,) * missing), values.astype(jnp.float32), 0.0)


def _binary(logits: Array, target: Array, valid: Array) -> SumAndCount:
    x = _only(logits, valid)
    term = jax.nn.softplus(x) - x * target.astype(jnp.float32)
    return jnp.sum(jnp.where(valid, term, 0.0)), _count(valid)


def _softmax(logits: Array, label: Array, valid: Array) -> SumAndCount:
    scores = jax.nn.log_softmax(_only(logits, valid))
    term = -jnp.take_along_axis(scores, jnp.maximum(label, 0)[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(valid, term, 0.0)), _count(valid)


def _smooth_l1(boxes: Mapping[str, Array], valid: Array) -> Array:
    error = jnp.abs(_only(boxes["offsets"], valid) - _only(boxes["target"], valid))
    return jnp.sum(jnp.where(error < BETA, 0.5 * error**2 / BETA, error - 0.5 * BETA))
