"""The primitives in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.benchmarks.primitives import PRIMITIVES


def build(
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    backward: bool,
    place: Callable[[Tensor], Tensor],
) -> Any:
    """Returns a function without arguments that makes one call.

    Args:
        name: of the primitive.
        shape: `[B, *S, C]` of the input, as jax has it.
        dtype: of input and kernels; vectors are float32.
        backward: also take the gradients by the input and the weights.
        place: brings a tensor to the device.
    """
    operation = OPERATIONS[name]
    batch, *size, channels = shape
    weights = [
        place(torch.randn(_in_torch(name, wanted)).to(dtype if len(wanted) > 1 else torch.float32))
        for wanted in PRIMITIVES[name].weights(channels)
    ]
    for weight in weights:
        weight.requires_grad_(backward)
    x = place(torch.randn(batch, channels, *size).to(dtype)).requires_grad_(backward)
    if not backward:

        def forward() -> Tensor:
            with torch.inference_mode():
                return operation(x, *weights)

        return forward
    with torch.no_grad():
        cotangent = torch.randn_like(operation(x, *weights))

    def both() -> Any:
        return torch.autograd.grad(operation(x, *weights), [x, *weights], cotangent)

    return both


def _in_torch(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of weights `[*k, C, O]` or `[C]`, as torch has it."""
    if len(shape) == 1:
        return tuple(shape)
    *kernel, c_in, c_out = shape
    transposed = name.startswith("up-convolution")
    return (c_in, c_out, *kernel) if transposed else (c_out, c_in, *kernel)


def _unpool(x: Tensor) -> Tensor:
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled, indices, 2)


def _bilinear(factor: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "convolution 3x3": lambda x, w: F.conv2d(x, w, padding=1),
    "convolution 3x3, rate 2": lambda x, w: F.conv2d(x, w, padding=2, dilation=2),
    "convolution 3x3x3": lambda x, w: F.conv3d(x, w, padding=1),
    "depthwise 3x3": lambda x, w: F.conv2d(x, w, padding=1, groups=x.shape[1]),
    "up-convolution 2x2": lambda x, w: F.conv_transpose2d(x, w, stride=2),
    "bilinear x2": _bilinear(2),
    "bilinear x8": _bilinear(8),
    "max-pool 2x2": lambda x: F.max_pool2d(x, 2),
    "max-pool 2x2 and unpool": _unpool,
    "batch norm": lambda x, scale, bias: F.batch_norm(x, None, None, scale, bias, training=True),
}
