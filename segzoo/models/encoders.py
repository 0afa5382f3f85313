"""What the segmenters that take any classifier's encoder share: building it, and its maps."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo import registry
from segzoo.backbones.by_name import backbone, backbone_names
from segzoo.errors import SegzooError, check_name, check_positive_int
from segzoo.layers import pad_to_multiple

Array = jax.Array


def build_encoder(name: str, width: int | None, *, dtype: Any, axis_name: str | None) -> nn.Module:
    """Builds the encoder of the classifier registered under `name`.

    A classifier that can pad each convolution does so here (`padding="SAME"`): its maps then halve
    exactly, and its weights are the same.

    Args:
        name: of a classifier.
        width: channels of its first convolution, the others in proportion; None: as published.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.

    Raises:
        SegzooError: for an unknown name, or a width that is impossible or cannot be chosen.
    """
    check_name("backbone", name, backbone_names())
    known = registry.entry(name).overrides
    chosen: dict[str, Any] = {"padding": "SAME"} if "padding" in known else {}
    if width is not None:
        check_positive_int("width", width)
        if "width" not in known:
            raise SegzooError(f"width is {width!r}; backbone {name!r} has one width only.")
        chosen["width"] = width
    return backbone(name, dtype=dtype, axis_name=axis_name, **chosen)


def in_proportion(channels: int, name: str, width: int | None) -> int:
    """Returns `channels`, scaled as `width` scales the classifier called `name`; at least 1."""
    published = registry.entry(name).overrides.get("width") or 64  # AlexNet says None for its 64
    return channels if width is None else max(1, round(channels * width / published))


def refuse_with_encoder(name: str, **given: object) -> None:
    """Raises `SegzooError` for an override that a network with the encoder `name` has not.

    Args:
        name: of the encoder.
        **given: overrides by name; None for one that was not given.
    """
    for override, value in given.items():
        if value is not None:
            raise SegzooError(
                f"{override} is {value!r}; it cannot be combined with backbone {name!r}."
            )


def encode(
    encoder: nn.Module, image: Array, *, train: bool
) -> tuple[tuple[Array, ...], tuple[int, ...]]:
    """Returns the maps of an image of any size, and the size they are maps of.

    The image is extended at its ends, mirrored, to a multiple of the coarsest reduction (and to the
    smallest size the encoder takes), so that an encoder that pads its convolutions halves exactly.

    Args:
        encoder: `(image, *, train) -> maps`, with `reductions`.
        image: `[B, H, W, C]`.
        train: passed on.

    Returns:
        Its maps, finest first, and the height and width of the extended image.
    """
    step, smallest = max(encoder.reductions), getattr(encoder, "smallest", 1)
    least = -(-smallest // step) * step
    image = pad_to_multiple(
        image, [max(step, least) if n < least else step for n in image.shape[1:3]]
    )
    return encoder(image, train=train), image.shape[1:3]


def levels(encoder: nn.Module) -> tuple[int, ...]:
    """Returns the reductions of a decoder up to image size: the encoder's, and finer halvings."""
    finest = encoder.reductions[0]
    finer = (2**i for i in range((finest - 1).bit_length()))
    return (*finer, *encoder.reductions)


def with_finer_levels(
    encoder: nn.Module, maps: tuple[Array, ...], size: tuple[int, ...]
) -> tuple[Array, ...]:
    """Returns a map for each of `levels`: where the encoder has none, one without channels.

    Args:
        encoder: that gave the maps.
        maps: from `encode`.
        size: from `encode`.
    """
    batch, dtype = maps[0].shape[0], maps[0].dtype
    finer = levels(encoder)[: -len(maps)]
    return (*(jnp.zeros((batch, *(n // r for n in size), 0), dtype) for r in finer), *maps)
