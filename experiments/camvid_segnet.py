"""SegNet-Basic and its seven decoder variants on CamVid: SegNet's Table 1.

    python -m experiments.camvid_segnet --manual-dir PATH/TO/camvid                 # 360x480, a GPU
    python -m experiments.camvid_segnet --manual-dir PATH/TO/camvid --preset small  # CPU
    python -m experiments.camvid_segnet --manual-dir PATH/TO/camvid --only segnet_basic fcn_basic

arXiv:1511.00561, section 3.2 and Table 1: each variant is trained from scratch on the 367 images at
360x480, once with the classes weighted by median frequency (the rows of the models' names) and once
by their natural frequency (`_natural`): He initialisation, SGD with learning rate 0.1 and momentum
0.9, batches of 12, local contrast normalisation, no augmentation. Every 1000 steps the network is
scored on the validation images; the one of the highest global accuracy is scored on the 233 test
images, by global accuracy (here pixel accuracy), class average accuracy, mIoU and boundary F1.

Where the paper stops ("until the training loss converges") and how much the weights decay are from
the authors' released solver: 10,000 steps, 0.0005. Pixels without a label count nowhere. Boundary
pixels match where their distance is within the tolerance; the authors pair them one to one.

Always answering "road" gives a pixel accuracy of 26.8 and mIoU 2.4. Ours, and how long it took:
docs/results.md.
"""

import dataclasses
import sys

from segzoo.experiment import Experiment, Published
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.study import Study, main

MEDIAN = Loss(cross_entropy=1.0, class_weights="median_frequency")
NATURAL = Loss(cross_entropy=1.0)
FULL = Experiment(
    name="camvid_segnet",
    model="segnet_basic",
    model_args={"input_norm": "contrast"},
    dataset="camvid",
    batch_size=12,
    steps=10000,
    optimizer=Optimizer(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
    eval_every=1000,
    checkpoint_every=1000,
    monitor="pixel_accuracy",
    boundary_f1=True,
)

# Global accuracy, class average accuracy, mIoU and boundary F1 on the test images, in percent:
# with median frequency balancing, and with natural frequencies.
TABLE = {
    "bilinear_basic": ((77.9, 61.1, 43.3, 20.83), (82.7, 52.5, 43.8, 23.08)),
    "segnet_basic": ((82.7, 62.0, 47.7, 35.78), (84.0, 54.6, 46.3, 36.67)),
    "segnet_basic_encoder_addition": ((83.4, 63.6, 48.5, 35.92), (84.2, 56.5, 47.7, 36.27)),
    "segnet_basic_single_channel_decoder": ((81.2, 60.7, 46.1, 31.62), (83.5, 53.9, 45.2, 32.45)),
    "fcn_basic": ((81.7, 62.4, 47.3, 38.11), (83.9, 55.6, 45.0, 37.33)),
    "fcn_basic_no_addition": ((80.5, 58.6, 44.1, 31.96), (82.3, 53.9, 44.2, 29.43)),
    "fcn_basic_no_dim_reduction": ((84.1, 63.4, 50.1, 37.37), (83.5, 57.3, 47.0, 37.13)),
    "fcn_basic_no_addition_no_dim_reduction": (
        (80.5, 61.6, 45.9, 30.47),
        (83.7, 54.8, 45.5, 33.17),
    ),
}


def row(model: str, loss: Loss, scores: tuple[float, ...]) -> Experiment:
    """One variant with the classes weighted in one way, and what was published for it."""
    accuracy, class_accuracy, miou, boundary_f1 = (round(score / 100, 4) for score in scores)
    published = Published(
        "miou",
        miou,
        "arXiv:1511.00561 Table 1",
        "360x480, picked on val by global accuracy every 1000 steps; boundary pixels paired",
        {"pixel_accuracy": accuracy, "class_accuracy": class_accuracy, "boundary_f1": boundary_f1},
    )
    return dataclasses.replace(FULL, model=model, loss=loss, published=published)


ROWS = {
    **{model: row(model, MEDIAN, scores) for model, (scores, _) in TABLE.items()},
    **{f"{model}_natural": row(model, NATURAL, scores) for model, (_, scores) in TABLE.items()},
}


def small(full: Experiment) -> Experiment:
    """A third of the resolution, a quarter of the width and four epochs, for two CPU cores."""
    return dataclasses.replace(
        full,
        model_args={**full.model_args, "width": 16},
        image_size=(120, 160),
        steps=120,
        log_every=10,
        eval_every=60,
        checkpoint_every=60,
    )


STUDY = Study(__doc__, rows=ROWS, presets={"small": small})

if __name__ == "__main__":
    sys.exit(main(STUDY))
