"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998, Proc. IEEE 86(11), section II-B, Figure 2).

`variant="original"`, layer by layer as published, 60,000 trained values: squashing functions after
every layer, trained sub-sampling, Table I's sparse connections in C3, and fixed +-1 codes that F6
is compared with. The logits are minus the squared distances to the codes (equation 7), so that
softmax cross-entropy is the paper's criterion (equation 9) without its rubbish class (j to
infinity). Weights start from the paper's uniform distribution (appendix A), biases from zero.

`variant="modern"` is the LeNet-5 of today's textbooks, 61,706 values: C3 sees all maps, averages
are taken for sub-sampling, and a dense layer gives the logits. It starts from Glorot & Bengio's
distribution.

Images smaller than 32x32 are extended by their border pixels, which the paper does with
"background": 28x28 digits get two pixels on each side. On larger ones C5 covers more than one
place (section VII), and F6 sees the mean over the places.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segzoo.checks import check_common, check_image
from segzoo.errors import SegzooError, check_choice
from segzoo.layers import Score, crop_to
from segzoo.registry import register

Array = jax.Array
Variant = Literal["original", "modern"]
Activation = Literal["sigmoid", "tanh", "relu"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": nn.relu,
}
SIDE = 32  # of the paper's images
CODE_SIZE = 7 * 12

# Table I: the maps of S2 that each map of C3 sees.
TABLE_I = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

# Figure 3: the codes of 0 to 9, side by side; # is +1, . is -1.
FIGURE_3 = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""


def squash(a: Array) -> Array:
    """The squashing function `1.7159 tanh(2 a / 3)` (equation 6), which keeps +1 and -1."""
    return 1.7159 * jnp.tanh(2 / 3 * a)


def uniform_by_fan_in(
    key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, fan_in: Any = None
) -> Array:
    """Uniform in +-2.4 / F, F the inputs of a unit (appendix A); by default a kernel's."""
    limit = 2.4 / (math.prod(shape[:-1]) if fan_in is None else fan_in)
    return jax.random.uniform(key, shape, dtype, -1, 1) * jnp.asarray(limit, dtype)


def codes(num_classes: int) -> np.ndarray:
    """Returns the codes of the output layer.

    For ten classes those of Figure 3. For any other number they are +1 and -1 "at random with equal
    probabilities", the alternative the paper names: class k has the same code whatever the number.

    Args:
        num_classes: K.

    Returns:
        float32 `[K, 84]`, +1 and -1.
    """
    if num_classes == 10:
        rows = [line.split() for line in FIGURE_3.split("\n") if line]
        pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
        bits = np.array([[pixel == "#" for pixel in picture] for picture in pictures])
    else:
        # Bits of a hash: the same for ever and everywhere, as no generator promises to be.
        digests = (hashlib.shake_128(b"class %d" % k).digest(11) for k in range(num_classes))
        packed = np.array([np.frombuffer(digest, np.uint8) for digest in digests])
        bits = np.unpackbits(packed, axis=1)[:, :CODE_SIZE]
    return np.where(bits, 1.0, -1.0).astype(np.float32)


