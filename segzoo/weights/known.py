"""Weights of the registry's networks that are known to be on the hub, with what they expect.

The figures are those of timm 1.0, which put them there. All are trained or fine-tuned on ImageNet
with 1000 classes; each repository states its licence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from segzoo.errors import SegzooError, did_you_mean
from segzoo.weights.hub import HubId
from segzoo.weights.names import IMAGENET_MEAN, IMAGENET_STD

_IMAGENET = IMAGENET_MEAN, IMAGENET_STD
_HALF = (127.5,) * 3, (127.5,) * 3

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights on the hub.

    Attributes:
        name: what they are called here, and there.
        model: the model they are for.
        model_args: its overrides.
        image_size: height and width of the images they were scored at.
        crop: the side of that image as a share of the shorter side of the picture it is cut from.
        interpolation: how the picture was brought to that size.
        mean: of each channel, of 0..255.
        std: likewise.
        num_classes: how many classes they score.
    """

    name: str
    model: str
    model_args: dict[str, Any]
    image_size: tuple[int, int]
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int = 1000

    @property
    def hub_id(self) -> HubId:
        """Where they are, at the newest revision."""
        return HubId(f"timm/{self.name}")


def _rows(
    model: str, tags: str, size: int, crop: float, interpolation: str, **more: Any
) -> list[Pretrained]:
    """The weights of one network that are used alike, their names `<network>.<tag>`."""
    prefix, overrides = more.get("prefix", ""), more.get("model_args", {})
    mean, std = more.get("statistics", _IMAGENET)
    return [
        Pretrained(
            f"{prefix}{model}.{tag}", model, overrides, (size, size), crop, interpolation, mean, std
        )
        for tag in tags.split()
    ]


# The networks as TensorFlow trained them: its padding and its batch norm.
_TF: dict[str, Any] = {"prefix": "tf_", "model_args": {"variant": "paper"}}
_TF_HALF: dict[str, Any] = {**_TF, "statistics": _HALF}

