"""Attention U-Net in PyTorch, with batch norm, bilinear up-sampling and a head at every scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks.peers.geometry import crop_to, pad_to_multiple


def double_conv(c_in: int, c_out: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for c in (c_in, c_out):
        layers += [nn.Conv2d(c, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Interpolates to the size of another map."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class AttentionGate(nn.Module):
    """The additive gate of the paper's Figure 2."""

    def __init__(self, channels: int, gating: int):
        super().__init__()
        self.w_x = nn.Conv2d(channels, channels, 2, stride=2, bias=False)
        self.w_g = nn.Conv2d(gating, channels, 1)
        self.psi = nn.Conv2d(channels, 1, 1)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """`[B, C, 2H, 2W], [B, G, H, W] -> [B, C, 2H, 2W]`."""
        alpha = torch.sigmoid(self.psi(F.relu(self.w_x(skip) + self.w_g(gating))))
        return resize(alpha, skip) * skip


class AttentionUNet(nn.Module):
    """Attention U-Net with four steps down."""

    def __init__(self, num_classes: int, channels: int, width: int = 64, depth: int = 4):
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.down = nn.ModuleList(
            double_conv(c_in, c_out)
            for c_in, c_out in zip([channels, *widths], widths, strict=False)
        )
        self.gates = nn.ModuleList(AttentionGate(c, 2 * c) for c in widths[1:-1])
        self.up = nn.ModuleList(double_conv(3 * c, c) for c in widths[:-1])
        self.score = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in widths[:-1])
        self.combine = nn.Conv2d(num_classes * depth, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, K, H, W]`."""
        x = padded = pad_to_multiple(image, 2**self.depth)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        heads = []
        for level in reversed(range(self.depth)):
            skip = skips[level]
            if level:
                skip = self.gates[level - 1](skip, x)
            x = self.up[level](torch.cat([skip, resize(x, skip)], dim=1))
            heads.append(resize(self.score[level](x), padded))
        return crop_to(self.combine(torch.cat(heads, dim=1)), image.shape[2:])
