"""What docs/architecture.md promises of every registered model; new models join unasked.

The costly promises are checked on one model of each kind of network, on all with `-m exhaustive`.
"""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import registry
from segzoo.ops.convolution import as_written

# Whatever of these a model accepts makes it small enough to run here; the backbone only takes the
# place of another.
SMALL = {"width": 8, "aux_loss": True, "backbone": "resnet18"}
SIZES = [(96, 96), (75, 97)]
PROGRAM = Path(__file__).parent / "programs" / "devices.py"


@pytest.fixture
def plain_convolutions():
    """Convolutions as XLA has them: where none is tested they are compiled sooner."""
    with as_written():
        yield


def natural(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def kind(name):
    """Models of one kind differ in numbers alone, such as the depth."""
    model = segzoo.get(name)
    backbone = getattr(model, "backbone", None)
    norm = getattr(model, "norm", getattr(backbone, "norm", None))
    return type(model), type(backbone), norm


def each(*, instance_models=False, further=()):
    """Models; what instance models promise instead is in models/test_mask_rcnn.py.

    Args:
        instance_models: whether they are among them.
        further: marks of those of whose kind there was one before.
    """
    seen, names = set(), []
    for name in sorted(segzoo.list_models(), key=natural):
        if registry.entry(name).task == "instance" and not instance_models:
            continue
        names.append(pytest.param(name, marks=further if kind(name) in seen else ()))
        seen.add(kind(name))
    return pytest.mark.parametrize("name", names)


def small(name, **overrides):
    known = registry.entry(name).overrides
    fitting = {k: v for k, v in SMALL.items() if k in known}
    if known.get("backbone") is None:
        fitting.pop("backbone", None)
    elif known.get("multi_grid"):  # a rate for each of three blocks
        fitting["backbone"] = "resnet34"
    return segzoo.get(name, **fitting, **overrides)


def shape(name, size, batch=2):
    *spatial, channels = registry.entry(name).input_shape
    return (batch, *(*size, 16)[: len(spatial)], channels)


def image(name, size, batch=2, seed=0):
    values = np.random.default_rng(seed).normal(size=shape(name, size, batch))
    return jnp.asarray(values, jnp.float32)


@functools.cache
def shapes_at_full_size(name):
    model = segzoo.get(name)
    size = registry.entry(name).input_shape
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size)))


def parameters(name):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_at_full_size(name)["params"]))


# No one else has counted these: they must not change unnoticed.
UNPUBLISHED = {"attention_unet": 33_452_893}


@each(instance_models=True)
def test_the_published_number_of_parameters_each_in_one_stage(name):
    published = registry.entry(name).parameters
    assert (published is None) == (name in UNPUBLISHED)
    assert parameters(name) == (published or UNPUBLISHED[name])

    backbone = getattr(segzoo.get(name), "backbone", None)
    if backbone is None:
        assert "backbone" not in shapes_at_full_size(name)["params"]
        return
    names = [part for stage in backbone.stages for part in stage]
    assert len(names) == len(set(names))
    assert set(shapes_at_full_size(name)["params"]["backbone"]) == set(names)
    assert list(backbone.reductions) == sorted(backbone.reductions)


