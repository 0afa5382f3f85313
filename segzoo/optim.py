"""Optimizers and learning-rate schedules: a typed description that builds an optax transformation.

The update rules are PyTorch's, so that published recipes carry over. With g the gradient (clipped,
plus `weight_decay * p` where the decay is L2) and lr the learning rate of the step:

- sgd: `m = momentum * m + g`, `p -= lr * m`; with Nesterov `p -= lr * (g + momentum * m)`.
- rmsprop: `v = rms_decay * v + (1 - rms_decay) * g^2`, `m = momentum * m + g / (sqrt(v) + eps)`,
  `p -= lr * m`. With `eps_in_root` the root is `sqrt(v + eps)`, as in Lasagne and TensorFlow, which
  has lr within m.
- adam: Kingma & Ba 2015 with bias correction, eps outside the root.
- adamw: adam without the L2 term, and `p -= lr * weight_decay * p` (Loshchilov & Hutter 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.ops.order import once

# Kernels of at most so many numbers are updated together: larger ones are few, and take longer to
# lay side by side than an operation of their own takes.
JOINED = 2**18
_GROUPS = {"vectors": (-1,), "kernels": (1, -1)}


@dataclass(frozen=True)
class Optimizer:
    """An update rule, its learning-rate schedule, weight decay and gradient clipping.

    Attributes:
        name: the update rule.
        learning_rate: the largest of the schedule.
        momentum: of sgd and rmsprop.
        nesterov: Nesterov's momentum, for sgd.
        beta1: decay of the mean gradient of adam and adamw.
        beta2: decay of the mean squared gradient of adam and adamw.
        rms_decay: decay of the mean squared gradient of rmsprop.
        eps: added to the root of the mean squared gradient of adam, adamw and rmsprop.
        eps_in_root: rmsprop's eps is added to the mean squared gradient itself, under the root.
        weight_decay: decoupled for adamw, an L2 penalty `weight_decay / 2 * |p|^2` for the others.
        decay_all: decay every parameter; otherwise kernels only (arrays of two axes or more), not
            biases and the scales of normalisation.
        clip_norm: largest global norm of the gradient, before weight decay; None does not clip.
        warmup_steps: steps of linear growth to `learning_rate`, before the schedule begins.
        schedule: how the learning rate falls after the warm-up, over the rest of the training.
        final_fraction: the fraction of `learning_rate` where cosine and poly end and below which
            exponential and step do not fall.
        power: of poly, `(1 - progress)^power`; DeepLab: 0.9.
        decay_rate: factor of exponential and step.
        decay_steps: steps in which exponential falls by `decay_rate`, smoothly, and step at once.
        milestones: of step: the steps of the training, warm-up included, at which it falls, instead
            of every `decay_steps`.
    """

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    rms_decay: float = 0.9
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_all: bool = False
    clip_norm: float | None = None
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "poly", "exponential", "step"] = "constant"
    final_fraction: float = 0.0
    power: float = 0.9
    decay_rate: float = 0.1
    decay_steps: int | None = None
    milestones: tuple[int, ...] = ()
    eps_in_root: bool = False

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, ("sgd", "adam", "adamw", "rmsprop"))
        check_choice(
            "optimizer.schedule",
            self.schedule,
            ("constant", "cosine", "poly", "exponential", "step"),
        )
        for name in ("learning_rate", "power", "eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SegzooError(f"optimizer.{name} is {value!r}; expected a number above 0.")
        for name in ("momentum", "beta1", "beta2", "rms_decay"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise SegzooError(
                    f"optimizer.{name} is {value!r}; expected a number from 0 to below 1."
                )
        if not 0 <= self.weight_decay < math.inf:
            raise SegzooError(
                f"optimizer.weight_decay is {self.weight_decay!r}; expected a number of at least 0."
            )
        if not 0 <= self.final_fraction <= 1:
            raise SegzooError(
                f"optimizer.final_fraction is {self.final_fraction!r}; expected a number in 0..1."
            )
        if not 0 < self.decay_rate <= 1:
            raise SegzooError(
                f"optimizer.decay_rate is {self.decay_rate!r}; expected a number above 0 and at "
                "most 1."
            )
        check_positive_int("optimizer.warmup_steps", self.warmup_steps, minimum=0)
        if self.decay_steps is not None:
            check_positive_int("optimizer.decay_steps", self.decay_steps)
        if self.milestones and (self.schedule != "step" or self.decay_steps is not None):
            raise SegzooError(
                f"optimizer.milestones are {self.milestones!r}; expected none unless "
                "optimizer.schedule is 'step' and optimizer.decay_steps is not given."
            )
        for milestone in self.milestones:
            check_positive_int("a step of optimizer.milestones", milestone)
        every = self.decay_steps is not None or bool(self.milestones)
        if self.schedule in ("exponential", "step") and not every:
            raise SegzooError(
                f"optimizer.schedule {self.schedule!r} needs optimizer.decay_steps, the steps in "
                "which the learning rate falls by optimizer.decay_rate."
            )
        if self.momentum and self.name in ("adam", "adamw"):
            raise SegzooError(
                f"optimizer.momentum is {self.momentum!r}, but {self.name} has none; its decay of "
                "the mean gradient is optimizer.beta1."
            )
        if self.eps_in_root and self.name != "rmsprop":
            raise SegzooError(
                f"optimizer.eps_in_root is for rmsprop, but optimizer.name is {self.name!r}."
            )
        if self.nesterov and not (self.name == "sgd" and self.momentum):
            raise SegzooError("optimizer.nesterov needs sgd with optimizer.momentum above 0.")

    def learning_rate_at(self, steps: int) -> optax.Schedule:
        """Returns the schedule of a training of `steps` steps.

        Args:
            steps: length of the training, warm-up included; afterwards the rate stays.

        Returns:
            A function from the number of steps done, an integer or integer array, to the learning
            rate of the next step, float32.

        Raises:
            SegzooError: when the warm-up leaves no step of the training.
        """
        check_positive_int("steps", steps)
        warmup = self.warmup_steps
        if warmup >= steps:
            raise SegzooError(
                f"optimizer.warmup_steps is {warmup}; expected fewer than the {steps} steps of the "
                "training."
            )

        def learning_rate(done: Any) -> jax.Array:
            step = jnp.clip(jnp.asarray(done).astype(jnp.int32), 0, steps)
            # The first step already moves, and the last of the warm-up is still below the top.
            grown = jnp.minimum((step + 1) / (warmup + 1), 1.0)
            fraction = self._fraction(jnp.maximum(step - warmup, 0), steps - warmup)
            return self.learning_rate * grown * fraction

        return learning_rate

    def build(self, steps: int) -> optax.GradientTransformation:
        """Returns the optax transformation of a training of `steps` steps.

        Its `update` needs the parameters, and counts the steps for the schedule.

        Raises:
            SegzooError: when the warm-up leaves no step of the training.
        """
        decay = optax.add_decayed_weights(
            self.weight_decay, mask=None if self.decay_all else _is_kernel
        )
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        penalty = [decay] if self.weight_decay and self.name != "adamw" else []
        decoupled = [decay] if self.weight_decay and self.name == "adamw" else []
        rate = optax.scale_by_learning_rate(self.learning_rate_at(steps))
        return optax.chain(*clip, *penalty, *self._direction(), *decoupled, rate)

    def _direction(self) -> list[optax.GradientTransformation]:
        """The update rule without the learning rate."""
        if self.name in ("adam", "adamw"):
            return [optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.eps)]
        rule = []
        if self.name == "rmsprop":
            rule.append(
                optax.scale_by_rms(self.rms_decay, eps=self.eps, eps_in_sqrt=self.eps_in_root)
            )
        if self.momentum:
            rule.append(optax.trace(self.momentum, nesterov=self.nesterov))
        return rule

    def _fraction(self, step: jax.Array, steps: int) -> jax.Array:
        """The fraction of the learning rate `step` steps after the warm-up, of `steps`."""
        # A compiled division may be a product with a rounded reciprocal: a hair above 1 at the end,
        # where poly would be NaN. For the same reason the stairs divide integers.
        progress = jnp.minimum(step / steps, 1.0)
        falls = 1.0 - self.final_fraction
        if self.schedule == "cosine":
            return self.final_fraction + falls * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        if self.schedule == "poly":
            return self.final_fraction + falls * (1.0 - progress) ** self.power
        if self.schedule in ("exponential", "step"):
            if self.milestones:
                reached = jnp.asarray(self.milestones) <= step + self.warmup_steps
                exponent = jnp.sum(reached).astype(jnp.float32)
                return jnp.maximum(self.decay_rate**exponent, self.final_fraction)
            assert self.decay_steps is not None  # checked when made
            if self.schedule == "step":
                exponent = (step // self.decay_steps).astype(jnp.float32)
            else:
                exponent = step / self.decay_steps
            return jnp.maximum(self.decay_rate**exponent, self.final_fraction)
        return jnp.float32(1.0)


def join(tree: Any) -> dict[str, Any]:
    """Puts the small arrays of a tree one after the other, for an optimizer to act on them at once.

    Biases, normalisation's parameters and small kernels are most of a network's arrays and few of
    its numbers. Updated each by itself they cost a step several operations each, thousands in a
    deep network, and much of the time that it takes to compile.

    Args:
        tree: arrays of one dtype, of any shapes.

    Returns:
        "vectors" `[N]`, the arrays of one axis; "kernels" `[1, M]`, those of more axes and at most
        `JOINED` numbers; "others", the tree without both. A rule that acts on each number by
        itself, by whether its array has one axis or more, and by the norm of all, acts on this as
        on the tree.
    """
    leaves = jax.tree.leaves(tree)
    others = jax.tree.map(lambda leaf: optax.MaskedNode() if _group(leaf) else leaf, tree)
    joint = {"others": others}
    for name, shape in _GROUPS.items():
        rows = [leaf.reshape(shape) for leaf in leaves if _group(leaf) == name]
        if rows:
            joint[name] = jnp.concatenate(rows, axis=-1)
    return joint


def part(joint: dict[str, Any], like: Any) -> Any:
    """Takes apart what `join` makes of a tree like `like`."""
    leaves = jax.tree.leaves(like)
    parts = {}
    # In the same order in every process, or programs kept on disk would not be found again.
    for name in _GROUPS:
        sizes = [leaf.size for leaf in leaves if _group(leaf) == name]
        if sizes:
            parts[name] = iter(_split(joint[name], sizes))

    def found(leaf: Any, other: Any) -> Any:
        name = _group(leaf)
        return next(parts[name]).reshape(leaf.shape) if name else other

    return jax.tree.map(found, like, joint["others"])


def _split(joint: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Parts of these sizes of the last axis."""
    firsts = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
    if jax.default_backend() != "cpu":
        return jnp.split(joint, firsts[1:], axis=-1)
    # Where each begins is kept as a number in memory: with a constant, the code that updates an
    # array would be another one for each, not the same for all of a shape.
    places = once(lambda _: [jnp.asarray(first) for first in firsts], joint)
    return [
        lax.dynamic_slice_in_dim(joint, place, size, -1, allow_negative_indices=False)
        for place, size in zip(places, sizes, strict=True)
    ]


def _group(leaf: Any) -> str | None:
    """Which array of `join` it becomes a part of, if any."""
    if jnp.ndim(leaf) == 1:
        return "vectors"
    return "kernels" if jnp.ndim(leaf) > 1 and jnp.size(leaf) <= JOINED else None


def _is_kernel(params: Any) -> Any:
    """Tells kernels, arrays of two axes or more, from biases and normalisation scales."""
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)
