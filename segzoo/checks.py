"""What every model asks of its overrides and its image, as one-sentence errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.layers import NORMS


def check_common(
    *, num_classes: object, dtype: Any, spatial_dims: object = 2, norm: object = "none"
) -> None:
    """Raises `SegzooError` unless the overrides most models share are possible."""
    check_positive_int("num_classes", num_classes)
    check_choice("spatial_dims", spatial_dims, (2, 3))
    check_choice("norm", norm, NORMS)
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise SegzooError(
            f"dtype is {dtype!r}; expected a floating type, e.g. 'float32' or 'bfloat16'."
        )


def check_rate(what: str, value: object) -> None:
    """Raises `SegzooError` unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise SegzooError(f"{what} is {value!r}; expected a number of at least 0 and below 1.")


def check_image(image: jax.Array, spatial_dims: int) -> None:
    """Raises `SegzooError` unless `image` is `[B, *S, C]` with `spatial_dims` non-empty axes."""
    if image.ndim != spatial_dims + 2 or 0 in image.shape[1:]:
        axes = "B, H, W, C" if spatial_dims == 2 else "B, D, H, W, C"
        raise SegzooError(
            f"the image has shape {tuple(image.shape)}; expected [{axes}] (spatial_dims is "
            f"{spatial_dims})."
        )
