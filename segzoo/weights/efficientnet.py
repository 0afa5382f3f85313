"""EfficientNet's names in torchvision and timm."""

from __future__ import annotations

from segzoo.backbones.efficientnet import STAGES, EfficientNetClassifier
from segzoo.weights.names import Layout


def layouts(model: EfficientNetClassifier) -> tuple[Layout, ...]:
    """Returns the layouts of torchvision's and timm's EfficientNet.

    timm's is that of its `efficientnet_b*` and of its `tf_efficientnet_b*`. The latter keep
    TensorFlow's geometry: their weights want `variant="paper"`. Batch norm's epsilon is 1e-5 in all
    of the former, so `efficientnet_b5` to `b7` want that field of the backbone changed.

    Args:
        model: a classifier with this family's backbone.
    """
    # Depthwise convolution, its norm, projection, its norm; the first stage has no expansion.
    separable = ("conv_dw", "bn1", "conv_pw", "bn2")
    inverted = ("conv_dw", "bn2", "conv_pwl", "bn3")
    torchvision: dict[str, str] = {}
    timm: dict[str, str] = {}
    for index, stage in enumerate(STAGES):
        ours = f"backbone/stage{index + 2}_block{{i}}"
        tv, tm = f"features.{index + 1}.{{i}}.block", f"blocks.{index}.{{i}}"
        first = 0
        if stage.expansion != 1:
            torchvision |= _unit(f"{ours}/expand", f"{tv}.0.0", f"{tv}.0.1")
            timm |= _unit(f"{ours}/expand", f"{tm}.conv_pw", f"{tm}.bn1")
            first = 1
        torchvision |= {
            **_unit(f"{ours}/depthwise", f"{tv}.{first}.0", f"{tv}.{first}.1"),
            f"{ours}/squeeze_excite/reduce": f"{tv}.{first + 1}.fc1",
            f"{ours}/squeeze_excite/expand": f"{tv}.{first + 1}.fc2",
            **_unit(f"{ours}/project", f"{tv}.{first + 2}.0", f"{tv}.{first + 2}.1"),
        }
        depthwise, norm, project, last = separable if stage.expansion == 1 else inverted
        timm |= {
            **_unit(f"{ours}/depthwise", f"{tm}.{depthwise}", f"{tm}.{norm}"),
            f"{ours}/squeeze_excite/reduce": f"{tm}.se.conv_reduce",
            f"{ours}/squeeze_excite/expand": f"{tm}.se.conv_expand",
            **_unit(f"{ours}/project", f"{tm}.{project}", f"{tm}.{last}"),
        }
    return (
        Layout(
            "torchvision",
            {
                **_unit("backbone/stem", "features.0.0", "features.0.1"),
                **torchvision,
                **_unit("head_conv", "features.8.0", "features.8.1"),
                "head": "classifier.1",
            },
        ),
        Layout(
            "timm",
            {
                **_unit("backbone/stem", "conv_stem", "bn1"),
                **timm,
                **_unit("head_conv", "conv_head", "bn2"),
                "head": "classifier",
            },
        ),
    )


def _unit(ours: str, conv: str, norm: str) -> dict[str, str]:
    """The two modules of a `ConvNormAct`."""
    return {f"{ours}/conv": conv, f"{ours}/norm": norm}
