"""FC-DenseNet56 in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks.peers.geometry import crop_to

EPSILON = 1e-4


def layer(c_in: int, c_out: int, kernel: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """Batch norm, ReLU, convolution, drop-out."""
    return nn.Sequential(
        nn.BatchNorm2d(c_in, eps=EPSILON),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2),
        nn.Dropout(dropout),
    )


class DenseBlock(nn.Module):
    """Layers that each see all maps before them; gives the new maps alone."""

    def __init__(self, c_in: int, layers: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(layer(c_in + i * growth, growth) for i in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, layers * growth, H, W]`."""
        maps = [x]
        for one in self.layers:
            maps.append(one(torch.cat(maps, dim=1)))
        return torch.cat(maps[1:], dim=1)


class FCDenseNet(nn.Module):
    """FC-DenseNet with dense blocks of the same number of layers."""

    def __init__(
        self, num_classes: int, channels: int, width: int = 48, layers: int = 4, blocks: int = 5
    ):
        super().__init__()
        growth = round(12 * width / 48)
        new = layers * growth
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        stacks = [width + new * (i + 1) for i in range(blocks)]
        self.down = nn.ModuleList(DenseBlock(c, layers, growth) for c in [width, *stacks[:-1]])
        self.transition_down = nn.ModuleList(layer(c, c, kernel=1) for c in stacks)
        self.bottleneck = DenseBlock(stacks[-1], layers, growth)
        self.transition_up = nn.ModuleList(
            nn.ConvTranspose2d(new, new, 3, stride=2) for _ in range(blocks)
        )
        self.up = nn.ModuleList(DenseBlock(new + c, layers, growth) for c in stacks)
        self.score = nn.Conv2d(new + stacks[0] + new, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, K, H, W]`, for sides of 32 pixels and more."""
        x, skips = self.conv(image), []
        for block, transition in zip(self.down, self.transition_down, strict=True):
            skips.append(torch.cat([x, block(x)], dim=1))
            x = F.max_pool2d(transition(skips[-1]), 2)
        new = self.bottleneck(x)
        for level in reversed(range(len(skips))):
            skip = skips[level]
            x = torch.cat([crop_to(self.transition_up[level](new), skip.shape[2:]), skip], dim=1)
            new = self.up[level](x)
        return self.score(torch.cat([x, new], dim=1))
