"""How torchvision stores Mask R-CNN with a feature pyramid."""

from __future__ import annotations

from segzoo.models.mask_rcnn import BOX_SIZE, MaskRCNN
from segzoo.weights import resnet
from segzoo.weights.names import Flattened, Layout, Theirs, Transposed


def layouts(model: MaskRCNN) -> tuple[Layout, ...]:
    """Returns today's names, then those of the files published before its version 0.13.

    Args:
        model: a Mask R-CNN.
    """
    today = {i: f"{i - 1}.0" for i in range(1, 5)}
    earlier = {i: f"mask_fcn{i}" for i in range(1, 5)}
    return (
        Layout("torchvision", _modules(model, ".0", "conv.0.0", today)),
        Layout("torchvision", _modules(model, "", "conv", earlier)),
    )


def _modules(
    model: MaskRCNN, block: str, proposals: str, masks: dict[int, str]
) -> dict[str, Theirs]:
    """The names of all modules, given those that changed."""
    modules: dict[str, Theirs] = {
        ours: f"backbone.body.{theirs}"
        for ours, theirs in resnet.MODULES.items()
        if ours.startswith("backbone/")
    }
    for i in range(4):
        modules[f"fpn/lateral{i + 2}"] = f"backbone.fpn.inner_blocks.{i}{block}"
        modules[f"fpn/output{i + 2}"] = f"backbone.fpn.layer_blocks.{i}{block}"
    features = (4 * model.width, BOX_SIZE, BOX_SIZE)
    return modules | {
        "rpn/conv": f"rpn.head.{proposals}",
        "rpn/objectness": "rpn.head.cls_logits",
        "rpn/offsets": "rpn.head.bbox_pred",
        "box_head/fc6": Flattened("roi_heads.box_head.fc6", features),
        "box_head/fc7": "roi_heads.box_head.fc7",
        "box_head/score": "roi_heads.box_predictor.cls_score",
        "box_head/offsets": "roi_heads.box_predictor.bbox_pred",
        **{f"mask_head/conv{i}": f"roi_heads.mask_head.{name}" for i, name in masks.items()},
        "mask_head/upsample": Transposed("roi_heads.mask_predictor.conv5_mask"),
        "mask_head/score": "roi_heads.mask_predictor.mask_fcn_logits",
    }
