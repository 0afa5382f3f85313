"""FCN-32s, 16s and 8s on CamVid from scratch, each started from the one before it.

    python -m experiments.camvid_fcn8s --manual-dir PATH/TO/camvid                  # 360x480, a GPU
    python -m experiments.camvid_fcn8s --manual-dir PATH/TO/camvid --preset small   # CPU

Long et al. (arXiv:1411.4038) train the finer nets in stages: FCN-16s starts from FCN-32s and FCN-8s
from FCN-16s, the new score layers from zero, at a lower learning rate. So do these rows when they
run together, in order. FCN-8s on CamVid is published with mIoU 57.0, pixel accuracy 88.0
(arXiv:1611.09326, Table 3), from a VGG-16 pretrained on ImageNet, which these rows do without: they
use Adam and He initialisation instead. Ours, and how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment, Published
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.study import Study, main

FULL = Experiment(
    name="camvid_fcn8s",
    model="fcn32s",
    dataset="camvid",
    batch_size=8,
    steps=12000,
    loss=Loss(cross_entropy=1.0),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-4, weight_decay=5e-4, schedule="poly", warmup_steps=500
    ),
    augment=Augment(flip_horizontal=True, scale=(0.75, 1.5), fill="void"),
    dtype="bfloat16",
    eval_every=500,
    checkpoint_every=500,
)
FINER = dataclasses.replace(
    FULL, steps=4000, optimizer=dataclasses.replace(FULL.optimizer, learning_rate=2e-5)
)
PUBLISHED = Published(
    "miou", 0.570, "arXiv:1611.09326 Table 3", "VGG-16 pretrained on ImageNet; 360x480"
)
ROWS = {
    "fcn32s": FULL,
    "fcn16s": dataclasses.replace(FINER, model="fcn16s", init_row="fcn32s"),
    "fcn8s": dataclasses.replace(FINER, model="fcn8s", init_row="fcn16s", published=PUBLISHED),
}


def small(full: Experiment) -> Experiment:
    """A third of the resolution and an eighth of the width, for two CPU cores."""
    rate = 1e-3 if full.init_row is None else 3e-4
    return dataclasses.replace(
        full,
        model_args={**full.model_args, "width": 8},
        image_size=(120, 160),
        steps=400 if full.init_row is None else 200,
        optimizer=dataclasses.replace(full.optimizer, learning_rate=rate, warmup_steps=50),
        dtype="float32",
        eval_every=100,
        checkpoint_every=100,
    )


STUDY = Study(__doc__, rows=ROWS, presets={"small": small})

if __name__ == "__main__":
    sys.exit(main(STUDY))
