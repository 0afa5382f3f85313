"""One training step of each model named, on one device and on four: prints how far they differ.

In float64: what the order of the sums changes is then far below what a wrong sum would change.

    python tests/programs/devices.py NAME...

Prints `{name: {"loss", "gradients", "batch_stats"}}`, relative to the largest value of an array.
"""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax
import jax.numpy as jnp
import numpy as np

import segzoo
from segzoo import instance_losses, parallel, registry

SIZE = (75, 81, 16)
jax.config.update("jax_enable_x64", True)


def build(name, axis_name):
    known = registry.entry(name).overrides
    wanted = {"width": 8, "aux_loss": True, "num_classes": 5, "dtype": jnp.float64}
    found = {k: v for k, v in wanted.items() if k in known}
    if known.get("backbone") is not None:
        # A rate for each of three blocks wants as many.
        found["backbone"] = "resnet34" if known.get("multi_grid") else "resnet18"
    return segzoo.get(name, axis_name=axis_name, **found)


def fill(shapes):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        match path[-1].key:
            case "kernel":
                noise *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
            case "scale" | "var":
                noise = 1 + 0.1 * np.abs(noise)
            case _:
                noise *= 0.1
        # In float64, as the gradients then are: a bias before batch norm has the gradient 0, but a
        # device's share of it is not, and would be rounded before the shares are summed.
        return jnp.asarray(noise)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def objects(shape):
    """Targets of an instance model: none in the first image, one more in each that follows."""
    batch, height, width, _ = shape
    corner = np.random.default_rng(2).uniform(0, 0.5, size=(batch, 3, 2))
    boxes = np.concatenate([corner, corner + 0.4], axis=2) * [height, width, height, width]
    valid = np.arange(3) < np.arange(batch)[:, None]
    masks = np.zeros((batch, height, width), np.int32)
    masks[1:, 20:50, 20:50] = 1
    return {
        "boxes": boxes.astype(np.float32),
        "classes": np.tile(np.arange(1, 4, dtype=np.int32), (batch, 1)),
        "masks": masks,
        "valid": valid,
    }


def step(model, axis_name):
    def body(variables, batch):
        rest = {key: value for key, value in variables.items() if key != "params"}

        def objective(params):
            image = batch["image"]
            targets = {key: value for key, value in batch.items() if key != "image"}
            found, updates = model.apply(
                {"params": params, **rest},
                image,
                train=True,
                mutable=["batch_stats", "aux_logits"],
                rngs={"dropout": jax.random.key(7)},
                **({"targets": targets} if targets else {}),
            )
            if targets:
                loss, _ = instance_losses.total(instance_losses.terms(found), len(image), axis_name)
            else:
                outputs = [found, *jax.tree.leaves(updates.get("aux_logits", {}))]
                loss = sum(jnp.sum(jnp.square(output)) for output in outputs)
            return loss, updates.get("batch_stats", {})

        found, gradients = jax.value_and_grad(objective, has_aux=True)(variables["params"])
        loss, statistics = found
        return statistics, parallel.psum((loss, gradients), axis_name)

    return body


def relative(one, four):
    """The largest difference of an array over its largest value, which counts from a floor on."""
    floor = 1e-3 * max((float(np.abs(x).max()) for x in jax.tree.leaves(one)), default=0.0)
    worst = 0.0
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), floor)))
    return worst


def compare(name):
    *spatial, channels = registry.entry(name).input_shape
    shape = (4, *SIZE[: len(spatial)], channels)
    batch = {"image": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    if registry.entry(name).task == "instance":
        batch |= objects(shape)
    single = build(name, None)
    shapes = jax.eval_shape(single.init, jax.random.key(0), jnp.zeros(shape))
    variables = fill(shapes)
    one = jax.jit(step(single, None))(variables, jax.tree.map(jnp.asarray, batch))
    mapped = parallel.data_parallel(step(build(name, parallel.AXIS), parallel.AXIS))
    four = mapped(variables, parallel.shard_batch(batch))
    (stats_1, (loss_1, grads_1)), (stats_4, (loss_4, grads_4)) = jax.device_get((one, four))
    return {
        "loss": relative(loss_1, loss_4),
        "gradients": relative(grads_1, grads_4),
        "batch_stats": relative(stats_1, stats_4),
    }


print(json.dumps({name: compare(name) for name in sys.argv[1:]}))
