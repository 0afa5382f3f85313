"""Networks of linen's own layers alone: what ours would be without `segzoo.layers`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.contestants import Facts
from segzoo.errors import check_name
from segzoo.layers import crop_to, pad_to_multiple

Array = jax.Array


class UNet(nn.Module):
    """U-Net, 2-D and 3-D."""

    num_classes: int
    dtype: Any
    width: int = 64
    depth: int = 4
    spatial_dims: int = 2
    dropout: float = 0.5

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """`[B, *S, C] -> float32 [B, *S, K]`."""
        two, three = (2,) * self.spatial_dims, (3,) * self.spatial_dims

        def double_conv(x: Array, features: int) -> Array:
            for _ in range(2):
                x = nn.relu(nn.Conv(features, three, dtype=self.dtype)(x))
            return x

        x = pad_to_multiple(image, 2**self.depth)
        skips = []
        for level in range(self.depth + 1):
            x = nn.max_pool(x, two, two) if level else x
            x = double_conv(x, self.width * 2**level)
            if level >= self.depth - 1:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
            skips.append(x)
        x = skips.pop()
        for level in reversed(range(self.depth)):
            features = self.width * 2**level
            x = nn.ConvTranspose(features, two, two, dtype=self.dtype)(x)
            x = double_conv(jnp.concatenate([skips[level], x], axis=-1), features)
        logits = nn.Conv(self.num_classes, (1,) * self.spatial_dims, dtype=self.dtype)(x)
        return crop_to(logits, image.shape[1:-1]).astype(jnp.float32)


class SegNet(nn.Module):
    """SegNet, its unpooling an arg-max and a scatter."""

    num_classes: int
    dtype: Any
    width: int = 64

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """`[B, H, W, C] -> float32 [B, H, W, K]`."""

        def conv(x: Array, features: int) -> Array:
            x = nn.Conv(features, (3, 3), dtype=self.dtype)(x)
            norm = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)
            return nn.relu(norm(x))

        convs, factors = (2, 2, 3, 3, 3), (1, 2, 4, 8, 8)
        widths = [self.width * factor for factor in factors]
        x, pools = image, []
        for count, features in zip(convs, widths, strict=True):
            for _ in range(count):
                x = conv(x, features)
            pools.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        for stage in reversed(range(len(convs))):
            x = _unpool(x, pools[stage])
            for _ in range(convs[stage] - 1):
                x = conv(x, widths[stage])
            if stage:
                x = conv(x, widths[stage - 1])
        return nn.Conv(self.num_classes, (3, 3), dtype=self.dtype)(x).astype(jnp.float32)


def places(x: Array) -> Array:
    """`[B, H, W, C] -> [B, h, w, C]`: where in each 2x2 window the maximum lies, 0 to 3."""
    batch, height, width, channels = x.shape
    odd = [(0, 0), (0, height % 2), (0, width % 2), (0, 0)]
    x = jnp.pad(x, odd, constant_values=-jnp.inf)
    half = (x.shape[1] // 2, x.shape[2] // 2)
    tiles = x.reshape(batch, half[0], 2, half[1], 2, channels).transpose(0, 1, 3, 5, 2, 4)
    return jnp.argmax(tiles.reshape(batch, *half, channels, 4), axis=-1)


def scatter(x: Array, place: Array, shape: tuple[int, ...]) -> Array:
    """Puts values `[B, h, w, C]` at their places in zeros of `shape`, `[B, H, W, C]`."""
    b, i, j, c = jnp.indices(place.shape, sparse=True)
    return jnp.zeros(shape, x.dtype).at[b, 2 * i + place // 2, 2 * j + place % 2, c].set(x)


def _unpool(x: Array, encoded: Array) -> Array:
    return scatter(x, places(encoded), encoded.shape)


NETWORKS: dict[str, Any] = {"unet": UNet, "segnet": SegNet}


def build(workload: Facts) -> nn.Module:
    """Returns a workload's network.

    Raises:
        SegzooError: for a model that is not written here.
    """
    check_name("network in plain linen", workload["model"], NETWORKS)
    network: nn.Module = NETWORKS[workload["model"]](
        workload["classes"], jnp.dtype(workload["dtype"]), **workload["model_args"]
    )
    return network
