"""Pictures of any size -> the objects in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image

from segzoo import instances
from segzoo.assembly import normalise
from segzoo.data.transforms import resize
from segzoo.errors import SegzooError
from segzoo.instances import Objects
from segzoo.pictures import open_picture
from segzoo.predict import trained_size
from segzoo.tiles import bucket

if TYPE_CHECKING:
    import flax.linen as nn

    from segzoo.weights import ModelInfo


class ObjectPredictor:
    """Finds the objects in pictures of any size; what `segzoo.Predictor` is for instance models.

    Pictures are brought to the scale the model was trained at, whole, and what is found back to
    their own. One program is compiled per size of input, of which there are few (`tiles.bucket`).

    Args:
        model: a module of task "instance".
        variables: its `params` and, where it has any, `batch_stats`.
        info: says how pictures are normalised and what the classes are.
        **others: what `Predictor` takes for semantic models.

    Raises:
        SegzooError: for a tile, an overlap or a CRF.
    """

    def __init__(
        self, model: nn.Module, variables: Mapping[str, Any], info: ModelInfo, **others: Any
    ):
        for name, value in others.items():
            if value is not None:
                raise SegzooError(
                    f"{name} is given, but model {info.model!r} finds objects, in whole pictures; "
                    f"{name} is for semantic models."
                )
        self.model, self.info = model, info
        self._variables = jax.device_put(dict(variables))

        def detect(variables: Any, image: jax.Array, sizes: jax.Array) -> Any:
            return model.apply(variables, normalise(image, info, sizes), sizes=sizes)

        self._detect = jax.jit(detect)

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> Objects:
        """Finds the objects of one picture.

        Args:
            image: a file, a PIL image, or uint8 `[H, W]` or `[H, W, C]`; see `segzoo.pictures`.

        Returns:
            The detections at the size of the picture, best first. `segzoo.instances.lay_out` makes
            one map of them.

        Raises:
            SegzooError: for a file that cannot be read or a picture that does not fit the model.
        """
        picture = open_picture(image, self.info.in_channels)
        size = picture.shape[:-1]
        seen = trained_size(size, self.info)
        fitted = picture if seen == size else resize(picture, seen)
        canvas = seen if seen == self.info.image_size else bucket(seen)
        padded = np.zeros((1, *canvas, picture.shape[-1]), np.uint8)
        padded[0, : seen[0], : seen[1]] = fitted
        answers = self._detect(self._variables, padded, np.asarray([seen], np.int32))
        scale = [whole / part for whole, part in zip(size, seen, strict=True)]
        return instances.found({name: array[0] for name, array in answers.items()}, scale, size)
