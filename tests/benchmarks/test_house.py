"""Our side, tiny and in this process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import compile, primitives_jax
from experiments.benchmarks.house import House, PlainLinen
from experiments.benchmarks.primitives import PRIMITIVES
from experiments.benchmarks.workloads import WORKLOADS, as_arguments, tiny
from segzoo import SegzooError
from segzoo.tiles import bucket


def told(name, batch):
    return as_arguments(tiny(WORKLOADS[name]), "cpu", batch)


def shallow(batch):
    return {**told("unet32", batch), "model_args": {"width": 2, "depth": 1}}


def test_a_train_step_of_ours_trains():
    house = House()
    facts = house.build("step", "train_step", {"workload": shallow(jax.device_count())})
    # By hand: pairs of 3x3 convolutions 3-2-2, 2-4-4 and 4-2-2, up-convolution 4-2, scores 2-2.
    weights = [3 * 2, 2 * 2, 2 * 4, 4 * 4, 4 * 2, 2 * 2]
    count = sum(9 * n for n in weights) + 2 + 2 + 4 + 4 + 2 + 2 + (4 * 4 * 2 + 2) + (2 * 2 + 2)
    assert facts["parameters"] == count
    assert house.block(1, "step") > 0
    losses = [float(house.run()["loss"]) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_inference_gives_logits_of_images_that_are_no_zeros():
    house = House()
    facts = house.inference(shallow(1))
    logits = house.run()
    assert logits.shape == (1, 32, 32, 2)
    assert logits.dtype == jnp.float32
    assert float(jnp.std(logits)) > 0
    assert facts["macs"] > 0


@pytest.mark.parametrize("name", ["unet32", "unet3d", "segnet"])
def test_plain_linen_is_the_same_network(name):
    arguments = told(name, 1)
    ours, plain = (side.model(arguments, None) for side in (House(), PlainLinen()))
    image = jnp.zeros((1, *arguments["size"], arguments["channels"]))
    shapes = [jax.eval_shape(m.init, jax.random.key(0), image)["params"] for m in (ours, plain)]
    counts = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in shapes]
    assert counts[0] == counts[1]


def test_plain_linen_has_few_networks():
    with pytest.raises(SegzooError, match="unknown network in plain linen 'fcn8s'"):
        PlainLinen().model(told("fcn8s", 1), None)


@pytest.mark.parametrize("name", primitives_jax.PLAIN)
def test_operations_are_those_of_linen_and_lax(name, assert_same_function):
    rank = len(PRIMITIVES[name].shape["cpu"]) - 2
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *(4,) * rank, 4)), jnp.float32)
    shapes = PRIMITIVES[name].weights(4)
    weights = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    assert_same_function(
        primitives_jax.OURS[name], primitives_jax.PLAIN[name], x, *weights, atol=1e-4
    )


def test_every_operation_is_there_and_named():
    assert list(primitives_jax.OURS) == list(PRIMITIVES)
    plain = [name for name, primitive in PRIMITIVES.items() if "linen" in primitive.peers]
    assert sorted(primitives_jax.PLAIN) == sorted(plain)


@pytest.mark.parametrize("backward", [False, True])
def test_an_operation_runs(backward):
    house = House()
    house.build("x", "primitive", {"name": "batch norm", "shape": (2, 4, 4, 3)} | of(backward))
    assert house.block(2, "x") > 0


def of(backward):
    return {"dtype": "bfloat16", "backward": backward}


def test_a_program_for_every_bucket():
    sizes = [(33, 45), (41, 50), (33, 45), (64, 40), (70, 33), (95, 60)]
    assert compile.count_programs(sizes) == len({bucket(size) for size in sizes}) == 3
