"""SegNet in PyTorch: VGG-16 with batch norm, max-pool indices, and the mirror image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CONVS = (2, 2, 3, 3, 3)


def conv(c_in: int, c_out: int) -> nn.Sequential:
    """A 3x3 convolution with bias, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class SegNet(nn.Module):
    """SegNet; the last convolution of the decoder is the classifier."""

    def __init__(self, num_classes: int, channels: int, width: int = 64):
        super().__init__()
        widths = [width * min(2**stage, 8) for stage in range(len(CONVS))]
        self.encoder, decoder = nn.ModuleList(), []
        c_in = channels
        for stage, (convs, c) in enumerate(zip(CONVS, widths, strict=True)):
            self.encoder.append(nn.Sequential(*(conv(c if i else c_in, c) for i in range(convs))))
            last: nn.Module = conv(c, widths[stage - 1])
            if stage == 0:
                last = nn.Conv2d(c, num_classes, 3, padding=1)
            decoder.append(nn.Sequential(*(conv(c, c) for _ in range(convs - 1)), last))
            c_in = c
        self.decoder = nn.ModuleList(reversed(decoder))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, K, H, W]`."""
        x, pools = image, []
        for block in self.encoder:
            x = block(x)
            size = x.shape[2:]
            x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            pools.append((indices, size))
        for block, (indices, size) in zip(self.decoder, reversed(pools), strict=True):
            x = block(F.max_unpool2d(x, indices, 2, output_size=size))
        return x
