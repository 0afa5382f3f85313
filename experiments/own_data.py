"""U-Net on your own folder of images and masks.

    segzoo check-data DIR
    python -m experiments.own_data --manual-dir DIR --run-dir runs/mine
    segzoo predict runs/mine PICTURE.jpg -o masks

The folder holds {train,val,test}/{images,masks}/NAME.EXT; docs/own-data.md says the rest. Images of
different sizes are brought to --image-size; every other field can be changed the same way, e.g.
`--model attention_unet --steps 5000 --loss.dice 1`.
"""

import sys

from segzoo.data.augment import Augment
from segzoo.experiment import Experiment
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.study import Study, main

EXPERIMENT = Experiment(
    name="own_data",
    model="unet",
    model_args={"norm": "batch", "width": 32},
    dataset="folder",
    image_size=(256, 256),
    image_fit="pad",
    batch_size=8,
    steps=2000,
    loss=Loss(cross_entropy=1.0, dice=0.5),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=100
    ),
    augment=Augment(
        flip_horizontal=True, rotate=15.0, scale=(0.8, 1.25), brightness=0.2, contrast=0.2
    ),
)

STUDY = Study(__doc__, rows={"unet": EXPERIMENT}, in_table=False)

if __name__ == "__main__":
    sys.exit(main(STUDY))
