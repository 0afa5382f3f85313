"""Starting a model from weights from elsewhere: a whole model's, or an encoder's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segzoo.errors import SegzooError
from segzoo.weights.fit import fit, flatten, unflatten
from segzoo.weights.source import Source, read

if TYPE_CHECKING:
    import flax.linen as nn


def start_from(
    source: Source | Path | str,
    variables: Mapping[str, Any],
    model: nn.Module,
    image_shape: Sequence[int],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Puts weights from elsewhere into a freshly initialised model.

    Those of the same network are taken whole; those of another one with the same encoder give
    `params["backbone"]` and its batch statistics. Heads for another number of classes keep their
    initialisation, the first convolution is adapted to another number of input channels.

    Args:
        source: all that `segzoo.load` reads, or what `segzoo.weights.source.read` returned.
        variables: the model's, as initialised.
        model: the model.
        image_shape: `(*S, C)` of its images.

    Returns:
        `variables` with what was taken, in the same tree and dtypes; and sentences on what was
        taken and what was not.

    Raises:
        SegzooError: when the source cannot be read, or tensors of the encoder (of the whole
            network) are missing, unexpected, of another shape or not finite: all are listed.
    """
    if not isinstance(source, Source):
        source = read(source)
    native = source.info is not None
    fitted = fit(source.tensors, model, image_shape, source.where, native=native)
    fresh = flatten(variables)
    strangers = [path for path in fitted.values if path not in fresh]
    if strangers:
        raise SegzooError(f"the variables given lack {', '.join(strangers[:3])}.")
    taken = {path: np.asarray(v, fresh[path].dtype) for path, v in fitted.values.items()}
    first = f"took {len(taken)} of {len(fresh)} tensors from {source.where}."
    return unflatten({**fresh, **taken}), (*source.notes, first, *fitted.notes)
