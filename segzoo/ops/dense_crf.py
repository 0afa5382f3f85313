"""The fully connected CRF, by mean field (Kraehenbuehl & Koltun 2011, arXiv:1210.5644).

Every pair of pixels is connected, by a smoothness kernel, which knows only where they are, and an
appearance kernel, which asks for similar colours too:

    E(x) = sum_i -logit_i(x_i) + sum_{i<j} mu(x_i, x_j) k(f_i, f_j)
    k(f_i, f_j) = w1 exp(-|p_i - p_j|^2 / 2 sigma_alpha^2 - |I_i - I_j|^2 / 2 sigma_beta^2)
                + w2 exp(-|p_i - p_j|^2 / 2 sigma_gamma^2)

Mean field repeats Q = softmax(logits - mu sum_m w_m K_m Q), where K_m are the normalised kernels as
matrices. As in the authors' code a pixel's message to itself is part of the sum, and both kernels
are applied on the permutohedral lattice (`segzoo.ops.permutohedral`); for small images they can be
applied as they stand.

Every operation is linear in Q but the softmax, and differentiable with respect to logits, weights
and compatibilities: unrolled, the iterations are the layers of arXiv:1502.03240 (CRF-as-RNN).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.ops import permutohedral
from segzoo.ops.gaussian import (
    Exact,
    Kernel,
    Normalization,
    appearance,
    normalized,
    positions,
)

Array = jax.Array
Method = Literal["lattice", "exact"]

_NEVER = -1e9  # the logit of a class that is none


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """Parameters of the two kernels and of the inference.

    The defaults are DeepLab's (arXiv:1412.7062, section 5.1): fixed are the iterations and the
    smoothness kernel; the appearance kernel was searched on 100 validation images, with weights of
    3 to 6, positions of 30 to 100 pixels and colours of 3 to 6, and lies inside these ranges here.

    Raises:
        SegzooError: for values that cannot work, when it is made.
    """

    iterations: int = 10
    """Mean-field iterations; 0 is the softmax of the logits."""
    smoothness_weight: float = 3.0
    """Weight of the smoothness kernel, w2; 0 leaves it out."""
    smoothness_width: float = 3.0
    """Its standard deviation, sigma_gamma, in pixels."""
    appearance_weight: float = 4.0
    """Weight of the appearance kernel, w1; 0 leaves it out."""
    appearance_width: float = 50.0
    """Its standard deviation in position, sigma_alpha, in pixels."""
    appearance_color: float = 5.0
    """Its standard deviation in colour, sigma_beta, in units of images of 0..255."""
    normalization: Normalization = "symmetric"
    """Divide the kernels by their row sums: by the square root on both sides (the authors'
    choice), before filtering, after it, or not at all."""
    method: Method = "lattice"
    """Filter on the permutohedral lattice, or exactly in time quadratic in the pixels."""

    def __post_init__(self) -> None:
        check_positive_int("iterations", self.iterations, 0)
        for name in ("smoothness_weight", "appearance_weight"):
            _check_number(name, getattr(self, name), zero=True)
        for name in ("smoothness_width", "appearance_width", "appearance_color"):
            _check_number(name, getattr(self, name), zero=False)
        check_choice("normalization", self.normalization, get_args(Normalization))
        check_choice("method", self.method, get_args(Method))


def _check_number(name: str, value: object, zero: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):  # type: ignore[operator]
        least = "at least 0" if zero else "above 0"
        raise SegzooError(f"{name} is {value!r}; expected a number {least}.")


DEFAULT = DenseCRF()

# --- inference -----------------------------------------------------------------------------------


def mean_field(
    logits: Array,
    kernels: Sequence[Kernel],
    weights: Sequence[float | Array],
    compatibility: Array | None = None,
    iterations: int = 10,
) -> Array:
    """Runs mean field (Kraehenbuehl & Koltun 2011, algorithm 1) on one image.

    Args:
        logits: float `[N, K]`, the negative unary energies.
        kernels: K_m.
        weights: w_m, for each kernel one number, or `[K]`: one per class, as in CRF-as-RNN.
        compatibility: mu, `[K, K]`: the cost of a label (row) beside another (column); None is
            Potts: 1 off the diagonal, 0 on it.
        iterations: how often; static.

    Returns:
        float32 `[N, K]`, logits whose softmax are the marginals Q.
    """
    # Rows of a multiple of four numbers move faster; the classes added stay at probability 0.
    classes = logits.shape[1]
    more = -classes % 4
    logits = jnp.pad(logits.astype(jnp.float32), ((0, 0), (0, more)), constant_values=_NEVER)
    if compatibility is not None:
        compatibility = jnp.pad(compatibility.astype(jnp.float32), (0, more))
    weighted = []
    for kernel, weight in zip(kernels, weights, strict=True):
        weight = jnp.asarray(weight, jnp.float32)
        if weight.ndim:
            weight = jnp.pad(weight, (0, more))
        weighted.append((kernel, weight))

    def update(current: Array, _: None) -> tuple[Array, None]:
        q = jax.nn.softmax(current)
        message = functools.reduce(jnp.add, (weight * kernel(q) for kernel, weight in weighted))
        if compatibility is None:
            # Potts costs the messages of all other classes; up to a constant, minus the own.
            return logits + message, None
        return logits - jnp.matmul(message, compatibility.T, precision=lax.Precision.HIGHEST), None

    if not weighted:
        return logits[:, :classes]
    return lax.scan(update, logits, None, length=iterations)[0][:, :classes]


def kernels(
    image: Array | np.ndarray, config: DenseCRF = DEFAULT, capacity: int | None = None
) -> tuple[Kernel, ...]:
    """Returns the kernels of an image that have a weight: smoothness, then appearance.

    Works under `jit` and `vmap`. For images at hand, in numpy, all sizes are rounded up instead, so
    that few programs are compiled: the kernels are those of `padded(N)` pixels, of which the first
    N count, and the lattice has as many rows as it needs.

    Args:
        image: `[*S, C]`, 0..255; N pixels.
        config: the parameters.
        capacity: rows of the appearance lattice; by default as many as are needed, in jax those
            of the worst image, (d + 1) N.

    Raises:
        SegzooError: in numpy, when the capacity does not suffice. In jax, whatever the kernel is
            applied to becomes NaN.
    """
    found: list[Kernel] = []
    if config.smoothness_weight > 0:
        arguments = (
            image.shape[:-1],
            config.smoothness_width,
            config.normalization,
            config.method,
        )
        if isinstance(image, np.ndarray):
            found.append(_kept_smoothness(*arguments))
        else:
            found.append(_traced_kernel(jnp.asarray(positions(*arguments[:2])), *arguments[2:]))
    if config.appearance_weight > 0:
        features = appearance(image, config.appearance_width, config.appearance_color)
        make = _kernel if isinstance(image, np.ndarray) else _traced_kernel
        found.append(make(features, config.normalization, config.method, capacity))
    return tuple(found)


def padded(points: int) -> int:
    """Returns a number of pixels, at most a thirty-second larger, that many images share."""
    step = 2 ** max(points.bit_length() - 6, 0)
    return -(-points // step) * step


def _traced_kernel(
    features: Any, normalization: Normalization, method: Method, capacity: int | None = None
) -> Kernel:
    points = len(features)
    # Positions are constants: without the barrier the compiler may try to build their lattice.
    features = lax.optimization_barrier(features)
    if method == "exact":
        return normalized(Exact(features), points, normalization)
    return normalized(permutohedral.build(features, capacity), points, normalization)


def _kernel(
    features: Any, normalization: Normalization, method: Method, capacity: int | None = None
) -> Kernel:
    points = len(features)
    size = padded(points)
    # Copies of the last pixel need no vertices of their own, and give nothing.
    features = np.pad(features, ((0, size - points), (0, 0)), "edge")
    counted = np.arange(size) < points
    if method == "exact":
        return _exact(features, counted, normalization)
    simplices = _locate(features)
    count = int(simplices.count)
    if capacity is not None and count > capacity:
        raise SegzooError(f"capacity is {capacity}; the lattice of this image needs {count}.")
    return _connect(simplices, counted, capacity or _round_up(count), normalization)


@functools.lru_cache(maxsize=4)
def _kept_smoothness(
    size: tuple[int, ...], width: float, normalization: Normalization, method: Method
) -> Kernel:
    """The smoothness kernel depends on the size alone: images of one size share it."""
    return _kernel(positions(size, width), normalization, method)


def _round_up(count: int) -> int:
    """Returns the next power of two, or three quarters of it, that is at least `count`."""
    power = 2 ** max(count - 1, 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power


_locate = jax.jit(permutohedral.locate)
_infer = jax.jit(mean_field, static_argnames="iterations")


@functools.partial(jax.jit, static_argnames=("capacity", "normalization"))
def _connect(
    simplices: permutohedral.Simplices,
    counted: Array,
    capacity: int,
    normalization: Normalization,
) -> Kernel:
    lattice = permutohedral.connect(simplices, capacity).scaled(counted, 1.0)
    return normalized(lattice, len(counted), normalization)


@functools.partial(jax.jit, static_argnames="normalization")
def _exact(features: Array, counted: Array, normalization: Normalization) -> Kernel:
    return normalized(Exact(features).scaled(counted, 1.0), len(features), normalization)


def infer(
    logits: np.ndarray,
    kernels: Sequence[Kernel],
    config: DenseCRF = DEFAULT,
    compatibility: Array | None = None,
) -> np.ndarray:
    """Runs mean field on an image at hand, with kernels of its size.

    Args:
        logits: float `[*S, K]`.
        kernels: from `kernels`, of a numpy image.
        config: the parameters; of them the weights and the iterations are used.
        compatibility: see `mean_field`.

    Returns:
        The marginals, float32 `[*S, K]`.
    """
    flat = logits.reshape(-1, logits.shape[-1]).astype(np.float32)
    more = padded(len(flat)) - len(flat)
    refined = _infer(
        np.pad(flat, ((0, more), (0, 0))),
        kernels,
        _weights(config),
        compatibility,
        config.iterations,
    )
    return np.asarray(_softmax(refined))[: len(flat)].reshape(logits.shape)


_softmax = jax.jit(jax.nn.softmax)


def _weights(config: DenseCRF) -> list[float]:
    return [w for w in (config.smoothness_weight, config.appearance_weight) if w > 0]


def dense_crf(
    logits: Array | np.ndarray,
    image: Array | np.ndarray,
    config: DenseCRF = DEFAULT,
    *,
    compatibility: Array | np.ndarray | None = None,
    capacity: int | None = None,
) -> Array:
    """Refines a model's logits by the images they were computed from.

    Works under `jit`, `vmap` and `grad` too; see `kernels` for what differs.

    Args:
        logits: float `[B, *S, K]`; of K = 1 it is that of class 1 against 0.
        image: `[B, *S, C]`, 0..255, not normalised, any dtype.
        config: the parameters.
        compatibility: mu, `[K, K]` (`[2, 2]` for one logit), the cost of a label (row) beside
            another (column); None is Potts, 1 for labels that differ.
        capacity: rows of the appearance lattice; by default as many as are needed.

    Returns:
        The marginals, float32 `[B, *S, K]`: they sum to 1 over the classes, or, of one logit, are
        those of class 1.

    Raises:
        SegzooError: for shapes that do not fit, or a capacity that does not suffice.
    """
    _check_shapes(logits, image)
    traced = isinstance(logits, jax.core.Tracer) or isinstance(image, jax.core.Tracer)
    numpy: Any = jnp if traced else np
    logits, image = numpy.asarray(logits).astype(np.float32), numpy.asarray(image)
    single = logits.shape[-1] == 1
    if single:
        logits = numpy.concatenate([numpy.zeros_like(logits), logits], axis=-1)
    classes = logits.shape[-1]
    if compatibility is not None:
        compatibility = jnp.asarray(compatibility, jnp.float32)
        if compatibility.shape != (classes, classes):
            raise SegzooError(
                f"the compatibilities have shape {list(compatibility.shape)}; expected "
                f"{[classes, classes]}."
            )

    def refine(one: tuple[Any, Any]) -> Any:
        logits, image = one
        found = kernels(image, config, capacity)
        if not traced:
            return infer(logits, found, config, compatibility)
        flat = logits.reshape(-1, classes)
        refined = mean_field(flat, found, _weights(config), compatibility, config.iterations)
        return jax.nn.softmax(refined).reshape(logits.shape)

    if traced:
        marginals = lax.map(refine, (logits, image))
    else:
        marginals = jnp.stack([refine(one) for one in zip(logits, image, strict=True)])
    return marginals[..., 1:] if single else marginals


def winners(marginals: np.ndarray) -> np.ndarray:
    """Returns the class ids of marginals `[..., K]`, uint8; of K = 1, class 1 above 0.5."""
    if marginals.shape[-1] == 1:
        return (marginals[..., 0] > 0.5).astype(np.uint8)
    return marginals.argmax(-1).astype(np.uint8)


def _check_shapes(logits: Array | np.ndarray, image: Array | np.ndarray) -> None:
    if logits.ndim != image.ndim or logits.shape[:-1] != image.shape[:-1] or logits.ndim < 3:
        raise SegzooError(
            f"logits of shape {list(logits.shape)} do not fit images of shape "
            f"{list(image.shape)}; expected [B, *S, K] and [B, *S, C]."
        )
    if 0 in logits.shape or 0 in image.shape:
        raise SegzooError(
            f"the logits {list(logits.shape)} or images {list(image.shape)} are empty."
        )
