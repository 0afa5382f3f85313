"""FC-DenseNet on CamVid from scratch, in two stages: crops, then whole images.

    python -m experiments.camvid_fc_densenet --manual-dir PATH/TO/camvid                  # a GPU
    python -m experiments.camvid_fc_densenet --manual-dir PATH/TO/camvid --preset small   # CPU

Published (Jégou et al., arXiv:1611.09326, Table 3; test split, 360x480, 11 classes, no pretraining)
are mIoU 58.9, 65.8, 66.9 and global accuracy 88.9, 90.8, 91.5 of FC-DenseNet56, 67 and 103, and
55.2 and 86.8 of the classic way up. Answering Road everywhere scores an mIoU of 2.4. Known to be
hard: the reimplementations that published their scores fell short of these.

The recipe is that of the paper and the authors' released configuration: 224x224 crops, 3 to a
batch, mirrored left and right half of the time; RMSprop at 1e-3, times 0.995 after every epoch (122
steps), until validation mIoU has not improved for 150 epochs, at most 750. Then each net goes on
from its best (rows `..._fine`, which run after the first) on whole images, one to a batch, at 1e-4,
with a patience of 50. Batch norm uses the statistics of the image at hand in validation and test
too. The penalty is 1e-4 times the squared weights, hence 2e-4 here, where it is halved; RMSprop's
epsilon is 1e-6 under the root.

Differences: the authors' test takes ten frames to a batch and normalises by all of them, ours each
image by itself, which no other image can change; their penalty also takes the scales of batch norm;
images are brought to zero mean and unit variance, theirs may only have been scaled. Not enough
memory? `--model-args remat True` keeps a fifth of what the gradient of FC-DenseNet103 needs (1.3 of
6.7 GiB) and computes the rest again. Ours, and how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment, Published
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.study import Study, main

CROPS_PER_EPOCH = 122  # 367 images, 3 to a step
IMAGES = 367
CROPS = Experiment(
    name="camvid_fc_densenet",
    model="fc_densenet56",
    model_args={"test_statistics": "image"},
    dataset="camvid",
    batch_size=3,
    steps=750 * CROPS_PER_EPOCH,
    loss=Loss(cross_entropy=1.0),
    optimizer=Optimizer(
        name="rmsprop",
        learning_rate=1e-3,
        eps=1e-6,
        eps_in_root=True,
        weight_decay=2e-4,
        schedule="step",
        decay_rate=0.995,
        decay_steps=CROPS_PER_EPOCH,
    ),
    augment=Augment(flip_horizontal=True, crop_size=(224, 224)),
    eval_every=CROPS_PER_EPOCH,
    checkpoint_every=CROPS_PER_EPOCH,
    patience=150,
)
WHOLE = dataclasses.replace(
    CROPS,
    batch_size=1,
    steps=750 * IMAGES,
    optimizer=dataclasses.replace(CROPS.optimizer, learning_rate=1e-4, decay_steps=IMAGES),
    augment=Augment(flip_horizontal=True),
    eval_every=IMAGES,
    checkpoint_every=IMAGES,
    patience=50,
)


def rows(model: str, miou: float, accuracy: float) -> dict[str, Experiment]:
    """Both stages of a network; the published mIoU is that of the second."""
    published = Published(
        "miou",
        miou,
        "arXiv:1611.09326 Table 3",
        "360x480; batch norm by the statistics of the batch, ten frames of the video in test",
        {"pixel_accuracy": accuracy},
    )
    crops = dataclasses.replace(CROPS, model=model)
    whole = dataclasses.replace(WHOLE, model=model, init_row=model, published=published)
    return {model: crops, f"{model}_fine": whole}


ROWS = {
    **rows("fc_densenet56", 0.589, 0.889),
    **rows("fc_densenet67", 0.658, 0.908),
    **rows("fc_densenet103", 0.669, 0.915),
    **rows("fc_densenet_classic", 0.552, 0.868),
}


def small(full: Experiment) -> Experiment:
    """A third of the resolution and a quarter of the width, for two CPU cores."""
    fine = full.init_row is not None
    crop = None if fine else (80, 80)
    return dataclasses.replace(
        full,
        model_args={**full.model_args, "width": 12},
        image_size=(120, 160),
        augment=dataclasses.replace(full.augment, crop_size=crop),
        steps=200 if fine else 400,
        optimizer=dataclasses.replace(full.optimizer, decay_rate=0.9),
        eval_every=100,
        checkpoint_every=100,
    )


STUDY = Study(__doc__, rows=ROWS, presets={"small": small})

if __name__ == "__main__":
    sys.exit(main(STUDY))
