"""How torchvision stores its DeepLab v3."""

from __future__ import annotations

from typing import Any

from segzoo.models.deeplabv3 import DeepLabV3ResNet
from segzoo.weights.fcn_resnet import AUXILIARY, ENCODER
from segzoo.weights.names import Layout


def layouts(model: Any) -> tuple[Layout, ...]:
    """Returns torchvision's layout, whose files may lack the auxiliary head.

    No library is known to have the paper's own network under names of its own.

    Args:
        model: a network of `segzoo.models.deeplabv3`.
    """
    if not isinstance(model, DeepLabV3ResNet):
        return ()
    units = {
        "aspp/conv1x1": _unit("classifier.0.convs.0", 0),
        "aspp/project": _unit("classifier.0.project", 0),
        "conv": _unit("classifier", 1),
    }
    # Its pyramid numbers the branches in order.
    for number in range(1, 1 + len(model.rates)):
        units[f"aspp/atrous{number}"] = _unit(f"classifier.0.convs.{number}", 0)
    units["aspp/image_pooling"] = _unit(f"classifier.0.convs.{1 + len(model.rates)}", 1)
    modules = {**ENCODER, **AUXILIARY, "head/score": "classifier.4"}
    for ours, (conv, norm) in units.items():
        modules |= {f"head/{ours}/conv": conv, f"head/{ours}/norm": norm}
    return (Layout("torchvision", modules, optional=("aux",)),)


def _unit(name: str, first: int) -> tuple[str, str]:
    """The convolution and the norm after it in a sequence."""
    return f"{name}.{first}", f"{name}.{first + 1}"
