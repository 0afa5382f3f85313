"""FCN's names in files of VGG-16: its classifier, cast into convolutions (arXiv:1411.4038, 3.1)."""

from __future__ import annotations

import dataclasses

from segzoo.models.fcn import FCN, EncoderFCN
from segzoo.weights import vgg
from segzoo.weights.names import Flattened, Layout


def layouts(model: FCN | EncoderFCN) -> tuple[Layout, ...]:
    """Returns the layouts of VGG, whose hidden layers are fc6 and fc7 here.

    The scores of the 1000 classes fall away, as in the paper.

    Args:
        model: an FCN; of one without these layers no library has more than the encoder.
    """
    if isinstance(model, EncoderFCN):
        return ()
    result = []
    for layout in vgg.layouts(model):
        modules = dict(layout.modules)
        del modules["head"]
        first, second = modules.pop("fc6"), modules.pop("fc7")
        if isinstance(second, str):
            second = Flattened(second, (model.hidden, 1, 1))
        modules |= {"fc6/conv": first, "fc7/conv": second}
        result.append(dataclasses.replace(layout, modules=modules))
    return tuple(result)
