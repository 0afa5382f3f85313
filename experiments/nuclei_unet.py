"""U-Net on the fluorescence nuclei of the 2018 Data Science Bowl: nucleus or background.

    python -m experiments.nuclei_unet --manual-dir PATH/TO/dsb2018_nuclei                  # 256x256
    python -m experiments.nuclei_unet --manual-dir PATH/TO/dsb2018_nuclei --preset small   # CPU

160/40/40 images of 256x256, binary cross-entropy and Dice on one logit. A close analogue is
published: U-Net with IoU 0.839 on DSB 2018 at 96x96 (github.com/4uiiurz1/pytorch-nested-unet), over
other images and another split. Calling everything background has pixel accuracy 92.5 and nucleus
IoU 0. Ours, and how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment, Published
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.study import Study, main

FULL = Experiment(
    name="nuclei_unet",
    model="unet",
    model_args={"norm": "batch", "num_classes": 1},
    dataset="dsb2018_nuclei",
    batch_size=16,
    steps=4000,
    loss=Loss(cross_entropy=0.0, binary_cross_entropy=1.0, dice=1.0),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=100
    ),
    augment=Augment(
        flip_horizontal=True,
        flip_vertical=True,
        rotate=180.0,
        scale=(0.75, 1.25),
        elastic_sigma=4.0,
        brightness=0.3,
        contrast=0.3,
    ),
    dtype="bfloat16",
    eval_every=200,
    checkpoint_every=200,
    published=Published(
        "iou.nucleus", 0.839, "4uiiurz1/pytorch-nested-unet", "other images and split, 96x96"
    ),
)


def small(full: Experiment) -> Experiment:
    """Crops of 128 and a quarter of the width, for two CPU cores."""
    return dataclasses.replace(
        full,
        model_args={**full.model_args, "width": 16, "dropout": 0.0},
        augment=dataclasses.replace(full.augment, crop_size=(128, 128)),
        batch_size=8,
        steps=300,
        optimizer=dataclasses.replace(full.optimizer, learning_rate=5e-3, warmup_steps=50),
        dtype="float32",
        eval_every=100,
        checkpoint_every=100,
    )


STUDY = Study(__doc__, rows={"unet": FULL}, presets={"small": small})

if __name__ == "__main__":
    sys.exit(main(STUDY))
