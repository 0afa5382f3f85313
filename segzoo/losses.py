"""Losses: functions of logits and labels to `(sum over valid, count of valid)`, and `Loss`.

Both numbers are summed over devices before the one division, so that the mean over a batch does not
depend on how its void pixels fall on the devices. What holds for every function here:

- `logits` are `[B, *S, K]` (classification: `[B, K]`), of any float type, computed in float32;
  `label` is an integer array `[B, *S]` (`[B]`). One logit (`K == 1`) is that of class 1 against
  class 0, so `class_weights` then has two entries.
- Void pixels add nothing to either number, and the gradient at their logits is exactly 0, whatever
  values stand there.
- `count` is the number of valid pixels. `weight` and `class_weights` scale the terms, not the
  count: a weighted loss is `sum(w * term) / pixels`, where PyTorch's `reduction="mean"` divides by
  `sum(w)`.
- A label that is neither void nor a class makes the sum NaN: nothing can be raised from compiled
  code, and a training run stops at a loss that is not finite. (Data is checked before training.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from segzoo.data.spec import VOID
from segzoo.errors import SegzooError, check_choice

SumAndCount = tuple[jax.Array, jax.Array]


def is_valid(label: jax.Array, num_classes: int) -> jax.Array:
    """Tells which labels are not void.

    Void is 255 and any negative label. Above 255 classes (image classification; such ids do not
    fit a mask file anyway) 255 is a class like the others.

    Args:
        label: integers of any shape.
        num_classes: K.

    Returns:
        bool, in the shape of `label`.
    """
    known = label >= 0
    return known & (label != VOID) if num_classes <= VOID else known


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Divides a sum by its count; 0 where nothing was counted."""
    return total / jnp.maximum(count, 1.0)


def cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    weight: jax.Array | None = None,
    class_weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> SumAndCount:
    """Softmax cross-entropy.

    The term of a pixel of class y is `-w[y] log p[y]`; with smoothing e it is, as in PyTorch,
    `-(1 - e) w[y] log p[y] - (e / K) sum_c w[c] log p[c]` (Szegedy et al. 2016, sec. 7).

    Args:
        logits: float `[B, *S, K]`; one logit z stands for the pair (0, z), so that this is
            `binary_cross_entropy`.
        label: integer `[B, *S]`.
        weight: float `[B, *S]`, a factor per pixel (U-Net's weight map).
        class_weights: float `[K]`, a factor per true class.
        label_smoothing: e, in 0..1.

    Returns:
        The weighted sum over the valid pixels and their number, float32 scalars.
    """
    if logits.shape[-1] == 1:
        return binary_cross_entropy(
            logits,
            label,
            weight=weight,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )
    pixels = _Pixels(logits, label, weight)
    shifted, log_sum = _shifted(pixels.logits)
    # One-hot sums stay fused; a gather costs two to three times as much on CPU.
    term = log_sum - jnp.sum(jnp.where(pixels.one_hot, shifted, 0.0), axis=-1)
    term = term * _of_class(class_weights, pixels.one_hot)
    if label_smoothing:
        factors = 1.0 if class_weights is None else jnp.asarray(class_weights, jnp.float32)
        smooth = jnp.mean(factors * (log_sum[..., None] - shifted), axis=-1)
        term = (1.0 - label_smoothing) * term + label_smoothing * smooth
    return pixels.total(term)


def binary_cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    weight: jax.Array | None = None,
    class_weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> SumAndCount:
    """Sigmoid cross-entropy, each class against the rest, averaged over the classes.

    With one logit this is `cross_entropy`: the sigmoid of the logit against `label == 1`.

    Args:
        logits: float `[B, *S, K]`.
        label: integer `[B, *S]`.
        weight: float `[B, *S]`, a factor per pixel.
        class_weights: float `[K]`, a factor per true class of the pixel.
        label_smoothing: e moves the targets 0 and 1 to `e / 2` and `1 - e / 2`.

    Returns:
        The weighted sum over the valid pixels and their number, float32 scalars.
    """
    pixels = _Pixels(logits, label, weight)
    target = pixels.targets.astype(jnp.float32) * (1.0 - label_smoothing) + label_smoothing / 2
    x = pixels.logits
    # -t log s(x) - (1 - t) log s(-x), which never overflows in this form.
    term = jnp.mean(jax.nn.softplus(x) - x * target, axis=-1)
    return pixels.total(_of_class(class_weights, pixels.one_hot) * term)


