"""Mask R-CNN (He et al. 2017, arXiv:1703.06870) with a feature pyramid, Figures 1 and 4 (right).

A ResNet, a pyramid over it (`fpn.py`), proposals from all its levels (`rpn.py`), and two heads on
the proposals' features (`roi_heads.py`): classes and boxes, then masks in the boxes found; what it
learns from is drawn by `rcnn_targets.py`. Arrays have a fixed number of places for what may be
there, and tell what is, so that all of it compiles.

Choices the paper leaves, as in torchvision's `maskrcnn_resnet50_fpn`, whose weights fit: batch norm
is frozen (`norm`), its scale and bias then being no parameters (the first weights of COCO want
`norm_epsilon=0`); RoIAlign takes 2 x 2 points a bin and puts feature 0 on pixel 0; up to 2000
proposals in training, 1000 else; 512 regions of an image are learned from, a quarter of them
positive; the true boxes are proposals too; the five losses are means, added up. Ours: the masks to
learn have their pixels' values at their centres, as detections are pasted; anchors on padding are
not learned from, an object that no anchor touches makes no anchor positive, and `crowd` boxes are
left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segzoo.backbones.resnet import ResNet
from segzoo.checks import check_common, check_image
from segzoo.errors import SegzooError, check_positive_int
from segzoo.layers import NormKind, example_keys
from segzoo.models.fpn import FPN
from segzoo.models.rcnn_targets import anchors_to_learn, check_targets, regions_to_learn
from segzoo.models.roi_heads import BoxHead, MaskHead, detect, of_class
from segzoo.models.rpn import RPNHead, propose, pyramid_anchors
from segzoo.ops.roi_align import assign_levels, roi_align
from segzoo.registry import register, with_fixed

Array = jax.Array
Answers = dict[str, Any]

STRIDES = (4, 8, 16, 32)  # of P2 to P5, which regions are pooled from
BOX_SIZE, MASK_SIZE = 7, 14  # bins along a side of what the heads see


class MaskRCNN(nn.Module):
    """Mask R-CNN on a feature pyramid.

    Attributes:
        num_classes: K, class 0 being the background.
        dtype: of the computation; parameters, boxes, scores and masks are float32.
        axis_name: the mapped axis of batch norm and of the sampling.
        backbone: gives five maps; the last four, of strides 4 to 32, carry the pyramid.
        width: channels of the backbone's first convolution; the pyramid and the mask head have 4
            times as many, the box head 16 times.
        class_agnostic: one mask for all classes (section 4.2).
        anchor_sizes: of the anchors on P2 to P6, in pixels.
        aspect_ratios: of the anchors, heights per width.
        proposals: at inference, the best of each level that are looked at, and how many of all
            levels are kept.
        training_proposals: likewise where the model is given targets.
        proposal_threshold: the largest IoU of two proposals of a level.
        anchors_learned: sampled from each image, half of them positive where there are so many.
        regions_learned: likewise, a quarter of them positive.
        score_threshold: detections score more.
        box_threshold: the largest IoU of two detections of a class.
        detections: per image, at most.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: ResNet
    width: int = 64
    class_agnostic: bool = False
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals: tuple[int, int] = (1000, 1000)
    training_proposals: tuple[int, int] = (2000, 2000)
    proposal_threshold: float = 0.7
    anchors_learned: int = 256
    regions_learned: int = 512
    score_threshold: float = 0.05
    box_threshold: float = 0.5
    detections: int = 100

    @nn.compact
    def __call__(
        self,
        image: Array,
        *,
        sizes: Array | None = None,
        targets: Mapping[str, Array] | None = None,
        train: bool = False,
    ) -> Answers:
        """Detects objects; or, given targets, answers what the losses ask.

        Args:
            image: `[B, H, W, C]`, normalised, of any size, padded at its ends.
            sizes: heights and widths before padding, int `[B, 2]`; by default all of the image.
            targets: the objects, with M places for those of an image: `boxes` float `[B, M, 4]`,
                `classes` int `[B, M]` (1 to K - 1), `masks` either bitmaps `[B, M, H, W]` or one
                int map `[B, H, W]` with the value m + 1 where object m is, `valid` bool `[B, M]`,
                which there are, and optionally `crowd` bool `[B, M]`, boxes around objects not told
                apart, which teach nothing.
            train: whether batch norm, where it is not frozen, uses and updates batch statistics.

        Returns:
            Without targets the detections, N = `detections` places for those of an image, best
            first: `boxes` float32 `[B, N, 4]`, `scores` float32 `[B, N]`, `classes` int32 `[B, N]`,
            `masks` float32 `[B, N, m, m]`, probabilities inside the boxes, and `valid` bool
            `[B, N]`; what is not valid is 0. With targets what `segzoo.instance_losses.terms`
            takes; the "dropout" rng draws what is learned from, always the same one without it.

        Raises:
            SegzooError: for an image of another rank, or targets that do not fit it.
        """
        check_image(image, 2)
        batch, *size, _ = image.shape
        sizes = jnp.full((batch, 2), jnp.asarray(size)) if sizes is None else jnp.asarray(sizes)
        image = _pad(image, STRIDES[-1])

        _, *maps = self.backbone(image, train=train)
        pyramid = FPN(4 * self.width, self.dtype, name="fpn")(maps)

        head = RPNHead(len(self.aspect_ratios), self.dtype, name="rpn")
        logits, offsets = zip(*map(head, pyramid), strict=True)
        anchors = pyramid_anchors(
            [level.shape[1:3] for level in pyramid],
            image.shape[1:3],
            self.anchor_sizes,
            self.aspect_ratios,
        )
        before, after = self.proposals if targets is None else self.training_proposals
        proposals, _, there = propose(
            logits,
            offsets,
            anchors,
            sizes,
            before=before,
            after=after,
            threshold=self.proposal_threshold,
        )
        if targets is None:
            return self._detections(pyramid, proposals, there, sizes)
        check_targets(targets, (batch, *size))
        return {
            **self._anchors(logits, offsets, anchors, targets, sizes),
            **self._regions(pyramid, proposals, there, targets),
        }

    def _detections(
        self, pyramid: Sequence[Array], proposals: Array, there: Array, sizes: Array
    ) -> Answers:
        """The best boxes of the box head, and the mask head's masks in them."""

        def of_image(*arguments: Array) -> tuple[Array, Array, Array, Array]:
            return detect(
                *arguments,
                score_threshold=self.score_threshold,
                threshold=self.box_threshold,
                limit=self.detections,
            )

        logits, offsets = self._box_head(pyramid, proposals)
        boxes, scores, classes, valid = jax.vmap(of_image)(logits, offsets, proposals, there, sizes)
        masks = nn.sigmoid(self._mask_head(pyramid, boxes, classes))
        masks = jnp.where(valid[..., None, None], masks, 0.0)
        return {
            "boxes": boxes,
            "scores": scores,
            "classes": classes,
            "masks": masks,
            "valid": valid,
        }

    def _anchors(
        self,
        logits: Sequence[Array],
        offsets: Sequence[Array],
        anchors: Sequence[np.ndarray],
        targets: Mapping[str, Array],
        sizes: Array,
    ) -> Answers:
        """What the proposal network says of the anchors it learns from, and should say."""
        anchor = jnp.asarray(np.concatenate(anchors))

        def of_image(
            key: Array, logits: Array, offsets: Array, targets: Mapping[str, Array], size: Array
        ) -> Answers:
            place, wanted = anchors_to_learn(key, anchor, targets, size, self.anchors_learned)
            return {"logits": logits[place], "offsets": offsets[place], **wanted}

        of_images = jax.vmap(of_image)(
            self._keys(len(sizes), 0),
            jnp.concatenate(logits, axis=1),
            jnp.concatenate(offsets, axis=1),
            dict(targets),
            sizes,
        )
        return {"anchors": of_images}

    def _regions(
        self,
        pyramid: Sequence[Array],
        proposals: Array,
        there: Array,
        targets: Mapping[str, Array],
    ) -> Answers:
        """What the heads say of the regions they learn from, and should say."""
        of_image = functools.partial(
            regions_to_learn, count=self.regions_learned, cells=2 * MASK_SIZE
        )
        found = jax.vmap(of_image)(self._keys(len(proposals), 1), proposals, there, dict(targets))
        regions, labels = found["region"], found["label"]
        logits, offsets = self._box_head(pyramid, regions)
        offsets = jnp.take_along_axis(offsets, labels[..., None, None], axis=2)[:, :, 0]
        positives = found["cells"].shape[1]
        masks = self._mask_head(pyramid, regions[:, :positives], labels[:, :positives])
        return {
            "regions": {
                "logits": logits,
                "offsets": offsets,
                "target": found["target"],
                "label": labels,
                "valid": found["valid"],
            },
            "masks": {
                "logits": masks,
                "target": found["cells"],
                "valid": labels[:, :positives] > 0,
            },
        }

    def _box_head(self, pyramid: Sequence[Array], regions: Array) -> tuple[Array, Array]:
        """`[B, N, 4]` regions -> logits `[B, N, K]` and offsets `[B, N, K, 4]`."""
        x = _pool(pyramid, regions, BOX_SIZE)
        head = BoxHead(self.num_classes, 16 * self.width, self.dtype, name="box_head")
        logits, offsets = head(x.reshape(-1, *x.shape[2:]))
        return logits.reshape(*x.shape[:2], -1), offsets.reshape(*x.shape[:2], -1, 4)

    def _mask_head(self, pyramid: Sequence[Array], regions: Array, classes: Array) -> Array:
        """`[B, N, 4]` regions and their classes -> the logits of their masks `[B, N, m, m]`."""
        x = _pool(pyramid, regions, MASK_SIZE)
        masks = 1 if self.class_agnostic else self.num_classes
        head = MaskHead(masks, 4 * self.width, self.dtype, name="mask_head")
        logits = of_class(head(x.reshape(-1, *x.shape[2:])), classes.reshape(-1))
        return logits.reshape(*classes.shape, *logits.shape[1:])

    def _keys(self, images: int, use: int) -> Array:
        key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)
        return example_keys(jax.random.fold_in(key, use), images, self.axis_name)


