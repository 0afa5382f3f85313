"""How torchvision stores its FCN."""

from __future__ import annotations

from segzoo.models.fcn_resnet import FCNResNet
from segzoo.weights import resnet
from segzoo.weights.names import Layout

# torchvision keeps the encoder in a field of the same name as ours.
ENCODER = {
    ours: f"backbone.{theirs}"
    for ours, theirs in resnet.MODULES.items()
    if ours.startswith("backbone/")
}


def fcn_head(ours: str, theirs: str) -> dict[str, str]:
    """The modules of an `FCNHead`."""
    return {
        f"{ours}/conv/conv": f"{theirs}.0",
        f"{ours}/conv/norm": f"{theirs}.1",
        f"{ours}/score": f"{theirs}.4",
    }


AUXILIARY = fcn_head("aux", "aux_classifier")


def layouts(model: FCNResNet) -> tuple[Layout, ...]:
    """Returns torchvision's layout; files may lack the auxiliary head.

    Args:
        model: an FCN on ResNet.
    """
    modules = ENCODER | AUXILIARY | fcn_head("head", "classifier")
    return (Layout("torchvision", modules, optional=("aux",)),)