def dice(
    logits: jax.Array,
    label: jax.Array,
    *,
    weight: jax.Array | None = None,
    smooth: float = 1.0,
) -> SumAndCount:
    """Soft Dice loss, per image: `1 - mean_c (2 sum p t + smooth) / (sum p + sum t + smooth)`.

    The sums run over the valid pixels of one image (Milletari et al. 2016, with the plain sums of
    Drozdzal et al. 2016 below the line). p is the softmax, and the mean is over the classes that
    occur in the image's labels: an absent class has no overlap to score, and its false positives
    are misses of the classes that are there. One logit means the Dice of class 1 alone, with the
    sigmoid; there the absent class is scored too, else an empty image would teach nothing.

    Each image's loss is multiplied by its number of valid pixels, so that Dice shares its count
    with the other losses; without void the quotient is exactly the mean over the images.

    Args:
        logits: float `[B, *S, K]`.
        label: integer `[B, *S]`.
        weight: float `[B, *S]`, a factor per pixel within the three sums.
        smooth: added above and below the line, in pixels.

    Returns:
        The sum over images of loss times valid pixels, and the number of valid pixels, float32.
    """
    pixels = _Pixels(logits, label, weight)
    k = pixels.logits.shape[-1]
    p = jax.nn.sigmoid(pixels.logits) if k == 1 else jax.nn.softmax(pixels.logits, axis=-1)
    target = pixels.targets  # all False at void
    factor = pixels.weight[..., None]
    axes = tuple(range(1, p.ndim - 1))
    overlap = jnp.sum(jnp.where(target, factor * p, 0.0), axis=axes)
    size_p = jnp.sum(factor * p, axis=axes)
    size_t = jnp.sum(jnp.where(target, factor, 0.0), axis=axes)
    below = size_p + size_t + smooth
    score = (2 * overlap + smooth) / jnp.where(below > 0, below, 1.0)  # [B, K]
    if k == 1:
        loss = 1.0 - score[..., 0]
    else:
        present = jnp.any(target, axis=axes)
        loss = jnp.sum(jnp.where(present, 1.0 - score, 0.0), axis=-1)
        loss = loss / jnp.maximum(jnp.sum(present, axis=-1), 1)
    per_image = jnp.sum(pixels.valid, axis=axes, dtype=jnp.float32)
    total = jnp.sum(loss * per_image)
    return jnp.where(pixels.strange.any(), jnp.nan, total), jnp.sum(per_image)


