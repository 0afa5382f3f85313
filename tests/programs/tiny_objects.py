"""A small Mask R-CNN, an experiment and eight pictures of shapes, for runs of seconds.

    python tests/programs/tiny_objects.py DEVICES

prints what a step and an evaluation give on so many devices.
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = "16"
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={sys.argv[1]}"
    )

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from segzoo import registry
from segzoo.data.instances import objects_of
from segzoo.data.shapes import SPEC, draw
from segzoo.data.spec import Dataset
from segzoo.experiment import Experiment
from segzoo.layers import ConvNormAct
from segzoo.models.mask_rcnn import MaskRCNN
from segzoo.optim import Optimizer

SIZE = 64


class Backbone(nn.Module):
    """Five maps, each half the size of the one before."""

    width: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train):
        maps, x = [], image
        for features in (1, 2, 4, 4, 4):
            for strides in (2, 1):
                x = ConvNormAct(
                    features * self.width, strides=strides, norm="batch", axis_name=self.axis_name
                )(x, train=train)
            maps.append(x)
        return tuple(maps)


@registry.register(task="instance", paper="none", input_shape=(64, 64, 3))
def tiny_objects(*, num_classes=3, dtype=jnp.float32, axis_name=None, width=8, detections=12):
    """Mask R-CNN on ten convolutions."""
    return MaskRCNN(
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        backbone=Backbone(width, axis_name),
        width=width,
        anchor_sizes=(8, 16, 32, 64, 128),
        proposals=(48, 24),
        training_proposals=(48, 24),
        anchors_learned=64,
        regions_learned=32,
        detections=detections,
    )


def experiment(**changes):
    fields = {
        "name": "tiny_objects",
        "model": "tiny_objects",
        "dataset": "shapes_instances",
        "steps": 4,
        "batch_size": 4,
        "optimizer": Optimizer(name="adam", learning_rate=3e-3),
        "log_every": 1,
        "eval_every": 2,
        "checkpoint_every": 2,
        "monitor": "mask_ap",
        "pictures": 1,
        "loader_threads": 1,
    }
    return Experiment(**{**fields, **changes})


class Source:
    """The first shapes, drawn small."""

    def __init__(self, length, first=0):
        self.length, self.first = length, first

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        drawn = draw(self.first + index, SIZE)
        instances, classes = objects_of(drawn["label"], drawn["instances"].astype(np.int32))
        return {
            "image": drawn["image"],
            "classes": classes,
            "crowd": np.zeros(len(classes), bool),
            "instances": instances,
        }

    def objects(self, index):
        return len(self[index]["classes"])

    def image_shape(self, index):
        return (SIZE, SIZE, 3)


class Shapes(Dataset):
    """Eight pictures that are every split but the test's three."""

    spec = dataclasses.replace(SPEC, name="shapes_instances", task="instance")

    @property
    def splits(self):
        return {"train": 8, "val": 8, "test": 3}

    def source(self, split):
        return Source(self.splits[split], 8 if split == "test" else 0)


def run(experiment, dataset, steps):
    """The losses and gradients of some steps, and the tally of an evaluation, on all devices."""
    import jax

    from segzoo import assembly, evaluate, parallel, tasks
    from segzoo.data.pipeline import train_batches
    from segzoo.train import create_state, make_train_step

    axis_name, spec = parallel.AXIS, dataset.spec
    model = assembly.build_model(experiment, spec, axis_name)
    optimizer = experiment.optimizer.build(experiment.steps)
    task = tasks.for_dataset(spec.task, spec.num_classes, axis_name)
    state = parallel.replicate(create_state(experiment, model, optimizer, (SIZE, SIZE, 3)))
    arguments = (model, optimizer, task, spec, None, axis_name)
    step = parallel.data_parallel(make_train_step(experiment, *arguments))
    metrics = []
    with train_batches(
        dataset.source("train"), batch_size=experiment.batch_size, seed=0
    ) as batches:
        for _ in range(steps):
            state, found = step(state, parallel.shard_batch(next(batches)))
            metrics.append({name: float(value) for name, value in found.items()})
    body = evaluate.make_eval_step(model, task, experiment, spec, None, axis_name)
    tally, loss = evaluate.evaluate_split(
        parallel.data_parallel(body), state.variables, experiment, dataset, "test", task
    )
    jax.block_until_ready(state)
    return {
        "metrics": metrics,
        "loss": loss,
        "images": task.scores(tally, spec.class_names)["images"],
    }


if __name__ == "__main__":
    # Adam divides by the gradient's size: where that is all rounding, so is its direction.
    plain = Optimizer(name="sgd", learning_rate=1e-3)
    print(json.dumps(run(experiment(optimizer=plain), Shapes(), 1)))
