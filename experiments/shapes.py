"""Three U-Nets and an Attention U-Net on generated shapes: a classic teaching experiment.

    python -m experiments.shapes                    # quick: half-size images, minutes
    python -m experiments.shapes --preset full      # 128x128

Overlapping ellipses and rectangles with noise, three classes with the background, 800/100/100
images. The question of the experiment: how deep must the contracting path be? `unet_context` goes
down four levels, `unet_standard` three, `unet_precision` two.

Published (the teaching experiment, on its own generated images): IoU 0.8190 for context, 0.8248 for
precision, 0.7861 for standard. Ours, and how long it took: docs/results.md.
"""

import dataclasses
import sys

from segzoo.experiment import Experiment, Published
from segzoo.optim import Optimizer
from segzoo.study import Study, main

SOURCE = "the teaching experiment's report"

FULL = Experiment(
    name="shapes",
    model="unet_standard",
    model_args={"width": 8, "norm": "batch"},
    dataset="shapes",
    batch_size=16,
    steps=400,
    optimizer=Optimizer(name="adam", learning_rate=1e-2, schedule="cosine", warmup_steps=50),
    eval_every=100,
    checkpoint_every=100,
)


def _row(model: str, published: float | None) -> Experiment:
    number = Published("miou", published, SOURCE, "its own images and split") if published else None
    args = dict(FULL.model_args)
    if model != "attention_unet":
        # Half of so narrow a net's deepest channels are too many to drop in so short a run.
        args["dropout"] = 0.0
    return dataclasses.replace(FULL, model=model, model_args=args, published=number)


def quick(full: Experiment) -> Experiment:
    """Half-size images."""
    return dataclasses.replace(full, image_size=(64, 64))


STUDY = Study(
    __doc__,
    rows={
        "unet_context": _row("unet_context", 0.8190),
        "unet_standard": _row("unet_standard", 0.7861),
        "unet_precision": _row("unet_precision", 0.8248),
        "attention_unet": _row("attention_unet", None),
    },
    presets={"quick": quick},
    first="quick",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
