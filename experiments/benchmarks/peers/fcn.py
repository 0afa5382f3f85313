"""FCN-8s in PyTorch, with the 100 pixels of border and the crops of the authors' networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CONVS = (2, 2, 3, 3, 3)


def stage(convs: int, c_in: int, c_out: int, padding: int = 1) -> nn.Sequential:
    """Convolutions with ReLUs, the first with a padding of its own."""
    layers: list[nn.Module] = []
    for i in range(convs):
        layers.append(nn.Conv2d(c_out if i else c_in, c_out, 3, padding=1 if i else padding))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def up(classes: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution that up-samples by `factor`."""
    return nn.ConvTranspose2d(classes, classes, 2 * factor, stride=factor, bias=False)


def window(x: torch.Tensor, offset: int, size: torch.Size) -> torch.Tensor:
    """Cuts `size` out, from `offset` on."""
    height, width = size
    return x[..., offset : offset + height, offset : offset + width]


class FCN8s(nn.Module):
    """FCN-8s on VGG-16."""

    def __init__(self, num_classes: int, channels: int, width: int = 64, dropout: float = 0.5):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(len(CONVS))]
        hidden = 64 * width
        self.stages = nn.ModuleList(
            stage(convs, c_in, c_out, 100 if i == 0 else 1)
            for i, (convs, c_in, c_out) in enumerate(
                zip(CONVS, [channels, *widths[:-1]], widths, strict=True)
            )
        )
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1], hidden, 7),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(hidden, num_classes, 1),
        )
        self.score_pool4 = nn.Conv2d(widths[3], num_classes, 1)
        self.score_pool3 = nn.Conv2d(widths[2], num_classes, 1)
        self.upscore2, self.upscore_pool4 = up(num_classes, 2), up(num_classes, 2)
        self.upscore8 = up(num_classes, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, K, H, W]`."""
        x, pools = image, []
        for block in self.stages:
            x = F.max_pool2d(block(x), 2, ceil_mode=True)
            pools.append(x)
        x = self.upscore2(self.head(x))
        x = x + window(self.score_pool4(pools[3]), 5, x.shape[2:])
        x = self.upscore_pool4(x)
        x = x + window(self.score_pool3(pools[2]), 9, x.shape[2:])
        return window(self.upscore8(x), 31, image.shape[2:])
