"""Mask R-CNN stage by stage, the same weights in ours and in torchvision's; needs no torch here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from parity import GOLDENS, Outputs, draw, draw_image

import segzoo
from segzoo.models.mask_rcnn import STRIDES
from segzoo.models.roi_heads import BoxHead
from segzoo.models.rpn import propose, pyramid_anchors
from segzoo.ops.roi_align import assign_levels, roi_align
from segzoo.weights.convert import layouts_of
from segzoo.weights.names import places

GOLDEN = GOLDENS / "mask_rcnn_resnet50_fpn.npz"
SIZES = ((75, 97), (256, 320))
REGIONS = 100  # of the proposals, that the heads are compared on
SAMPLES = 256
TOLERANCE = 1e-3  # absolute, of boxes in pixels and scores; of maps in standard deviations

# Drawn weights give logits of tens. With these factors the scores are spread over 0 to 1 and boxes
# stay near their anchors.
FACTORS = {
    "rpn.head.cls_logits.weight": 0.2,
    "rpn.head.bbox_pred.weight": 0.05,
    "roi_heads.box_predictor.cls_score.weight": 0.4,
    "roi_heads.box_predictor.bbox_pred.weight": 0.1,
    "roi_heads.mask_predictor.mask_fcn_logits.weight": 0.1,
}


def tensor(name: str, shape: tuple[int, ...], variances: dict[str, float]) -> np.ndarray:
    """Draws a tensor of torchvision's network."""
    factor = FACTORS.get(name, 1.0)
    if len(shape) > 1 and not name.startswith("backbone.body."):
        factor *= 2  # `draw` halves kernels, which only those before a normalisation bear
    return draw(name, shape, variances) * np.float32(factor)


def picture(size: tuple[int, int]) -> np.ndarray:
    """Draws an image, float32 `[1, H, W, 3]`."""
    return draw_image(size)[:1]


@functools.cache
def network() -> Any:
    """Returns our network."""
    return segzoo.get("mask_rcnn_resnet50_fpn")


def our_tensors(variances: dict[str, float]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Draws our variables; also the name and shape each tensor has in torchvision."""
    model = network()
    image = jax.ShapeDtypeStruct((1, *SIZES[0], 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables, names = {}, {}
    flat = traverse_util.flatten_dict(shapes, sep="/")
    for path, place in places(flat, layouts_of(model)[0]).items():
        assert place is not None, f"torchvision has no name for {path}"
        names[place.name] = place.shape(flat[path].shape)
        variables[path] = place.take(tensor(place.name, names[place.name], variances))
    return traverse_util.unflatten_dict(variables, sep="/"), names


def our_outputs(variables: dict[str, Any], image: np.ndarray, proposals: np.ndarray) -> Outputs:
    """Runs our network, keeping what each stage gives.

    Args:
        variables: from `our_tensors`.
        image: `[1, H, W, 3]`.
        proposals: of the reference, `[N, 4]`: what the features of regions are compared on.
    """
    model = network()
    names = ("fpn", "rpn")

    @jax.jit
    def run(variables: Any, image: jax.Array) -> Any:
        return model.apply(
            variables,
            image,
            capture_intermediates=lambda module, method: (
                module.name in names and method == "__call__"
            ),
            mutable=["intermediates"],
        )

    found, sown = run(variables, image)
    (pyramid,) = sown["intermediates"]["fpn"]["__call__"]
    logits, offsets = zip(*sown["intermediates"]["rpn"]["__call__"], strict=True)
    padded = [-(-n // STRIDES[-1]) * STRIDES[-1] for n in image.shape[1:3]]
    anchors = pyramid_anchors(
        [level.shape[1:3] for level in pyramid], padded, model.anchor_sizes, model.aspect_ratios
    )
    before, after = model.proposals
    sizes = jnp.asarray([image.shape[1:3]])
    threshold = model.proposal_threshold
    box, _, kept = jax.jit(
        lambda *x: propose(*x, anchors, sizes, before=before, after=after, threshold=threshold)
    )(logits, offsets)
    boxes = jnp.asarray(proposals[None, :REGIONS])
    regions = roi_align(pyramid[:4], boxes, STRIDES, 7, level=assign_levels(boxes) - 2)[0]
    head = {"params": variables["params"]["box_head"]}
    scores, shifts = BoxHead(model.num_classes).apply(head, regions)
    there = found["valid"][0]
    outputs = {f"p{i}": level for i, level in enumerate(pyramid, start=2)}
    outputs |= {f"objectness{i}": x for i, x in enumerate(logits, start=2)}
    outputs |= {f"offsets{i}": x for i, x in enumerate(offsets, start=2)}
    outputs |= {"anchors": np.concatenate(anchors), "proposals": box[0][kept[0]]}
    outputs |= {"regions": regions, "class_logits": scores, "box_offsets": shifts}
    outputs |= {name: found[name][0][there] for name in ("boxes", "scores", "classes", "masks")}
    return {name: np.asarray(value) for name, value in outputs.items()}


WHOLE = ("proposals", "boxes", "scores", "classes")


def digest(outputs: Outputs) -> Outputs:
    """Keeps boxes, scores and classes; of all else some values, before them the deviation."""
    kept = {}
    for name, value in outputs.items():
        if name in WHOLE:
            kept[name] = value
            continue
        place = np.linspace(0, value.size - 1, SAMPLES).astype(np.int64)
        deviation = value.std(dtype=np.float64)
        kept[name] = np.array([deviation, *value.reshape(-1)[place]], np.float32)
    return kept


def errors(found: Outputs, expected: Outputs) -> dict[str, float]:
    """Returns the largest difference of each of the digests, see `TOLERANCE`."""
    assert found.keys() == expected.keys()
    result = {}
    for name, theirs in expected.items():
        ours = found[name]
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        scale = 1.0 if name in WHOLE else float(theirs[0])
        difference = np.abs(ours.astype(np.float64) - theirs)
        if name == "proposals":
            # In the order of their scores, so many that rounding lets neighbours change places:
            # each is compared with the nearest of those around its place.
            apart = np.abs(ours[:, None].astype(np.float64) - theirs).max(axis=-1)
            number = np.arange(len(ours))
            apart[np.abs(number[:, None] - number) > 2] = np.inf
            difference = np.maximum(apart.min(axis=0), apart.min(axis=1))
        result[name] = float(difference.max()) / scale
    return result


def read(path: Path = GOLDEN) -> tuple[dict[str, float], dict[tuple[int, int], Outputs]]:
    """Returns the golden: the variances, and the digests by the size of the image."""
    outputs: dict[tuple[int, int], Outputs] = {size: {} for size in SIZES}
    with np.load(path) as file:
        variances = dict(zip(file["norms"].tolist(), file["variances"].tolist(), strict=True))
        for key in file.files:
            size, slash, name = key.partition("/")
            if slash:
                height, width = map(int, size.split("x"))
                outputs[height, width][name] = file[key]
    return variances, outputs
