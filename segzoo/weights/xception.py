"""How timm stores the modified aligned Xception."""

from __future__ import annotations

from typing import Any

from segzoo.weights.names import Layout

MODULES = {
    "backbone/stem1/conv": "stem.0.conv",
    "backbone/stem1/norm": "stem.0.bn",
    "backbone/stem2/conv": "stem.1.conv",
    "backbone/stem2/norm": "stem.1.bn",
    "backbone/block{b}/conv{i}/depthwise/conv": "blocks.{b}.stack.conv{i}.conv_dw",
    "backbone/block{b}/conv{i}/depthwise/norm": "blocks.{b}.stack.conv{i}.bn_dw",
    "backbone/block{b}/conv{i}/pointwise/conv": "blocks.{b}.stack.conv{i}.conv_pw",
    "backbone/block{b}/conv{i}/pointwise/norm": "blocks.{b}.stack.conv{i}.bn_pw",
    "backbone/block{b}/shortcut/conv": "blocks.{b}.shortcut.conv",
    "backbone/block{b}/shortcut/norm": "blocks.{b}.shortcut.bn",
    "head": "head.fc",
}
HALF = (127.5,) * 3


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns the layout of timm's `xception41`, `xception65` and `xception71`.

    Their weights are for images of mean and standard deviation 127.5 (of 0..255) in every channel.

    Args:
        model: a classifier with this family's backbone, or a model that has it as encoder.
    """
    return (Layout("timm", MODULES, mean=HALF, std=HALF),)
