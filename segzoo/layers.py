"""The modules the networks are built of, over the array functions of `segzoo.ops`.

All take channels-last arrays `[B, *S, C]` with any number of spatial axes, compute in `dtype`, and
keep their parameters in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from segzoo.errors import check_choice
from segzoo.initializers import he_normal, variance_scaling
from segzoo.ops.batch_norm import batch_norm, normalize
from segzoo.ops.convolution import bilinear_kernel, conv_general_dilated, conv_transpose
from segzoo.ops.dropout import dropout
from segzoo.ops.pooling import max_pool
from segzoo.ops.spatial import center_crop, crop_to, pad_to_multiple, resize

__all__ = [
    "NORMS",
    "TEST_STATISTICS",
    "Conv",
    "ConvNormAct",
    "ConvTranspose",
    "Dropout",
    "Norm",
    "NormKind",
    "Score",
    "TestStatistics",
    "bilinear_kernel",
    "center_crop",
    "conv_transpose",
    "crop_to",
    "example_keys",
    "mapped_axis",
    "max_pool",
    "pad_to_multiple",
    "resize",
]

Array = jax.Array
NormKind = Literal["none", "batch", "group", "frozen"]
NORMS: tuple[NormKind, ...] = ("none", "batch", "group", "frozen")
TestStatistics = Literal["running", "image"]
TEST_STATISTICS: tuple[TestStatistics, ...] = ("running", "image")


class Module(nn.Module):
    """A module whose parameters are of the shape that their initialisers are asked for.

    linen traces every parameter's initialiser at every call, to learn its shape: a tenth of what
    tracing a network takes.
    """

    @nn.nowrap
    def param(
        self, name: str, init_fn: Callable[..., Any], *init_args: Any, **init_kwargs: Any
    ) -> Any:
        """As `nn.Module.param`, which is not asked where there is an array of the right shape."""
        if init_args and self.has_variable("params", name):
            value: Any = self.get_variable("params", name)
            if isinstance(value, jax.Array) and value.shape == tuple(init_args[0]):
                return value
        return super().param(name, init_fn, *init_args, **init_kwargs)


class Conv(Module, nn.Conv):
    """`nn.Conv` with He's initialisation, and in forms that are fast on a CPU."""

    kernel_init: Callable[..., Array] = he_normal
    conv_general_dilated: Callable[..., Array] | None = conv_general_dilated