@each(further=pytest.mark.exhaustive)
def test_shapes_and_dtypes(name):
    model = small(name, num_classes=1)
    image = jax.ShapeDtypeStruct(shape(name, SIZES[1]), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert set(variables) <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    extra = ["aux_logits", "intermediates"]
    logits, sown = jax.eval_shape(lambda v, x: model.apply(v, x, mutable=extra), variables, image)
    classifies = registry.entry(name).task == "classification"
    assert logits.shape == ((2, 1) if classifies else (*image.shape[:-1], 1))
    for auxiliary in jax.tree.leaves(sown.get("aux_logits", {})):
        assert auxiliary.shape == logits.shape
        assert auxiliary.dtype == jnp.float32


@each(further=pytest.mark.exhaustive)
def test_forward(filled, name):
    model = small(name, num_classes=5)
    task = registry.entry(name).task
    variables = filled(model, shape(name, SIZES[1]))
    forward = jax.jit(model.apply)
    for size in SIZES:
        logits = jax.device_get(forward(variables, image(name, size)))
        assert logits.shape == ((2, 5) if task == "classification" else (2, *logits.shape[1:-1], 5))
        if task == "semantic":
            assert logits.shape[:-1] == shape(name, size)[:-1]
        assert logits.dtype == jnp.float32
        assert np.isfinite(logits).all()
        # Images that differ are told apart.
        assert np.any(logits[0] != logits[1])
    assert forward._cache_size() == len(SIZES)
    again = jax.device_get(forward(variables, image(name, SIZES[0])))
    assert forward._cache_size() == len(SIZES)

    half = small(name, num_classes=5, dtype=jnp.bfloat16)
    rounded = jax.device_get(jax.jit(half.apply)(variables, image(name, SIZES[0])))
    assert rounded.dtype == jnp.float32
    assert np.isfinite(rounded).all()
    scale = np.abs(again).max()
    # Not the maximum: where SegNet pools, rounding can move a value to another pixel.
    assert np.quantile(np.abs(rounded - again), 0.99) < 0.25 * scale
    assert np.corrcoef(np.ravel(rounded), np.ravel(again))[0, 1] > 0.95


@pytest.mark.slow
@pytest.mark.usefixtures("plain_convolutions")
@each(further=pytest.mark.exhaustive)
def test_every_parameter_has_a_gradient(filled, assert_all_learn, name):
    """With the running statistics: batch statistics cancel the bias of a convolution before."""
    model = small(name, num_classes=5)
    variables = filled(model, shape(name, SIZES[1]))

    def objective(params, image):
        logits, sown = model.apply({**variables, "params": params}, image, mutable=["aux_logits"])
        outputs = [logits, *jax.tree.leaves(sown)]
        return sum(jnp.mean(jnp.sin(3.0 * output)) for output in outputs)

    gradients = jax.jit(jax.grad(objective))(variables["params"], image(name, SIZES[1]))
    assert_all_learn(gradients)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_convolutions")
@each(further=pytest.mark.exhaustive)
def test_statistics_move_in_training_alone(filled, name):
    model = small(name, num_classes=5)
    variables = filled(model, shape(name, SIZES[1]))
    if "batch_stats" not in variables:
        return

    def statistics(train, stats, image):
        rngs = {"dropout": jax.random.key(0)}
        parts = {**variables, "batch_stats": stats}
        options = {"train": train, "mutable": ["batch_stats"], "rngs": rngs}
        return model.apply(parts, image, **options)[1]["batch_stats"]

    stats, x = variables["batch_stats"], image(name, SIZES[1])
    program = jax.make_jaxpr(functools.partial(statistics, False))(stats, x).jaxpr
    assert program.outvars == program.invars[:-1]

    training = jax.jit(functools.partial(statistics, True))
    stats, moved = jax.device_get((stats, training(stats, x)))
    before, moved = jax.tree_util.tree_leaves_with_path(stats), jax.tree.leaves(moved)
    auxiliary = "aux"  # runs only where its logits are asked for
    for (path, old), new in zip(before, moved, strict=True):
        place = jax.tree_util.keystr(path)
        assert np.any(old != new) or auxiliary in place, place
        assert np.isfinite(new).all(), place


def differences(names):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *names],
        capture_output=True,
        text=True,
        timeout=600,  # kills: collectives that wait for each other take no milder signal
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def kinds():
    found = {}
    for name in sorted(segzoo.list_models(), key=natural):
        found.setdefault(kind(name), name)
    return list(found.values())


# With gates and heads at every scale; pooling with places; a whole image's mean.
TYPICAL = ["attention_unet", "segnet", "deeplabv3plus"]


def parts():
    """Names that share a process: the typical ones, then those of all other kinds."""
    others = [name for name in kinds() if name not in TYPICAL]
    rest = (others[part::4] for part in range(4))
    return [
        pytest.param(TYPICAL, id="typical"),
        *(pytest.param(names, id=names[0], marks=pytest.mark.exhaustive) for names in rest),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("names", parts())
def test_four_devices_train_as_one(names):
    found = differences(names)
    assert list(found) == names
    for name, difference in found.items():
        # Logits are float32; everything else is float64.
        assert difference["loss"] < 1e-6, name
        assert difference["gradients"] < 3e-5, name
        assert difference["batch_stats"] < 1e-6, name
