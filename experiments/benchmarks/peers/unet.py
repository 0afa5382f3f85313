"""U-Net in PyTorch, 2-D and 3-D."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from experiments.benchmarks.peers.geometry import crop_to, pad_to_multiple


def double_conv(conv: Any, c_in: int, c_out: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLUs."""
    return nn.Sequential(
        conv(c_in, c_out, 3, padding=1),
        nn.ReLU(inplace=True),
        conv(c_out, c_out, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """U-Net with zero padding; images are extended to a multiple of its stride."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        width: int = 64,
        depth: int = 4,
        spatial_dims: int = 2,
        dropout: float = 0.5,
    ):
        super().__init__()
        conv, up, pool = (
            (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d)
            if spatial_dims == 2
            else (nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d)
        )
        widths = [width * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.pool = pool(2)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.ModuleList(
            double_conv(conv, c_in, c_out)
            for c_in, c_out in zip([channels, *widths], widths, strict=False)
        )
        self.upsample = nn.ModuleList(up(2 * c, c, 2, stride=2) for c in widths[:-1])
        self.up = nn.ModuleList(double_conv(conv, 2 * c, c) for c in widths[:-1])
        self.score = conv(width, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`[B, C, *S] -> [B, K, *S]`."""
        x = pad_to_multiple(image, 2**self.depth)
        skips = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            if level >= self.depth - 1:
                x = self.dropout(x)
            skips.append(x)
        x = skips.pop()
        for level in reversed(range(self.depth)):
            x = self.up[level](torch.cat([skips[level], self.upsample[level](x)], dim=1))
        return crop_to(self.score(x), image.shape[2:])
