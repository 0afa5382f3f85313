"""BN-Inception's names in Caffe's release, as the package pretrainedmodels has them in PyTorch.

Its weights are for images of 0..255 in the order blue, green, red, with the means 104, 117 and 128
subtracted and nothing divided. Ours take red first, as all networks here do.
"""

from __future__ import annotations

from typing import Any

from segzoo.backbones.inception_v2 import TABLE
from segzoo.weights.names import Layout

_CONVOLUTIONS = {
    "conv1": "conv1_7x7_s2",
    "conv2_reduce": "conv2_3x3_reduce",
    "conv2": "conv2_3x3",
}
_BRANCHES = {
    "conv1x1": "1x1",
    "reduce3x3": "3x3_reduce",
    "conv3x3": "3x3",
    "reduce_double": "double_3x3_reduce",
    "double1": "double_3x3_1",
    "double2": "double_3x3_2",
    "pool_proj": "pool_proj",
}


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns the layout of pretrainedmodels' `bninception`; the paper's variant is in no library.

    Args:
        model: a classifier with this family's backbone, or a model that has it as encoder.
    """
    if model.backbone.variant != "caffe":
        return ()
    units = {f"backbone/{ours}": theirs for ours, theirs in _CONVOLUTIONS.items()}
    for name in (name for rows in TABLE for name in rows):
        theirs = name.replace("inception", "inception_")
        units |= {f"backbone/{name}/{ours}": f"{theirs}_{k}" for ours, k in _BRANCHES.items()}
    modules = {"head": "last_linear"}
    for ours, theirs in units.items():
        modules |= {f"{ours}/conv": theirs, f"{ours}/norm": f"{theirs}_bn"}
    return (
        Layout(
            "pretrainedmodels",
            modules,
            mean=(128.0, 117.0, 104.0),
            std=(1.0, 1.0, 1.0),
            blue_first="params/backbone/conv1/conv/kernel",
        ),
    )