_TABLE = [
    *_rows("resnet18", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("resnet18", "gluon_in1k", 224, 0.875, "bicubic"),
    *_rows("resnet18", "a1_in1k a2_in1k", 288, 1.0, "bicubic"),
    *_rows("resnet18", "a3_in1k", 224, 0.95, "bicubic"),
    *_rows("resnet34", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("resnet34", "gluon_in1k", 224, 0.875, "bicubic"),
    *_rows("resnet34", "a1_in1k a2_in1k", 288, 1.0, "bicubic"),
    *_rows("resnet34", "a3_in1k", 224, 0.95, "bicubic"),
    *_rows("resnet34", "bt_in1k", 288, 0.95, "bicubic"),
    *_rows("resnet34", "ra4_e3600_r224_in1k", 288, 1.0, "bicubic", statistics=_HALF),
    *_rows("resnet50", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("resnet50", "tv2_in1k", 224, 0.965, "bilinear"),
    *_rows("resnet50", "gluon_in1k am_in1k", 224, 0.875, "bicubic"),
    *_rows("resnet50", "a1_in1k a2_in1k", 288, 1.0, "bicubic"),
    *_rows("resnet50", "b1k_in1k b2k_in1k c1_in1k c2_in1k d_in1k", 288, 1.0, "bicubic"),
    *_rows("resnet50", "a1h_in1k", 224, 1.0, "bicubic"),
    *_rows("resnet50", "a3_in1k", 224, 0.95, "bicubic"),
    *_rows("resnet50", "bt_in1k ra_in1k ram_in1k", 288, 0.95, "bicubic"),
    *_rows("resnet101", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("resnet101", "tv2_in1k", 224, 0.965, "bilinear"),
    *_rows("resnet101", "gluon_in1k", 224, 0.875, "bicubic"),
    *_rows("resnet101", "a1_in1k a1h_in1k a2_in1k", 288, 1.0, "bicubic"),
    *_rows("resnet101", "a3_in1k", 224, 0.95, "bicubic"),
    *_rows("resnet152", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("resnet152", "tv2_in1k", 224, 0.965, "bilinear"),
    *_rows("resnet152", "gluon_in1k", 224, 0.875, "bicubic"),
    *_rows("resnet152", "a1_in1k a1h_in1k a2_in1k", 288, 1.0, "bicubic"),
    *_rows("resnet152", "a3_in1k", 224, 0.95, "bicubic"),
    *_rows("vgg11", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("vgg11_bn", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("vgg13", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("vgg13_bn", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("vgg16", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("vgg16_bn", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("vgg19", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("vgg19_bn", "tv_in1k", 224, 0.875, "bilinear"),
    *_rows("densenet121", "tv_in1k", 224, 0.875, "bicubic"),
    *_rows("densenet121", "ra_in1k", 288, 0.95, "bicubic"),
    *_rows("densenet161", "tv_in1k", 224, 0.875, "bicubic"),
    *_rows("densenet169", "tv_in1k", 224, 0.875, "bicubic"),
    *_rows("densenet201", "tv_in1k", 224, 0.875, "bicubic"),
    *_rows("efficientnet_b0", "ra_in1k", 224, 0.875, "bicubic"),
    *_rows("efficientnet_b0", "ra4_e3600_r224_in1k", 256, 1.0, "bicubic", statistics=_HALF),
    *_rows("efficientnet_b1", "ft_in1k", 256, 1.0, "bicubic"),
    *_rows("efficientnet_b1", "ra4_e3600_r240_in1k", 288, 1.0, "bicubic", statistics=_HALF),
    *_rows("efficientnet_b2", "ra_in1k", 288, 1.0, "bicubic"),
    *_rows("efficientnet_b3", "ra2_in1k", 320, 1.0, "bicubic"),
    *_rows("efficientnet_b4", "ra2_in1k", 384, 1.0, "bicubic"),
    *_rows("efficientnet_b0", "in1k aa_in1k ns_jft_in1k", 224, 0.875, "bicubic", **_TF),
    *_rows("efficientnet_b0", "ap_in1k", 224, 0.875, "bicubic", **_TF_HALF),
    *_rows("efficientnet_b1", "in1k aa_in1k ns_jft_in1k", 240, 0.882, "bicubic", **_TF),
    *_rows("efficientnet_b1", "ap_in1k", 240, 0.882, "bicubic", **_TF_HALF),
    *_rows("efficientnet_b2", "in1k aa_in1k ns_jft_in1k", 260, 0.89, "bicubic", **_TF),
    *_rows("efficientnet_b2", "ap_in1k", 260, 0.89, "bicubic", **_TF_HALF),
    *_rows("efficientnet_b3", "in1k aa_in1k ns_jft_in1k", 300, 0.904, "bicubic", **_TF),
    *_rows("efficientnet_b3", "ap_in1k", 300, 0.904, "bicubic", **_TF_HALF),
    *_rows("efficientnet_b4", "in1k aa_in1k ns_jft_in1k", 380, 0.922, "bicubic", **_TF),
    *_rows("efficientnet_b4", "ap_in1k", 380, 0.922, "bicubic", **_TF_HALF),
    *_rows("efficientnet_b5", "in1k aa_in1k ns_jft_in1k ra_in1k", 456, 0.934, "bicubic", **_TF),
    *_rows("efficientnet_b5", "ap_in1k", 456, 0.934, "bicubic", **_TF_HALF),
    *_rows("efficientnet_b6", "aa_in1k ns_jft_in1k", 528, 0.942, "bicubic", **_TF),
    *_rows("efficientnet_b6", "ap_in1k", 528, 0.942, "bicubic", **_TF_HALF),
    *_rows("efficientnet_b7", "aa_in1k ns_jft_in1k ra_in1k", 600, 0.949, "bicubic", **_TF),
    *_rows("efficientnet_b7", "ap_in1k", 600, 0.949, "bicubic", **_TF_HALF),
    *_rows("xception41", "tf_in1k", 299, 0.903, "bicubic", statistics=_HALF),
    *_rows("xception65", "tf_in1k", 299, 0.903, "bicubic", statistics=_HALF),
    *_rows("xception65", "ra3_in1k", 299, 0.94, "bicubic", statistics=_HALF),
    *_rows("xception71", "tf_in1k", 299, 0.903, "bicubic", statistics=_HALF),
]
_KNOWN = {row.name: row for row in _TABLE}


def pretrained(model: str | None = None) -> list[str]:
    """Returns the names of weights on the hub that `segzoo.load` and `init_from` take.

    Args:
        model: only those for this model of the registry.

    Raises:
        SegzooError: when the registry has no such model.
    """
    if model is not None:
        from segzoo import registry

        registry.entry(model)
    return [row.name for row in _TABLE if model in (None, row.model)]


def is_known(name: str) -> bool:
    """Whether `name`, without an `@revision`, is one of `pretrained()`."""
    return name.partition("@")[0] in _KNOWN


def find(name: str) -> tuple[Pretrained, HubId]:
    """Returns the weights of a name `<weights>[@revision]`.

    Raises:
        SegzooError: for an unknown name, with the nearest known ones.
    """
    found, at, revision = name.partition("@")
    if found not in _KNOWN:
        raise SegzooError(f"unknown weights {found!r}.{did_you_mean(found, _KNOWN)}")
    row = _KNOWN[found]
    return row, dataclasses.replace(row.hub_id, revision=revision) if at else row.hub_id
