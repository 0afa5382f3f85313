"""GoogLeNet's names in torchvision.

Its weights are for images of mean and standard deviation 127.5 (of 0..255) in every channel;
torchvision's `transform_input` brings images normalised with ImageNet's statistics to these.
"""

from __future__ import annotations

from typing import Any

from segzoo.backbones.googlenet import AUXILIARY, TABLE
from segzoo.weights.names import Flattened, Layout

_BRANCHES = {
    "conv1x1": "branch1",
    "reduce3x3": "branch2.0",
    "conv3x3": "branch2.1",
    "reduce5x5": "branch3.0",
    "conv5x5": "branch3.1",
    "pool_proj": "branch4.1",
}


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns the layout of torchvision's GoogLeNet; the paper's variant is in no library.

    Args:
        model: a classifier with this family's backbone, or a model that has it as encoder.
    """
    net = model.backbone
    if net.variant != "torchvision":
        return ()
    units = {f"backbone/{name}": name for name in net.stages[0]}
    for name in (name for rows in TABLE for name in rows):
        units |= {f"backbone/{name}/{ours}": f"{name}.{k}" for ours, k in _BRANCHES.items()}
    heads = tuple(name for name, _ in AUXILIARY)
    units |= {f"{head}/conv": f"{head}.conv" for head in heads}
    modules: dict[str, str | Flattened] = {"head": "fc"}
    for ours, theirs in units.items():
        modules |= {f"{ours}/conv": f"{theirs}.conv", f"{ours}/norm": f"{theirs}.bn"}
    for head in heads:
        modules[f"{head}/fc1"] = Flattened(f"{head}.fc1", (net.channels(128), 4, 4))
        modules[f"{head}/fc2"] = f"{head}.fc2"
    half = (127.5,) * 3
    return (Layout("torchvision", modules, optional=heads, mean=half, std=half),)
