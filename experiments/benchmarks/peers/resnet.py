"""torchvision's ResNet-50, and DeepLab v3+ on it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segzoo.errors import SegzooError

LOW_LEVEL, REDUCED, FEATURES = 256, 48, 256


def torchvision_models() -> Any:
    """Imports torchvision's models.

    Its wheels are built for a build of torch with CUDA. Beside one without, its operators do not
    load and the import fails at their names; the networks need none of them, so the names do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            names = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                names.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(names)  # the names last as long as it does
            import torchvision
    return torchvision.models


_KEPT: list[Any] = []


def resnet50(num_classes: int, channels: int) -> nn.Module:
    """torchvision's classifier."""
    if channels != 3:
        raise SegzooError(f"torchvision's ResNet-50 takes 3 channels, not {channels}")
    network: nn.Module = torchvision_models().resnet50(num_classes=num_classes)
    return network


def conv_norm_relu(c_in: int, c_out: int, kernel: int, rate: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, batch norm and ReLU."""
    padding = rate * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=padding, dilation=rate, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Interpolates between aligned corners."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling."""

    def __init__(self, c_in: int, rates: Sequence[int] = (6, 12, 18), dropout: float = 0.1):
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_norm_relu(c_in, FEATURES, 1)]
            + [conv_norm_relu(c_in, FEATURES, 3, rate) for rate in rates]
        )
        self.image_pooling = conv_norm_relu(c_in, FEATURES, 1)
        self.project = conv_norm_relu((2 + len(rates)) * FEATURES, FEATURES, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, h, w] -> [B, FEATURES, h, w]`."""
        maps = [branch(x) for branch in self.branches]
        pooled = self.image_pooling(x.mean((2, 3), keepdim=True))
        maps.append(pooled.expand_as(maps[0]))
        return self.dropout(self.project(torch.cat(maps, dim=1)))


class DeepLabV3Plus(nn.Module):
    """DeepLab v3+ on ResNet-50 at output stride 16, multi-grid (1, 2, 4).

    The image's sides are multiples of 16 and one pixel more.
    """

    def __init__(self, num_classes: int, channels: int, backbone: str, separable: bool):
        super().__init__()
        if (channels, backbone, separable) != (3, "resnet50", False):
            raise SegzooError(
                f"DeepLab v3+ of {channels} channels on {backbone} (separable: {separable}); "
                "expected 3 channels, resnet50 and no separable convolutions"
            )
        net = torchvision_models().resnet50(replace_stride_with_dilation=(False, False, True))
        for block, rate in zip(net.layer4, (2, 4, 8), strict=True):
            block.conv2.dilation = block.conv2.padding = (rate, rate)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.low, self.rest = net.layer1, nn.Sequential(net.layer2, net.layer3, net.layer4)
        self.aspp = ASPP(2048)
        self.reduce = conv_norm_relu(LOW_LEVEL, REDUCED, 1)
        self.decoder = nn.Sequential(
            conv_norm_relu(FEATURES + REDUCED, FEATURES, 3), conv_norm_relu(FEATURES, FEATURES, 3)
        )
        self.score = nn.Conv2d(FEATURES, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W] -> [B, K, H, W]`."""
        low = self.low(self.stem(image))
        x = resize(self.aspp(self.rest(low)), low.shape[2:])
        x = self.decoder(torch.cat([x, self.reduce(low)], dim=1))
        return resize(self.score(x), image.shape[2:])
