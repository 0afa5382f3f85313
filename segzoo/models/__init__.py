"""Image -> logits, one file per paper; importing this package registers them all."""

from segzoo.models import (
    attention_unet,
    deeplabv1,
    deeplabv2,
    deeplabv3,
    deeplabv3plus,
    fc_densenet,
    fcn,
    fcn_resnet,
    mask_rcnn,
    segnet,
    segnet_basic,
    unet,
)

__all__ = [
    "attention_unet",
    "deeplabv1",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3plus",
    "fc_densenet",
    "fcn",
    "fcn_resnet",
    "mask_rcnn",
    "segnet",
    "segnet_basic",
    "unet",
]
