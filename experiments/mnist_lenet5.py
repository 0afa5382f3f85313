"""LeNet-5 on MNIST: the original, the textbooks', and the original on distorted digits.

    python -m experiments.mnist_lenet5 --manual-dir PATH/TO/mnist                  # CPU will do
    python -m experiments.mnist_lenet5 --manual-dir PATH/TO/mnist --preset quick   # two epochs

Published (LeCun, Bottou, Bengio & Haffner 1998, Proc. IEEE 86(11), section III-B): test error
0.95 % on the digits as they are, 0.8 % with distorted ones in training. There all 60,000 training
images were trained on for twenty passes; here the last 5,000 of them pick the checkpoint, and the
test set is scored once. The paper's second-order learning rates are a cosine here, its criterion is
softmax cross-entropy without the rubbish class (`segzoo/backbones/lenet.py`), and evaluation uses a
running average of the weights. Its distortions are translation, scaling, squeezing and shearing;
here they are translation by up to two pixels, scaling, rotation and a bent 3x3 grid, drawn anew in
every pass. Ours, and how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment, Published
from segzoo.optim import Optimizer
from segzoo.study import Study, main

PAPER = "LeCun et al. 1998, section III-B"
PROTOCOL = "trained on all 60,000 training images, 20 passes, no validation set"
EPOCH = 430  # steps: 55,000 images in batches of 128

ORIGINAL = Experiment(
    name="mnist_lenet5",
    model="lenet5",
    dataset="mnist",
    train_split="train[:55000]",
    val_split="train[55000:]",
    batch_size=128,
    steps=20 * EPOCH,
    optimizer=Optimizer(
        name="sgd",
        learning_rate=0.05,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        clip_norm=1.0,  # the radial basis functions' distances make for steep slopes at first
        schedule="cosine",
        warmup_steps=100,
    ),
    ema=0.998,
    monitor="error",
    log_every=EPOCH // 5,
    eval_every=EPOCH,
    checkpoint_every=EPOCH,
    published=Published("error", 0.0095, PAPER, PROTOCOL),
)
MODERN = dataclasses.replace(
    ORIGINAL, model_args={"variant": "modern", "activation": "relu"}, published=None
)
DISTORTED = dataclasses.replace(
    ORIGINAL,
    augment=Augment(crop_size=(32, 32), rotate=10.0, scale=(0.9, 1.1), elastic_sigma=0.7),
    published=Published("error", 0.008, PAPER, f"{PROTOCOL}; 540,000 distorted ones added"),
)


def quick(full: Experiment) -> Experiment:
    """Two epochs."""
    return dataclasses.replace(full, steps=2 * EPOCH, ema=0.99)


STUDY = Study(
    __doc__,
    rows={"original": ORIGINAL, "modern": MODERN, "original_distorted": DISTORTED},
    presets={"quick": quick},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
