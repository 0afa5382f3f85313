"""Image -> features, finest first, and the classifiers over them; one file per paper.

Importing this package registers them all.
"""

from segzoo.backbones import (
    alexnet,
    densenet,
    efficientnet,
    googlenet,
    inception_v2,
    inception_v2_factorized,
    lenet,
    resnet,
    vgg,
    xception,
)

__all__ = [
    "alexnet",
    "densenet",
    "efficientnet",
    "googlenet",
    "inception_v2",
    "inception_v2_factorized",
    "lenet",
    "resnet",
    "vgg",
    "xception",
]
