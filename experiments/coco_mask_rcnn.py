"""Mask R-CNN with a feature pyramid on COCO 2017, by the published recipes.

    python -m experiments.coco_mask_rcnn --manual-dir PATH/TO/coco --only resnet50_fpn_1x

118,287 images to train on; the 5,000 of val are scored once, after the last step, so no checkpoint
is chosen by them. Each row takes days of several GPUs, and none has been run.

- `resnet50_fpn_1x`, `resnet101_fpn_3x`: 16 images a step, the shorter side 800 and the longer at
  most 1333, mirrored half of the time; SGD of rate 0.02 that falls tenfold twice, over 90,000 steps
  (12 epochs) or 270,000; from a ResNet of ImageNet whose batch norm is frozen and whose first two
  stages are fixed. Published in Detectron2's model zoo: box AP 38.6 and mask AP 35.2, and 42.9 and
  38.6, the latter with the shorter side drawn from 640 to 800. The paper's own networks on these
  images have mask AP 33.6 and 35.4 (arXiv:1703.06870, Table 2).
- `resnet50_fpn_scratch`: from random weights, batch norm trained, 64 images a step, zoomed by 0.1
  to 2 and cut to 1024x1024, 100 epochs. Published by Detectron2: box AP 44.6 and mask AP 40.3, with
  more convolutions and batch norm in the pyramid and the heads, which the paper's network has not.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment, Published
from segzoo.optim import Optimizer
from segzoo.study import Study, main
from segzoo.transfer import Transfer

ZOO = "Detectron2's model zoo"

ONE = Experiment(
    name="coco_mask_rcnn",
    model="mask_rcnn_resnet50_fpn",
    dataset="coco",
    test_split="val",
    image_size=(800, 1333),
    image_fit="sides",
    batch_size=16,
    steps=90_000,
    optimizer=Optimizer(
        name="sgd",
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=1e-4,
        warmup_steps=1000,
        schedule="step",
        milestones=(60_000, 80_000),
    ),
    augment=Augment(flip_horizontal=True),
    init_from="resnet50.tv_in1k",
    transfer=Transfer("fine_tune", from_stage=2),
    dtype="bfloat16",
    eval_every=90_000,
    checkpoint_every=2500,
    monitor="mask_ap",
    loader_threads=16,
    published=Published("mask_ap", 0.352, ZOO, others={"box_ap": 0.386}),
)

THREE = dataclasses.replace(
    ONE,
    model="mask_rcnn_resnet101_fpn",
    steps=270_000,
    optimizer=dataclasses.replace(ONE.optimizer, milestones=(210_000, 250_000)),
    init_from="resnet101.tv_in1k",
    eval_every=270_000,
    published=Published(
        "mask_ap", 0.386, ZOO, "shorter side drawn from 640 to 800", {"box_ap": 0.429}
    ),
)

SCRATCH = dataclasses.replace(
    ONE,
    model_args={"norm": "batch"},
    image_size=(1024, 1024),
    image_fit="pad",
    batch_size=64,
    steps=184_375,
    optimizer=dataclasses.replace(
        ONE.optimizer,
        learning_rate=0.1,
        weight_decay=4e-5,
        warmup_steps=500,
        milestones=(163_889, 177_546),
    ),
    augment=Augment(flip_horizontal=True, scale=(0.1, 2.0), crop_size=(1024, 1024), fill="void"),
    init_from=None,
    transfer=Transfer(),
    eval_every=184_375,
    published=Published(
        "mask_ap", 0.403, ZOO, "more convolutions and batch norm in the heads", {"box_ap": 0.446}
    ),
)

STUDY = Study(
    __doc__,
    rows={
        "resnet50_fpn_1x": ONE,
        "resnet101_fpn_3x": THREE,
        "resnet50_fpn_scratch": SCRATCH,
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
