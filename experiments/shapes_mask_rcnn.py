"""Mask R-CNN on generated shapes: every ellipse and rectangle by itself, though they overlap.

    python -m experiments.shapes_mask_rcnn                    # quick: half-size images, minutes
    python -m experiments.shapes_mask_rcnn --preset full      # 128x128

The images of `experiments.shapes`, 800/100/100, of up to five objects; what another object covers
belongs to none but that. A quarter of the published width or less, nothing pretrained. Nothing is
published; finding nothing scores 0. Ours, and how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment
from segzoo.optim import Optimizer
from segzoo.study import Study, main

FULL = Experiment(
    name="shapes_mask_rcnn",
    model="mask_rcnn_resnet50_fpn",
    model_args={
        "width": 16,
        "norm": "batch",
        "anchor_sizes": (8, 16, 32, 64, 128),
        "proposals": (100, 50),
        "training_proposals": (100, 50),
        "anchors_learned": 64,
        "regions_learned": 32,
        "detections": 16,
    },
    dataset="shapes_instances",
    batch_size=8,
    steps=2000,
    optimizer=Optimizer(
        name="adamw",
        learning_rate=2e-3,
        weight_decay=1e-4,
        clip_norm=10.0,
        schedule="cosine",
        warmup_steps=100,
    ),
    augment=Augment(flip_horizontal=True, flip_vertical=True),
    eval_every=500,
    checkpoint_every=500,
    monitor="mask_ap",
)


def quick(full: Experiment) -> Experiment:
    """Half-size images, half the width, half as long."""
    return dataclasses.replace(
        full,
        image_size=(64, 64),
        model_args={**full.model_args, "width": 8},
        steps=1000,
    )


STUDY = Study(__doc__, rows={"resnet50_fpn": FULL}, presets={"quick": quick}, first="quick")

if __name__ == "__main__":
    sys.exit(main(STUDY))