def _pad(image: Array, multiple: int) -> Array:
    """Adds zeros, the mean colour, at the ends of the image, up to the next multiples."""
    rows, columns = (-n % multiple for n in image.shape[1:3])
    return jnp.pad(image, ((0, 0), (0, rows), (0, columns), (0, 0)))


def _pool(pyramid: Sequence[Array], regions: Array, size: int) -> Array:
    level = assign_levels(regions) - 2
    return roi_align(pyramid[: len(STRIDES)], regions, STRIDES, size, level=level)


def _mask_rcnn(
    depth: int = 50,
    num_classes: int = 91,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = 64,
    norm: NormKind = "frozen",
    norm_epsilon: float = 1e-5,
    class_agnostic: bool = False,
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    proposals: tuple[int, int] = (1000, 1000),
    training_proposals: tuple[int, int] = (2000, 2000),
    proposal_threshold: float = 0.7,
    anchors_learned: int = 256,
    regions_learned: int = 512,
    score_threshold: float = 0.05,
    box_threshold: float = 0.5,
    detections: int = 100,
) -> MaskRCNN:
    check_common(num_classes=num_classes, dtype=dtype, norm=norm)
    if num_classes < 2:
        raise SegzooError(
            "num_classes is 1; expected at least 2: the background and a class of objects."
        )
    for what, value, minimum in (
        ("width", width, 1),
        ("anchors_learned", anchors_learned, 2),
        ("regions_learned", regions_learned, 4),
        ("detections", detections, 1),
    ):
        check_positive_int(what, value, minimum)
    for what, numbers in (("proposals", proposals), ("training_proposals", training_proposals)):
        _check_numbers(what, numbers, 2)
        for number in numbers:
            check_positive_int(f"a number of {what}", number)
    _check_numbers("anchor_sizes", anchor_sizes, 5)
    _check_numbers("aspect_ratios", aspect_ratios, None)
    for what, share in (
        ("norm_epsilon", norm_epsilon),
        ("proposal_threshold", proposal_threshold),
        ("score_threshold", score_threshold),
        ("box_threshold", box_threshold),
    ):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise SegzooError(f"{what} is {share!r}; expected a number from 0 to 1.")
    return MaskRCNN(
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        backbone=ResNet(depth, width, norm, dtype=dtype, axis_name=axis_name, epsilon=norm_epsilon),
        width=width,
        class_agnostic=class_agnostic,
        anchor_sizes=tuple(anchor_sizes),
        aspect_ratios=tuple(aspect_ratios),
        proposals=(proposals[0], proposals[1]),
        training_proposals=(training_proposals[0], training_proposals[1]),
        proposal_threshold=proposal_threshold,
        anchors_learned=anchors_learned,
        regions_learned=regions_learned,
        score_threshold=score_threshold,
        box_threshold=box_threshold,
        detections=detections,
    )


def _check_numbers(what: str, values: Any, length: int | None) -> None:
    """Raises `SegzooError` unless `values` is a sequence of `length` numbers above 0."""
    listed = isinstance(values, tuple | list) and len(values) == (length or max(1, len(values)))
    if not listed or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values
    ):
        many = "at least one number" if length is None else f"{length} numbers"
        raise SegzooError(f"{what} is {values!r}; expected {many} above 0.")


def _of_depth(depth: int, parameters: int) -> Callable[..., MaskRCNN]:
    summary = f"Mask R-CNN with a feature pyramid on ResNet-{depth}."
    builder = with_fixed(f"mask_rcnn_resnet{depth}_fpn", _mask_rcnn, summary, depth=depth)
    return register(
        task="instance",
        paper="arXiv:1703.06870",
        input_shape=(480, 640, 3),
        parameters=parameters,
    )(builder)


mask_rcnn_resnet50_fpn = _of_depth(50, 44_401_393)
mask_rcnn_resnet101_fpn = _of_depth(101, 63_341_297)