class ConvTranspose(Module):
    """Transposed convolution without padding, its parameters those of `nn.ConvTranspose`.

    Attributes:
        features: output channels.
        kernel_size: one number per spatial axis.
        strides: by default the kernel size (U-Net's up-convolution).
        use_bias: whether a bias is added.
        dtype: of the computation.
        kernel_init: by default Gaussian with variance 2 / N, N the inputs an output pixel sees.
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, *S, C] -> [B, *S', features]`, see `conv_transpose`."""
        strides = self.kernel_size if self.strides is None else self.strides
        # An output pixel sees k / stride inputs per axis, not k: linen's fan-in is too large.
        seen = math.prod(-(-k // s) for k, s in zip(self.kernel_size, strides, strict=True))
        scale = 2.0 * math.prod(self.kernel_size) / seen
        init = self.kernel_init or variance_scaling(scale, "normal")
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        y = conv_transpose(x.astype(self.dtype), kernel.astype(self.dtype), strides)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class Norm(Module):
    """Normalisation by name, with float32 statistics whatever the dtype of computation.

    Attributes:
        kind: "none"; "batch": statistics over all devices of `axis_name`; "group": 8 groups, or the
            largest divisor of 8 the channels allow; "frozen": batch norm that nothing moves, its
            scale and bias kept beside its statistics in `batch_stats`, no parameters.
        dtype: of the result.
        axis_name: the mapped axis batch statistics are averaged over while training.
        momentum: the share of its old value a running statistic keeps in a step.
        epsilon: added to the variance.
        test_statistics: what "batch" uses where it does not train: the "running" statistics, or
            those of each "image" by itself. A batch of one image is then normalised as in training,
            and in any other batch an image keeps the values it has alone: they do not depend on
            what else is in the batch, or on how many devices share it.
    """

    kind: NormKind = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    test_statistics: TestStatistics = "running"

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool, statistics: tuple[Array, Array] | None = None
    ) -> Array:
        """Normalises.

        Args:
            x: `[B, *S, C]`.
            train: chooses batch statistics, and updates the running ones.
            statistics: those of the batch, `[C]` each, where they are known; see
                `segzoo.measured`.

        Returns:
            `[B, *S, C]`.
        """
        check_choice("test_statistics", self.test_statistics, TEST_STATISTICS)
        norm: nn.Module
        if self.kind == "none":
            return x
        if self.kind == "frozen":
            return self._frozen(x)
        if self.kind == "batch" and self._by_image(train):
            # Of every channel of every image by itself, by the scale and offset of batch norm.
            norm = nn.InstanceNorm(epsilon=self.epsilon, dtype=self.dtype)
        elif self.kind == "batch":
            return self._batch(x, train, statistics)
        else:
            check_choice("norm", self.kind, NORMS)
            norm = nn.GroupNorm(math.gcd(8, x.shape[-1]), epsilon=self.epsilon, dtype=self.dtype)
        nn.share_scope(self, norm)  # one level in the tree of parameters, not two
        return norm(x)

    def _batch(self, x: Array, train: bool, statistics: tuple[Array, Array] | None) -> Array:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            return normalize(x, mean.value, var.value, scale, bias, self.epsilon, self.dtype)
        y, of_batch, spread = batch_norm(
            x,
            scale,
            bias,
            epsilon=self.epsilon,
            axis_name=mapped_axis(self, self.axis_name),
            dtype=self.dtype,
            statistics=statistics,
        )
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * of_batch
            var.value = self.momentum * var.value + (1 - self.momentum) * spread
        return y

    def _frozen(self, x: Array) -> Array:
        def constant(name: str, init: Callable[..., Array]) -> Array:
            value: Array = self.variable("batch_stats", name, init, x.shape[-1:], jnp.float32).value
            return value

        scale, bias = constant("scale", jnp.ones), constant("bias", jnp.zeros)
        mean, var = constant("mean", jnp.zeros), constant("var", jnp.ones)
        factor = scale * lax.rsqrt(var + self.epsilon)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)

    def _by_image(self, train: bool) -> bool:
        # `init` makes the running statistics, which training keeps up to date, in either case.
        return self.test_statistics == "image" and not train and not self.is_initializing()


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation.

    Attributes:
        features: output channels.
        kernel_size: one number for all spatial axes, or one for each.
        strides: one number for all spatial axes.
        dilation: one number for all spatial axes.
        padding: as for `nn.Conv`: "SAME", "VALID" or `(before, after)` pairs.
        groups: the channels are convolved in so many separate groups.
        norm: "none", "batch", "group" or "frozen".
        momentum: see `Norm`.
        epsilon: see `Norm`.
        use_bias: of the convolution; by default only without normalisation, whose own offset would
            make it redundant.
        activation: the last step.
        dtype: of the computation.
        axis_name: see `Norm`.
    """

    features: int
    kernel_size: int | tuple[int, ...] = 3
    strides: int = 1
    dilation: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    groups: int = 1
    norm: NormKind = "none"
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_bias: bool | None = None
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, *S, C] -> [B, *S', features]`."""
        rank, size = x.ndim - 2, self.kernel_size
        x = Conv(
            self.features,
            (size,) * rank if isinstance(size, int) else size,
            strides=self.strides,
            kernel_dilation=self.dilation,
            padding=self.padding,
            feature_group_count=self.groups,
            use_bias=self.norm == "none" if self.use_bias is None else self.use_bias,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = Norm(self.norm, self.dtype, self.axis_name, self.momentum, self.epsilon, name="norm")(
            x, train=train
        )
        return self.activation(x)


class Score(Module):
    """1x1 convolution to float32 logits, its parameters those of a 1x1 `nn.Conv`.

    The products are taken in `dtype` and summed in float32, so logits keep their precision under
    bfloat16 without a float32 copy of the features.

    Attributes:
        num_classes: K.
        dtype: of the computation.
        kernel_init: by default He's.
    """

    num_classes: int
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, *S, C] -> float32 [B, *S, K]`."""
        shape = (*(1,) * (x.ndim - 2), x.shape[-1], self.num_classes)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype).reshape(shape[-2:])
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias


def mapped_axis(module: nn.Module, axis_name: str | None) -> str | None:
    """The axis a module's batch is split over; while its variables are made there is none."""
    return None if module.is_initializing() else axis_name


def example_keys(key: Array, examples: int, axis_name: str | None) -> Array:
    """Keys for the examples of a batch that do not depend on how it is split over devices.

    Args:
        key: the same on all devices.
        examples: of this device.
        axis_name: the mapped axis the batch is split over, if any, each device a contiguous share
            in the order of the devices.

    Returns:
        `[examples]`: the key folded with each example's position in the global batch.
    """
    position = _first_position(examples, axis_name) + jnp.arange(examples)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


def _first_position(examples: int, axis_name: str | None) -> Array | int:
    """Where in the global batch the examples of this device begin."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * examples


class Dropout(nn.Module):
    """Dropout whose masks do not depend on how the batch is split over devices.

    Each example draws its mask from the "dropout" key and the example's position in the *global*
    batch, so one device and eight (given the same key, each a contiguous share of the batch in the
    order of the devices) drop the same activations.

    Attributes:
        rate: the probability of zero, see `segzoo.ops.dropout`.
        axis_name: the mapped axis the batch is split over, if any.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """`[B, ...] -> [B, ...]`; the identity where `deterministic`."""
        if deterministic or self.rate == 0.0:
            return x
        if self.rate == 1.0:
            return jnp.zeros_like(x)
        first = _first_position(x.shape[0], mapped_axis(self, self.axis_name))
        return dropout(x, self.make_rng("dropout"), self.rate, first=first)
