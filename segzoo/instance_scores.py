"""The scores of an instance model over a split: COCO's average precision, and panoptic quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from segzoo import coco_metrics, instances, panoptic
from segzoo.data.spec import Source

Size = tuple[int, ...]
DEFINITION = f"{coco_metrics.DEFINITION}; {panoptic.DEFINITION}; fractions, not percent"


class InstanceTally:
    """Truth and detections of a split, at the size the images have in `source`.

    Panoptic quality is scored where no objects of the truth can overlap, which is where the dataset
    gives them as one map.

    Args:
        source: the examples, as they are scored.
        seen: from the size of such an image to the size at which the model sees it.
        num_classes: K, the background included.
    """

    def __init__(self, source: Source, seen: Callable[[Size], Size], num_classes: int) -> None:
        self._source, self._seen = source, seen
        self._coco = coco_metrics.Collection()
        self._panoptic: np.ndarray | None = np.zeros((num_classes, 4))

    def add(self, answers: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: what the model answers, and `index`, the images' places in the source.

        Places past its end are what the last batch was filled up with, and left out.
        """
        index = answers["index"]
        for place in np.flatnonzero(index < len(self._source)).tolist():
            of_image = {name: answers[name][place] for name in answers if name != "index"}
            self._add(int(index[place]), of_image)

    def _add(self, index: int, answers: Mapping[str, np.ndarray]) -> None:
        example = self._source[index]
        size = example["image"].shape[:-1]
        scale = np.divide(size, self._seen(size)).tolist()
        truth, found = instances.truth(example), instances.found(answers, scale, size)
        self._coco.limit = max(self._coco.limit, len(answers["scores"]))
        self._coco.add(truth, found)
        if "instances" not in example:
            self._panoptic = None
        elif self._panoptic is not None:
            self._panoptic += panoptic.counts(
                example["instances"],
                truth.classes,
                truth.crowd,
                instances.lay_out(found),
                found.classes,
                len(self._panoptic),
            )

    def scores(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns average precision and panoptic quality by name, with their definition."""
        return {
            "definition": DEFINITION,
            "images": self._coco.images,
            **self._coco.scores(class_names),
            **panoptic.scores(self._panoptic),
        }
