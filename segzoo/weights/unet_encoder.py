"""How segmentation-models-pytorch stores its `Unet` with the encoder of a ResNet."""

from __future__ import annotations

from segzoo.backbones.resnet import ResNet
from segzoo.models.encoders import levels
from segzoo.models.unet_encoder import EncoderUNet
from segzoo.weights import resnet
from segzoo.weights.names import Layout


def layouts(model: EncoderUNet) -> tuple[Layout, ...]:
    """Returns the layout of segmentation-models-pytorch, where its decoder is that of `model`.

    Its encoders of other families give other maps, or lie in other names; its decoder has no
    up-convolutions.

    Args:
        model: a U-Net with an encoder.
    """
    norms = {"batch", "none"}
    if not isinstance(model.backbone, ResNet) or model.norm not in norms:
        return ()
    if model.upsample == "transpose":
        return ()
    modules = {
        ours: f"encoder.{theirs}" for ours, theirs in resnet.MODULES.items() if ours != "head"
    }
    steps = len(levels(model.backbone)) - 1
    for level in range(steps):
        for i in (1, 2):
            ours, theirs = f"up{level}/conv{i}", f"decoder.blocks.{steps - 1 - level}.conv{i}"
            modules |= {f"{ours}/conv": f"{theirs}.0", f"{ours}/norm": f"{theirs}.1"}
    return (Layout("segmentation_models_pytorch", modules | {"score": "segmentation_head.0"}),)
