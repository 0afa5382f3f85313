"""How torchvision and timm store a DenseNet; torchvision's files have older names."""

from __future__ import annotations

from typing import Any

from segzoo.weights.names import Layout

_COMMON = {
    "backbone/stem/conv": "features.conv0",
    "backbone/stem/norm": "features.norm0",
    "backbone/transition{s}/norm": "features.transition{s}.norm",
    "backbone/transition{s}/conv": "features.transition{s}.conv",
    "backbone/norm": "features.norm5",
    "head": "classifier",
}
_LAYER = "backbone/block{s}_layer{i}"
_THEIRS = "features.denseblock{s}.denselayer{i}"
MODULES = _COMMON | {
    f"{_LAYER}/norm{{j}}": f"{_THEIRS}.norm{{j}}",
    f"{_LAYER}/conv{{j}}": f"{_THEIRS}.conv{{j}}",
}
# The files published with torchvision were written before its modules took their present names.
FILE_MODULES = _COMMON | {
    f"{_LAYER}/norm{{j}}": f"{_THEIRS}.norm.{{j}}",
    f"{_LAYER}/conv{{j}}": f"{_THEIRS}.conv.{{j}}",
}


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns the tables of every library that stores this family, for one model of it."""
    return (
        Layout("torchvision", MODULES),
        Layout("torchvision", FILE_MODULES),
        Layout("timm", MODULES),
    )
