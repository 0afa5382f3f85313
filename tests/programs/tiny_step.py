"""Prints a digest of the tiny experiment's train step as compiled; for tests/test_train.py."""

import hashlib

import jax
import tiny

from segzoo import assembly, tasks
from segzoo.data.pipeline import train_batches
from segzoo.train import create_state, make_train_step

if __name__ == "__main__":
    experiment, dataset = tiny.experiment(), tiny.dataset()
    spec, source = dataset.spec, dataset.source("train")
    model = assembly.build_model(experiment, spec, None)
    optimizer = experiment.optimizer.build(experiment.steps)
    task = tasks.for_dataset(spec.task, spec.num_classes)
    state = create_state(experiment, model, optimizer, assembly.training_shape(experiment, source))
    with train_batches(source, batch_size=experiment.batch_size, seed=0) as batches:
        batch = next(batches)
    step = make_train_step(experiment, model, optimizer, task, spec, None, None)
    text = jax.jit(step).lower(state, batch).as_text()
    print(hashlib.sha256(text.encode()).hexdigest())
