"""VGG's names in torchvision."""

from __future__ import annotations

from segzoo.backbones.classifier import DenseClassifier
from segzoo.weights.names import Flattened, Layout


def layouts(model: DenseClassifier) -> tuple[Layout, ...]:
    """Returns the layout of torchvision's VGG, with batch norm or without.

    Args:
        model: a classifier with this family's backbone.
    """
    vgg = model.backbone
    modules: dict[str, str | Flattened] = {}
    place = 0  # torchvision numbers every module of `features`: convolutions, ReLUs, pools
    for names in vgg.stages:
        for name in names:
            modules[f"backbone/{name}/conv"] = f"features.{place}"
            modules[f"backbone/{name}/norm"] = f"features.{place + 1}"
            place += 2 if vgg.norm == "none" else 3
        place += 1
    channels = 8 * vgg.width
    modules |= {
        "fc6": Flattened("classifier.0", (channels, model.places, model.places)),
        "fc7": "classifier.3",
        "head": "classifier.6",
    }
    return (Layout("torchvision", modules),)
