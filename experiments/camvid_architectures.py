"""Six architectures on CamVid from scratch under one modern protocol, to be compared line by line.

    python -m experiments.camvid_architectures --manual-dir PATH/TO/camvid                  # a GPU
    python -m experiments.camvid_architectures --manual-dir PATH/TO/camvid --preset small   # CPU

The protocol of every row: 360x480, the eleven classes and 367/101/233 images of arXiv:1511.00561
(SegNet); random initialisation, batch norm in every network; 20,000 steps of batch 8 (436 epochs);
AdamW, learning rate 1e-3 after a warm-up of 500 steps, cosine decay to zero, weight decay 1e-4;
cross-entropy of all pixels alike; mirrored, zoomed by 0.5 to 2, cropped to 360x480 (void outside),
brightness, contrast and saturation by 0.3. Nothing is tuned for a row. The checkpoint is picked by
mIoU on val; test is scored once, single scale, and once more with the probabilities averaged over
an image and its mirror image. No paper has these numbers: for scale, arXiv:1611.09326, Table 3,
reaches mIoU 55.2 (Classic Upsampling) to 66.9 (FC-DenseNet103) from scratch on the same images,
and always answering "road" gives 2.4. Ours, and how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment, ModelValue
from segzoo.optim import Optimizer
from segzoo.study import Study, main

UNET = Experiment(
    name="camvid_architectures",
    model="unet",
    model_args={"norm": "batch"},
    dataset="camvid",
    batch_size=8,
    steps=20000,
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=500
    ),
    augment=Augment(
        flip_horizontal=True,
        scale=(0.5, 2.0),
        fill="void",
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
    ),
    dtype="bfloat16",
    eval_every=500,
    checkpoint_every=500,
    flip_test=True,
)


def _of(model: str, **model_args: ModelValue) -> Experiment:
    return dataclasses.replace(UNET, model=model, model_args=model_args)


ROWS = {
    "unet": UNET,
    "attention_unet": _of("attention_unet"),
    "fcn8s": _of("fcn8s", norm="batch"),
    "segnet": _of("segnet"),
    "deeplabv3": _of("deeplabv3", backbone="resnet50"),
    "deeplabv3plus": _of("deeplabv3plus", backbone="resnet50"),
}
# Narrow networks of a few million parameters at most, by the channels of their first convolution.
SMALL: dict[str, dict[str, ModelValue]] = {
    "unet": {"width": 16},
    "attention_unet": {"width": 16},
    "fcn8s": {"width": 16},
    "segnet": {"width": 16},
    "deeplabv3": {"backbone": "resnet18", "width": 32},
    "deeplabv3plus": {"backbone": "resnet18", "width": 32},
}


def small(full: Experiment) -> Experiment:
    """Two epochs at a third of the resolution with narrow networks, for two CPU cores."""
    return dataclasses.replace(
        full,
        model_args={**full.model_args, **SMALL[full.row]},
        image_size=(120, 160),
        steps=92,
        optimizer=dataclasses.replace(full.optimizer, learning_rate=3e-3, warmup_steps=10),
        augment=Augment(flip_horizontal=True),
        dtype="float32",
        eval_every=46,
        checkpoint_every=46,
    )


STUDY = Study(__doc__, rows=ROWS, presets={"small": small})

if __name__ == "__main__":
    sys.exit(main(STUDY))
