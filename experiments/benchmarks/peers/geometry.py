"""Images of any size through networks that halve them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Extends `[B, C, *S]` at the ends to a multiple, mirrored."""
    missing = [-n % multiple for n in reversed(image.shape[2:])]
    if not any(missing):
        return image
    return F.pad(image, [pad for end in missing for pad in (0, end)], mode="reflect")


def crop_to(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Keeps the first `size` of each spatial axis."""
    return x[(..., *(slice(n) for n in size))]