def focal(
    logits: jax.Array,
    label: jax.Array,
    *,
    weight: jax.Array | None = None,
    class_weights: jax.Array | None = None,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> SumAndCount:
    """Focal loss `-a[y] (1 - p[y])^gamma log p[y]` (Lin et al. 2017, eq. 5).

    With one logit p is the sigmoid and this is the paper's loss; with more, p is the softmax.

    Args:
        logits: float `[B, *S, K]`.
        label: integer `[B, *S]`.
        weight: float `[B, *S]`, a factor per pixel.
        class_weights: float `[K]`, a factor per true class.
        gamma: the focusing parameter, at least 0; 0 gives the cross-entropy.
        alpha: the factor of the classes from 1 on; class 0, the background, gets `1 - alpha`.

    Returns:
        The weighted sum over the valid pixels and their number, float32 scalars.
    """
    pixels = _Pixels(logits, label, weight)
    # log(1 - p[y]) comes from the other classes' logits: 1 - p[y] itself cancels to 0 as p[y] nears
    # 1, where its power has no finite gradient for gamma < 1.
    if logits.shape[-1] == 1:
        margin = jnp.where(pixels.targets, pixels.logits, -pixels.logits)[..., 0]
        term, log_miss = jax.nn.softplus(-margin), -jax.nn.softplus(margin)
    else:
        shifted, log_sum = _shifted(pixels.logits)
        term = log_sum - jnp.sum(jnp.where(pixels.one_hot, shifted, 0.0), axis=-1)
        log_miss = jax.nn.logsumexp(jnp.where(pixels.one_hot, -jnp.inf, shifted), -1) - log_sum
    if gamma:
        term = term * jnp.exp(gamma * log_miss)
    if alpha is not None:
        term = term * jnp.where(pixels.one_hot[..., 0], 1.0 - alpha, alpha)
    return pixels.total(_of_class(class_weights, pixels.one_hot) * term)


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses that all count the same valid pixels.

    Attributes:
        cross_entropy: weight of the softmax cross-entropy.
        binary_cross_entropy: weight of the one-against-rest sigmoid cross-entropy.
        dice: weight of the soft Dice loss.
        focal: weight of the focal loss.
        class_weights: factors of the pixels by their true class, in every term but Dice, which
            balances by itself: "none", "median_frequency" (from the training set) or one number per
            class.
        label_smoothing: in 0..1, for both cross-entropies.
        focal_gamma: the focal loss's focusing parameter.
        focal_alpha: the focal loss's factor of the foreground; none by default.
        dice_smooth: added to Dice above and below the line, in pixels.
        auxiliary: weight of the same loss on each of the model's auxiliary logits.
    """

    cross_entropy: float = 1.0
    binary_cross_entropy: float = 0.0
    dice: float = 0.0
    focal: float = 0.0
    class_weights: Literal["none", "median_frequency"] | tuple[float, ...] = "none"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    focal_alpha: float | None = None
    dice_smooth: float = 1.0
    auxiliary: float = 0.0

    def __post_init__(self) -> None:
        terms = ("cross_entropy", "binary_cross_entropy", "dice", "focal")
        for name in (*terms, "focal_gamma", "dice_smooth", "auxiliary"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise SegzooError(f"loss.{name} is {value!r}; expected a number of at least 0.")
        if not any(getattr(self, name) for name in terms):
            raise SegzooError(
                f"every term of the loss has weight 0; expected one of {', '.join(terms)} above 0."
            )
        for name in ("label_smoothing", "focal_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SegzooError(f"loss.{name} is {value!r}; expected a number in 0..1.")
        if isinstance(self.class_weights, str):
            check_choice("loss.class_weights", self.class_weights, ("none", "median_frequency"))
        elif not self.class_weights or not (
            all(0 <= w < math.inf for w in self.class_weights) and any(self.class_weights)
        ):
            raise SegzooError(
                f"loss.class_weights is {self.class_weights!r}; expected a number of at least 0 "
                "for each class, not all of them 0."
            )

    def __call__(
        self,
        logits: jax.Array,
        label: jax.Array,
        weight: jax.Array | None = None,
        class_weights: jax.Array | np.ndarray | None = None,
    ) -> SumAndCount:
        """Returns the weighted sum of the terms, and the number of valid pixels.

        Args:
            logits: float `[B, *S, K]` or `[B, K]`.
            label: integer `[B, *S]` or `[B]`.
            weight: float `[B, *S]`, a factor per pixel.
            class_weights: float `[K]`, the training set's; used with
                `class_weights="median_frequency"` only.

        Raises:
            SegzooError: when the class weights are missing or their number is not that of the
                classes, or when the shapes of logits, label and weight do not belong together.
        """
        factors = self._factors(class_weights, max(logits.shape[-1], 2))
        total = jnp.float32(0.0)
        count = jnp.float32(0.0)
        if self.cross_entropy:
            part, count = cross_entropy(
                logits,
                label,
                weight=weight,
                class_weights=factors,
                label_smoothing=self.label_smoothing,
            )
            total += self.cross_entropy * part
        if self.binary_cross_entropy:
            part, count = binary_cross_entropy(
                logits,
                label,
                weight=weight,
                class_weights=factors,
                label_smoothing=self.label_smoothing,
            )
            total += self.binary_cross_entropy * part
        if self.dice:
            part, count = dice(logits, label, weight=weight, smooth=self.dice_smooth)
            total += self.dice * part
        if self.focal:
            part, count = focal(
                logits,
                label,
                weight=weight,
                class_weights=factors,
                gamma=self.focal_gamma,
                alpha=self.focal_alpha,
            )
            total += self.focal * part
        return total, count

    def _factors(
        self, from_data: jax.Array | np.ndarray | None, num_classes: int
    ) -> jax.Array | None:
        if self.class_weights == "none":
            return None
        if self.class_weights == "median_frequency":
            if from_data is None:
                raise SegzooError(
                    "loss.class_weights is 'median_frequency', but the data came without them."
                )
            factors = jnp.asarray(from_data, jnp.float32)
        else:
            factors = jnp.asarray(self.class_weights, jnp.float32)
        if factors.shape != (num_classes,):
            raise SegzooError(
                f"loss.class_weights has {factors.size} numbers; expected {num_classes}, one for "
                "each class."
            )
        return factors


class _Pixels:
    """Logits and labels with the void taken out: what every loss starts from and ends with."""

    def __init__(self, logits: jax.Array, label: jax.Array, weight: jax.Array | None) -> None:
        if label.shape != logits.shape[:-1] or (weight is not None and weight.shape != label.shape):
            raise SegzooError(
                f"logits of shape {logits.shape} do not fit labels of shape {label.shape}"
                + ("." if weight is None else f" and weights of shape {weight.shape}.")
            )
        k = logits.shape[-1]
        classes = jnp.arange(max(k, 2))
        self.valid = is_valid(label, k)  # [B, *S]
        # Replaced before any arithmetic, so that no inf or NaN can come back through a gradient.
        self.logits = jnp.where(self.valid[..., None], logits.astype(jnp.float32), 0.0)
        self.one_hot = label[..., None] == classes  # [B, *S, max(K, 2)]
        self.targets = self.one_hot[..., 1:] if k == 1 else self.one_hot  # [B, *S, K]
        self.strange = self.valid & ((label < 0) | (label >= max(k, 2)))
        ones = jnp.ones(label.shape, jnp.float32)
        self.weight = jnp.where(
            self.valid, ones if weight is None else weight.astype(jnp.float32), 0.0
        )

    def total(self, term: jax.Array) -> SumAndCount:
        """Sums the terms `[B, *S]` of the valid pixels, and counts them."""
        term = jnp.where(self.strange, jnp.nan, term * self.weight)
        total = jnp.sum(jnp.where(self.valid, term, 0.0))
        return total, jnp.sum(self.valid, dtype=jnp.float32)


def _shifted(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits less their maximum `[B, *S, K]`, and the log of the sum of their exponentials.

    The second less the first is `-log softmax`, exact for any finite logits. Written out, XLA fuses
    it better on CPU than `jax.nn.log_softmax`.
    """
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return shifted, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))


def _of_class(class_weights: jax.Array | None, one_hot: jax.Array) -> jax.Array | float:
    """The factor of each pixel's true class, `[B, *S]`."""
    if class_weights is None:
        return 1.0
    return jnp.sum(jnp.where(one_hot, jnp.asarray(class_weights, jnp.float32), 0.0), axis=-1)
