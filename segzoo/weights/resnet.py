"""How torchvision and timm store a ResNet: both alike."""

from __future__ import annotations

from typing import Any

from segzoo.weights.names import Layout

MODULES = {
    "backbone/stem/conv": "conv1",
    "backbone/stem/norm": "bn1",
    "backbone/stage{s}_block{b}/conv{i}/conv": "layer{s}.{b}.conv{i}",
    "backbone/stage{s}_block{b}/conv{i}/norm": "layer{s}.{b}.bn{i}",
    "backbone/stage{s}_block{b}/shortcut/conv": "layer{s}.{b}.downsample.0",
    "backbone/stage{s}_block{b}/shortcut/norm": "layer{s}.{b}.downsample.1",
    "head": "fc",
}


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns the tables of every library that stores this family, for one model of it."""
    return (Layout("torchvision", MODULES), Layout("timm", MODULES))
