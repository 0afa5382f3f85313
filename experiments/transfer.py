"""Transfer learning in its three scenarios: from generated shapes to sixteen images of nuclei.

    python -m experiments.transfer --manual-dir PATH/TO/dsb2018_nuclei                  # 256x256
    python -m experiments.transfer --manual-dir PATH/TO/dsb2018_nuclei --preset small   # CPU

`source` trains FCN-8s on the generated shapes, which need no files. The other rows train the same
net on the first sixteen training images of the nuclei: `scratch` from random weights, `fixed` with
the encoder of `source` as a fixed feature extractor, `fine_tune` from `source` at one learning
rate, and `slower` at rates that fall by 2.6 from the head down, stage by stage (arXiv:1801.06146,
section 3.2). All have the same optimizer and number of steps, and no augmentation. The checkpoint
is picked on val and scored on test once. The guide is docs/transfer-learning.md; ours, and how long
it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.experiment import Experiment
from segzoo.optim import Optimizer
from segzoo.study import Study, main
from segzoo.transfer import Transfer

SOURCE = Experiment(
    name="transfer",
    model="fcn8s",
    model_args={"norm": "batch"},
    dataset="shapes",
    batch_size=16,
    steps=2000,
    optimizer=Optimizer(name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=20),
    dtype="bfloat16",
    eval_every=200,
    checkpoint_every=200,
)
SCRATCH = dataclasses.replace(
    SOURCE,
    dataset="dsb2018_nuclei",
    train_split="train[:16]",
    steps=1000,
    eval_every=100,
    checkpoint_every=100,
)


def _started(transfer: Transfer) -> Experiment:
    return dataclasses.replace(SCRATCH, init_row="source", transfer=transfer)


def small(full: Experiment) -> Experiment:
    """Small images and an eighth of the width, for two CPU cores."""
    source = full.dataset == "shapes"
    return dataclasses.replace(
        full,
        model_args={**full.model_args, "width": 8, "dropout": 0.0},
        image_size=(64, 64) if source else (96, 96),
        image_fit="resize" if source else "crop",
        batch_size=8,
        steps=250 if source else 100,
        optimizer=dataclasses.replace(full.optimizer, learning_rate=3e-3),
        dtype="float32",
        eval_every=50 if source else 20,
        checkpoint_every=50 if source else 20,
    )


STUDY = Study(
    __doc__,
    rows={
        "source": SOURCE,
        "scratch": SCRATCH,
        "fixed": _started(Transfer("fixed", cache=True)),
        "fine_tune": _started(Transfer("fine_tune")),
        "slower": _started(Transfer("fine_tune", backbone_rate=1 / 2.6, stage_decay=1 / 2.6)),
    },
    presets={"small": small},
    in_table=False,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
