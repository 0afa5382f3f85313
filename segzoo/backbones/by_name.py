"""The encoder of any registered classifier, by name: what `backbone="resnet50"` means."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from segzoo import registry
from segzoo.errors import SegzooError, check_name


def backbone_names() -> list[str]:
    """Returns the names of the classifiers whose backbone can be an encoder, sorted."""
    return registry.list_models(task="classification")


def backbone(
    name: str,
    *,
    dtype: Any,
    axis_name: str | None,
    output_stride: int | None = None,
    **overrides: Any,
) -> nn.Module:
    """Builds the encoder of the classifier registered under `name`.

    Args:
        name: one of `backbone_names()`.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
        output_stride: input pixels per pixel of the last map, by dilation; None leaves the
            classifier's own, which not every classifier can change.
        **overrides: further overrides of the classifier's, e.g. `width`.

    Returns:
        A module `(image, *, train) -> features`, finest first, with `reductions` and `stages`.

    Raises:
        SegzooError: for an unknown name (with near matches), an override that this classifier has
            not, or an impossible value.
    """
    check_name("backbone", name, backbone_names())
    if output_stride is not None:
        if "output_stride" not in registry.entry(name).overrides:
            raise SegzooError(
                f"backbone {name!r} has no output_stride to set; expected one that can be dilated, "
                "e.g. 'resnet50'."
            )
        overrides["output_stride"] = output_stride
    encoder = registry.get(name, dtype=dtype, axis_name=axis_name, **overrides).backbone
    assert isinstance(encoder, nn.Module)
    return encoder
