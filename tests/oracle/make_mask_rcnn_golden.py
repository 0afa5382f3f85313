"""Writes tests/goldens/mask_rcnn_resnet50_fpn.npz: what torchvision gives at every stage.

python tests/oracle/make_mask_rcnn_golden.py

The largest differences of ours are printed, and kept in docs/parity.json.
"""

from __future__ import annotations

import sys
from typing import Any

import make_goldens
import mask_rcnn_parity as shared
import numpy as np
import shim
from parity import Outputs
from shim import torch, torchvision
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList

torch.set_num_threads(1)


def _nms(boxes: Any, scores: Any, threshold: float) -> Any:
    """The textbook's loop."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    over = torchvision.ops.box_iou(boxes, boxes) > threshold
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if not gone[i]:
            gone[i + 1 :] |= over[i, i + 1 :]
    return order[~gone]


def _inside(interpolate: Any) -> Any:
    """The rule of the compiled operator that its stand-in leaves out: 0 beyond one place."""

    def interpolated(feature: Any, index: Any, y: Any, x: Any, *masks: Any) -> Any:
        height, width = feature.shape[2:]
        rows = ((y >= -1) & (y <= height))[:, None, :, None, :, None]
        columns = ((x >= -1) & (x <= width))[:, None, None, :, None, :]
        return torch.where(rows & columns, interpolate(feature, index, y, x, *masks), 0.0)

    return interpolated


if shim.LIBRARY is not None:  # torchvision without its compiled operators
    shim.LIBRARY.impl("nms", _nms, "CPU")
    sys.modules["torchvision.ops.boxes"]._assert_has_ops = lambda: None
    _align = sys.modules["torchvision.ops.roi_align"]
    _align._bilinear_interpolate = _inside(_align._bilinear_interpolate)


def build() -> Any:
    """Returns torchvision's network, its batch norm frozen, without weights from the net."""
    encoder = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    return MaskRCNN(encoder, num_classes=91).eval()


def fill(network: Any, variances: dict[str, float] | None) -> dict[str, float]:
    """Gives the network the drawn weights; measures the variances of its norms unless given."""
    frozen = torchvision.ops.FrozenBatchNorm2d
    norms = {name: m for name, m in network.named_modules() if isinstance(m, frozen)}
    measured = dict.fromkeys(norms, 1.0) if variances is None else variances
    drawn = {
        name: torch.from_numpy(shared.tensor(name, tuple(value.shape), measured))
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(drawn, strict=True)
    if variances is not None:
        return variances

    def note(name: str) -> Any:
        def hook(norm: Any, args: Any) -> None:
            measured[name] = float(f"{args[0].var(correction=0):.3g}")
            for leaf in ("running_mean", "running_var"):
                value = getattr(norm, leaf)
                full = f"{name}.{leaf}"
                value.copy_(torch.from_numpy(shared.tensor(full, tuple(value.shape), measured)))

        return hook

    handles = [norm.register_forward_pre_hook(note(name)) for name, norm in norms.items()]
    with torch.inference_mode():
        network.backbone(padded(shared.picture(shared.SIZES[-1])))
    for handle in handles:
        handle.remove()
    return measured


def padded(image: np.ndarray) -> Any:
    """Returns `[1, 3, H', W']`, zeros added up to multiples of 32."""
    x = torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    rows, columns = (-n % 32 for n in image.shape[1:3])
    return torch.nn.functional.pad(x, (0, columns, 0, rows))


def outputs(network: Any, image: np.ndarray) -> Outputs:
    """Runs the reference, keeping what each stage gives, channels last and y first."""
    size = tuple(image.shape[1:3])
    images = ImageList(padded(image), [size])
    pooler = network.roi_heads.box_roi_pool
    for roi_pool in (pooler, network.roi_heads.mask_roi_pool):
        roi_pool.scales = None  # found out from the first image seen
    with torch.inference_mode():
        pyramid = network.backbone(images.tensors)
        logits, offsets = network.rpn.head(list(pyramid.values()))
        (anchors,) = network.rpn.anchor_generator(images, list(pyramid.values()))
        proposals, _ = network.rpn(images, pyramid)
        regions = pooler(pyramid, [proposals[0][: shared.REGIONS]], [size])
        heads = network.roi_heads
        scores, shifts = heads.box_predictor(heads.box_head(regions))
        (found,), _ = heads(pyramid, proposals, [size])

    def y_first(boxes: Any) -> Any:
        return boxes[:, [1, 0, 3, 2]]

    result = {f"p{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(pyramid.values(), start=2)}
    for i, (logit, offset) in enumerate(zip(logits, offsets, strict=True), start=2):
        result[f"objectness{i}"] = logit.permute(0, 2, 3, 1).reshape(1, -1)
        result[f"offsets{i}"] = offset.permute(0, 2, 3, 1).reshape(1, -1, 4)
    result |= {"anchors": y_first(anchors), "proposals": y_first(proposals[0])}
    result |= {"regions": regions.permute(0, 2, 3, 1), "class_logits": scores}
    result |= {"box_offsets": shifts.reshape(len(shifts), -1, 4), "boxes": y_first(found["boxes"])}
    result |= {"scores": found["scores"], "classes": found["labels"]}
    result["masks"] = found["masks"][:, 0]
    return {name: np.ascontiguousarray(value.numpy()) for name, value in result.items()}


def compute(
    variances: dict[str, float] | None = None,
) -> tuple[dict[str, float], dict[tuple[int, int], Outputs], dict[str, float], dict[str, Any]]:
    """Runs both networks.

    Returns:
        The variances, the reference's digests by the size of the image, the largest differences of
        ours, and the name and shape of each of the reference's tensors.
    """
    network = build()
    names = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    variances = fill(network, variances)
    variables, ours = shared.our_tensors(variances)
    assert ours == names
    digests, worst = {}, {}
    for size in shared.SIZES:
        image = shared.picture(size)
        expected = outputs(network, image)
        found = shared.our_outputs(variables, image, expected["proposals"])
        digests[size] = shared.digest(expected)
        for name, error in shared.errors(shared.digest(found), digests[size]).items():
            worst[name] = max(worst.get(name, 0.0), error)
    return variances, digests, worst, names


def main() -> None:
    """Writes the golden and its row of the record."""
    variances, digests, worst, _ = compute()
    arrays = {"norms": np.array(list(variances)), "variances": np.array(list(variances.values()))}
    for (height, width), digest in digests.items():
        arrays |= {f"{height}x{width}/{name}": value for name, value in digest.items()}
        print(f"{height} x {width}:", {name: len(digest[name]) for name in shared.WHOLE})
    np.savez_compressed(shared.GOLDEN, **arrays)
    for name, error in worst.items():
        print(f"{name}: {error:.1e}")
    version = torchvision.__version__.partition("+")[0]
    row = {
        "reference": f"torchvision {version} maskrcnn_resnet50_fpn",
        "sizes": [list(size) for size in shared.SIZES],
        "errors": {name: float(f"{error:.2g}") for name, error in worst.items()},
    }
    record = make_goldens.read()
    stages = record.get("stages", {}) | {shared.GOLDEN.stem: row}
    make_goldens.write(record.get("models", {}), stages)


if __name__ == "__main__":
    main()