class SparseConv(nn.Module):
    """Convolution without padding in which each output map sees some of the input maps.

    Attributes:
        connections: for each output map the input maps it sees.
        kernel_size: along both axes.
        dtype: of the computation.
    """

    connections: tuple[tuple[int, ...], ...] = TABLE_I
    kernel_size: int = 5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C] -> [B, H', W', len(connections)]`."""
        k, maps = self.kernel_size, len(self.connections)
        pairs = [(seen, out) for out, all_seen in enumerate(self.connections) for seen in all_seen]
        inputs, outputs = np.array(pairs).T
        fan_in = k * k * np.bincount(outputs)[outputs]
        initial = functools.partial(uniform_by_fan_in, fan_in=fan_in)
        # One kernel per connection; the rest of the full kernel is zero and stays so.
        kernel = self.param("kernel", initial, (k, k, len(pairs)), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (maps,), jnp.float32)
        full = jnp.zeros((k, k, x.shape[-1], maps), self.dtype)
        full = full.at[:, :, inputs, outputs].set(kernel.astype(self.dtype))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), full, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias.astype(self.dtype)


class Subsampling(nn.Module):
    """Sums 2x2 windows, times a trained coefficient, plus a trained bias, one of each per map.

    Attributes:
        dtype: of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C] -> [B, H // 2, W // 2, C]`, not yet squashed."""
        shape = (x.shape[-1],)
        initial = functools.partial(uniform_by_fan_in, fan_in=4)
        coefficient = self.param("coefficient", initial, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return _sum_of_windows(x) * coefficient.astype(self.dtype) + bias.astype(self.dtype)


def _sum_of_windows(x: Array) -> Array:
    """The sum of each 2x2 window; the remainder of an odd size is dropped."""
    height, width = (size // 2 for size in x.shape[1:3])
    x = crop_to(x, (2 * height, 2 * width))
    return x.reshape(x.shape[0], height, 2, width, 2, x.shape[-1]).sum((2, 4))


class LeNet(nn.Module):
    """The layers of LeNet-5 up to C5.

    Attributes:
        variant: "original" or "modern".
        activation: of the modern variant.
        dtype: of the computation.
        axis_name: for the contract; nothing here depends on the batch.
    """

    variant: Variant = "original"
    activation: Activation = "tanh"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return (1, 2, 4)

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the modules up to each map returned."""
        if self.variant == "original":
            return (("c1",), ("s2", "c3"), ("s4", "c5"))
        return (("c1",), ("c3",), ("c5",))

    @property
    def kernel_init(self) -> Callable[..., Array]:
        """How kernels start."""
        original = self.variant == "original"
        return uniform_by_fan_in if original else nn.initializers.glorot_uniform()

    def activate(self, x: Array) -> Array:
        """What follows every layer."""
        return squash(x) if self.variant == "original" else ACTIVATIONS[self.activation](x)

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised; the paper's has mean 0 and variance 1.
            train: changes nothing.

        Returns:
            C1, C3 and C5: of a 32x32 image 28x28, 10x10 and 1x1.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        missing = [max(SIDE - size, 0) for size in image.shape[1:3]]
        pads = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
        c1 = self.activate(self._conv(6, "c1")(jnp.pad(image, pads, mode="edge")))
        s2 = self._subsample(c1, "s2")
        sparse = self.variant == "original"
        conv = SparseConv(dtype=self.dtype, name="c3") if sparse else self._conv(16, "c3")
        c3 = self.activate(conv(s2))
        s4 = self._subsample(c3, "s4")
        c5 = self.activate(self._conv(120, "c5")(s4))
        return c1, c3, c5

    def _conv(self, features: int, name: str) -> nn.Module:
        return nn.Conv(
            features,
            (5, 5),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name=name,
        )

    def _subsample(self, x: Array, name: str) -> Array:
        if self.variant == "modern":
            return _sum_of_windows(x) / 4
        return self.activate(Subsampling(self.dtype, name=name)(x))


class LeNet5(nn.Module):
    """F6 and the output layer over LeNet's features.

    Attributes:
        backbone: the layers up to C5.
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: for the contract; nothing here depends on the batch.
    """

    backbone: LeNet
    num_classes: int = 10
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """`[B, H, W, C] -> float32 [B, K]`."""
        c5 = self.backbone(image, train=train)[-1]
        f6 = nn.Dense(CODE_SIZE, dtype=self.dtype, kernel_init=self.backbone.kernel_init, name="f6")
        x = self.backbone.activate(f6(c5.mean((1, 2))))
        if self.backbone.variant == "modern":
            return Score(self.num_classes, self.dtype, self.backbone.kernel_init, name="head")(x)
        # One logit is that of class 1 against class 0, which has a code too.
        targets = codes(max(self.num_classes, 2))
        logits = -jnp.sum(jnp.square(x[:, None].astype(jnp.float32) - targets), axis=-1)
        return logits[:, 1:] - logits[:, :1] if self.num_classes == 1 else logits


@register(
    task="classification",
    paper="LeCun et al. 1998, Proc. IEEE 86(11)",
    input_shape=(SIDE, SIDE, 1),
    parameters=60_000,
)
def lenet5(
    num_classes: int = 10,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    variant: Variant = "original",
    activation: Activation | None = None,
) -> LeNet5:
    """LeNet-5 as published; the textbooks' by its variant, whose activation is tanh by default."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_choice("variant", variant, VARIANTS)
    if activation is None:
        activation = "tanh"
    elif variant == "original":
        raise SegzooError(
            f"activation is {activation!r}; expected none with variant='original', which has its "
            "own squashing function (variant='modern' takes any)."
        )
    check_choice("activation", activation, ACTIVATIONS)
    backbone = LeNet(variant, activation, dtype, axis_name)
    return LeNet5(backbone, num_classes, dtype, axis_name)
