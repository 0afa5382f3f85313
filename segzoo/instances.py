"""The objects of an image on the host: what is there, what was found, and one map of them.

Boxes are `[y0, x0, y1, x1]` in pixels with continuous corners, as everywhere in the house.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from segzoo.data.spec import Example
from segzoo.ops.masks import boxes_of_masks, paste_masks

CONFIDENT = 0.5  # what a detection must score to stand in a map
LEFT = 0.5  # of its pixels, what those before it must leave it for it to stand there
_CANVAS = 128  # masks are pasted on canvases of multiples of this: few programs to compile


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of an image, of the truth or found.

    Attributes:
        classes: int32 `[N]`, 1 and up.
        masks: bool `[N, H, W]`, which may overlap.
        boxes: float32 `[N, 4]`.
        scores: float32 `[N]`, how sure a model is of each; 1 for the truth.
        crowd: bool `[N]`: several objects that are not told apart.
    """

    classes: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    def only(self, chosen: np.ndarray) -> Objects:
        """Returns those that an index array or a mask `[N]` chooses."""
        return Objects(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def truth(example: Example) -> Objects:
    """Returns the objects of an instance example, see "Example" in docs/architecture.md."""
    classes = np.asarray(example["classes"], np.int32)
    if "masks" in example:
        masks = example["masks"].astype(bool)
    else:
        masks = example["instances"] == np.arange(1, len(classes) + 1)[:, None, None]
    return Objects(
        classes=classes,
        masks=masks,
        boxes=boxes_of_masks(masks),
        scores=np.ones(len(classes), np.float32),
        crowd=np.asarray(example.get("crowd", np.zeros(len(classes))), bool),
    )


def found(
    answers: Mapping[str, np.ndarray], scale: Sequence[float], size: Sequence[int]
) -> Objects:
    """Returns the detections of one image at its original size.

    Args:
        answers: an instance model's, of one image: `boxes` `[N, 4]`, `scores`, `classes`, `masks`
            `[N, m, m]` and `valid`.
        scale: pixels of the original per pixel the model saw, down and across.
        size: height and width of the original; boxes are clipped to it.
    """
    height, width = size
    boxes = np.asarray(answers["boxes"], np.float32) * np.tile(np.asarray(scale, np.float32), 2)
    canvas = [-(-side // _CANVAS) * _CANVAS for side in size]
    pasted = paste_masks(jnp.asarray(answers["masks"]), jnp.asarray(boxes), canvas)
    masks = np.asarray(pasted)[:, :height, :width]
    valid = np.asarray(answers["valid"], bool)
    return Objects(
        classes=np.asarray(answers["classes"], np.int32)[valid],
        masks=masks[valid],
        boxes=np.clip(boxes, 0, np.tile(np.asarray(size, np.float32), 2))[valid],
        scores=np.asarray(answers["scores"], np.float32)[valid],
        crowd=np.zeros(np.count_nonzero(valid), bool),
    )


def lay_out(objects: Objects, *, confident: float = CONFIDENT, left: float = LEFT) -> np.ndarray:
    """Lays detections into one map in which no two overlap, the surest first.

    Each takes the pixels that are still free, or none where less than `left` of its own are
    (Kirillov et al. 2019, arXiv:1801.00868, section 7: "Thing" segments from detections).

    Args:
        objects: detections.
        confident: what a detection must score.
        left: the share of its pixels that must be free.

    Returns:
        int32 `[H, W]` with n + 1 where detection n lies, 0 elsewhere.
    """
    ids = np.zeros(objects.masks.shape[1:], np.int32)
    for n in np.argsort(-objects.scores, kind="stable"):
        free = objects.masks[n] & (ids == 0)
        pixels = np.count_nonzero(objects.masks[n])
        if objects.scores[n] >= confident and np.count_nonzero(free) > left * pixels:
            ids[free] = n + 1
    return ids
