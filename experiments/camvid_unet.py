"""U-Net on CamVid from scratch: eleven classes of road scenes.

    python -m experiments.camvid_unet --manual-dir PATH/TO/camvid                   # 360x480, a GPU
    python -m experiments.camvid_unet --manual-dir PATH/TO/camvid --preset small    # CPU

367/101/233 images of 360x480 in the eleven-class version of arXiv:1511.00561 (SegNet). No number is
published for a U-Net under this protocol (from scratch, single scale, checkpoint picked on val);
for scale, networks trained from scratch on the same 367 images reach mIoU 55.2 (Classic Upsampling)
to 66.9 (FC-DenseNet103) in arXiv:1611.09326, Table 3. Always answering "road" gives 2.4. Ours, and
how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.study import Study, main

FULL = Experiment(
    name="camvid_unet",
    model="unet",
    model_args={"norm": "batch"},
    dataset="camvid",
    batch_size=8,
    steps=16000,
    loss=Loss(cross_entropy=1.0, class_weights="median_frequency"),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=200
    ),
    augment=Augment(
        flip_horizontal=True,
        scale=(0.75, 1.5),
        fill="void",
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
    ),
    dtype="bfloat16",
    eval_every=500,
    checkpoint_every=500,
)


def small(full: Experiment) -> Experiment:
    """A third of the resolution, a quarter of the width, for two CPU cores."""
    return dataclasses.replace(
        full,
        model_args={**full.model_args, "width": 16, "dropout": 0.0},
        image_size=(120, 160),
        steps=400,
        optimizer=dataclasses.replace(full.optimizer, learning_rate=5e-3, warmup_steps=50),
        dtype="float32",
        eval_every=100,
        checkpoint_every=100,
    )


STUDY = Study(__doc__, rows={"unet": FULL}, presets={"small": small})

if __name__ == "__main__":
    sys.exit(main(STUDY))
