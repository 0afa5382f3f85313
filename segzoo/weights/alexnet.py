"""AlexNet's names in torchvision."""

from __future__ import annotations

from segzoo.backbones.classifier import DenseClassifier
from segzoo.weights.names import Flattened, Layout


def layouts(model: DenseClassifier) -> tuple[Layout, ...]:
    """Returns the layout of torchvision's AlexNet, of `variant="torchvision"`; else none.

    Args:
        model: a classifier with this family's backbone.
    """
    alexnet = model.backbone
    if alexnet.variant != "torchvision":
        return ()
    # torchvision numbers every module of `features`: convolutions, ReLUs, pools.
    places = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    shape = (alexnet.channels(256), model.places, model.places)
    modules: dict[str, str | Flattened] = {
        **{f"backbone/{name}": f"features.{place}" for name, place in places.items()},
        "fc6": Flattened("classifier.1", shape),
        "fc7": "classifier.4",
        "head": "classifier.6",
    }
    return (Layout("torchvision", modules),)
