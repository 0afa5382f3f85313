"""Mask R-CNN on the fluorescence nuclei of the 2018 Data Science Bowl: every nucleus by itself.

    python -m experiments.nuclei_mask_rcnn --manual-dir PATH/TO/dsb2018_nuclei
    python -m experiments.nuclei_mask_rcnn --manual-dir PATH/TO/dsb2018_nuclei --preset small

160/40/40 images of 256x256 with up to 101 nuclei, half of them smaller than 12 pixels across: the
images are enlarged to 512x512, and the anchors start at 8 pixels of those. Nothing is pretrained,
so channels are normalised in groups, where the published recipes freeze a batch norm. Training sees
whole images: a narrow network trained on crops of 160 pixels found half as many nuclei in whole
images as in such crops of them. Average precision and panoptic quality are of the images at their
own size, which is also what `small`, for two CPU cores, sees.

No number is published for these images and this split. Finding nothing scores 0. Ours, and how
long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment
from segzoo.optim import Optimizer
from segzoo.study import Study, main

FULL = Experiment(
    name="nuclei_mask_rcnn",
    model="mask_rcnn_resnet50_fpn",
    model_args={
        "norm": "group",
        "anchor_sizes": (8, 16, 32, 64, 128),
        "regions_learned": 256,
        "detections": 200,
    },
    dataset="dsb2018_nuclei_instances",
    image_size=(512, 512),
    batch_size=8,
    steps=6000,
    optimizer=Optimizer(
        name="adamw",
        learning_rate=5e-4,
        weight_decay=1e-4,
        clip_norm=10.0,
        schedule="cosine",
        warmup_steps=200,
    ),
    augment=Augment(
        flip_horizontal=True,
        flip_vertical=True,
        scale=(0.75, 1.5),
        fill="void",
        brightness=0.3,
        contrast=0.3,
    ),
    dtype="bfloat16",
    eval_every=500,
    checkpoint_every=500,
    monitor="mask_ap",
)


def small(full: Experiment) -> Experiment:
    """The images as they are, a quarter of the width and few proposals, for two CPU cores."""
    return dataclasses.replace(
        full,
        image_size=None,
        model_args={
            **full.model_args,
            "width": 16,
            "anchor_sizes": (4, 8, 16, 32, 64),
            "proposals": (200, 200),
            "training_proposals": (100, 100),
            "anchors_learned": 128,
            "regions_learned": 64,
            "detections": 128,
        },
        batch_size=4,
        steps=400,
        optimizer=dataclasses.replace(full.optimizer, learning_rate=2e-3, warmup_steps=50),
        dtype="float32",
        eval_every=200,
        checkpoint_every=100,
    )


STUDY = Study(
    __doc__,
    rows={
        "resnet50_fpn": FULL,
        "resnet101_fpn": dataclasses.replace(FULL, model="mask_rcnn_resnet101_fpn"),
    },
    presets={"small": small},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
