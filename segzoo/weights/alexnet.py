"""AlexNet's names in torchvision."""

from __future__ import annotations

from typing import Any

from segzoo.backbones.alexnet import PLACES
from segzoo.weights.names import Flattened, Layout


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns the layout of torchvision's AlexNet, of `variant="torchvision"`; else none.

    Args:
        model: a classifier with this family's backbone, or a model that has it as encoder.
    """
    alexnet = model.backbone
    if alexnet.variant != "torchvision":
        return ()
    # torchvision numbers every module of `features`: convolutions, ReLUs, pools.
    places = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    side = getattr(model, "places", PLACES)
    shape = (alexnet.channels(256), side, side)
    modules: dict[str, str | Flattened] = {
        **{f"backbone/{name}": f"features.{place}" for name, place in places.items()},
        "fc6": Flattened("classifier.1", shape),
        "fc7": "classifier.4",
        "head": "classifier.6",
    }
    return (Layout("torchvision", modules),)
