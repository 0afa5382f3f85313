"""VGG's names in torchvision and timm."""

from __future__ import annotations

from typing import Any

from segzoo.backbones.vgg import PLACES
from segzoo.weights.names import Flattened, Layout


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns the layouts of torchvision's and timm's VGG, with batch norm or without.

    timm has the hidden layers as convolutions.

    Args:
        model: a classifier with this family's backbone, or a model that has it as encoder.
    """
    vgg = model.backbone
    features: dict[str, str] = {}
    place = 0  # torchvision numbers every module of `features`: convolutions, ReLUs, pools
    for names in vgg.stages:
        for name in names:
            features[f"backbone/{name}/conv"] = f"features.{place}"
            features[f"backbone/{name}/norm"] = f"features.{place + 1}"
            place += 2 if vgg.norm == "none" else 3
        place += 1
    side = getattr(model, "places", PLACES)
    last = (8 * vgg.width, side, side)
    hidden = (getattr(model, "hidden", 64 * vgg.width), 1, 1)
    torchvision: dict[str, str | Flattened] = {
        **features,
        "fc6": Flattened("classifier.0", last),
        "fc7": "classifier.3",
        "head": "classifier.6",
    }
    timm: dict[str, str | Flattened] = {
        **features,
        "fc6": Flattened("pre_logits.fc1", last, convolution=True),
        "fc7": Flattened("pre_logits.fc2", hidden, convolution=True),
        "head": "head.fc",
    }
    return (Layout("torchvision", torchvision), Layout("timm", timm))
