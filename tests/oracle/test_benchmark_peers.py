"""The benchmarks' networks in torch are ours: parameters, multiply-adds, shapes, and they train."""

import jax
import pytest

from experiments.benchmarks.contestants import start
from experiments.benchmarks.primitives import PRIMITIVES
from experiments.benchmarks.worker import NotInstalled
from experiments.benchmarks.workloads import WORKLOADS, as_arguments, tiny
from segzoo.cost import measure

torch = pytest.importorskip("torch", reason="the extra `oracle` is not installed")
torch_side = pytest.importorskip("experiments.benchmarks.peers.torch_side")
house = pytest.importorskip("experiments.benchmarks.house")

# Interpolation and pooling cost no multiply-adds, nor do normalisation and activations.
TOLERANCE = 1e-3


@pytest.mark.parametrize("name", WORKLOADS)
def test_parameters_and_multiply_adds_are_ours(name):
    from torch.utils.flop_counter import FlopCounterMode

    told = as_arguments(WORKLOADS[name], "cpu", 1)
    model = house.House().model(told, None)
    ours = measure(model, tuple(told["size"]), told["channels"])
    with torch.device("meta"):
        network = torch_side.network(told).eval()
        image = torch.zeros(1, told["channels"], *told["size"])
    assert sum(p.numel() for p in network.parameters()) == ours.parameters
    with FlopCounterMode(display=False) as counter:
        logits = network(image)
    assert counter.get_total_flops() / 2 == pytest.approx(ours.macs, rel=TOLERANCE)
    batch, *size, classes = ours.output_shape
    assert logits.shape == (batch, classes, *size)


@pytest.mark.parametrize("name", ["unet_keras", "segnet", "resnet50"])
@pytest.mark.parametrize("kind", [torch_side.Eager, torch_side.ChannelsLast])
def test_a_tiny_train_step(kind, name):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peer = kind()
    peer.build("step", "train_step", {"workload": as_arguments(tiny(WORKLOADS[name]), "cpu")})
    losses = [float(peer.run()) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert peer.block(1, "step") > 0


def test_an_image_that_is_no_multiple_of_the_stride():
    told = {**as_arguments(tiny(WORKLOADS["attention_unet"]), "cpu", 1), "size": [40, 36]}
    peer = torch_side.Eager()
    peer.inference(told)
    assert peer.run().shape == (1, 2, 40, 36)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_operations_give_as_much_as_ours(name):
    rank = len(PRIMITIVES[name].shape["cpu"]) - 2
    told = {"name": name, "shape": (2, *(8,) * rank, 4), "dtype": "float32"}
    ours, peer = house.House(), torch_side.ChannelsLast()
    for side in (ours, peer):
        side.primitive(**told, backward=False)
    shape = jax.eval_shape(ours.run).shape
    assert peer.run().shape == (shape[0], shape[-1], *shape[1:-1])
    peer.primitive(**told, backward=True)
    assert len(peer.run()) == 1 + len(PRIMITIVES[name].weights(4))


@pytest.mark.slow
def test_the_unet_of_keras_is_ours():
    told = as_arguments(tiny(WORKLOADS["unet_keras"]), "cpu")
    model = house.House().model(told, None)
    ours = measure(model, tuple(told["size"]), told["channels"])
    with start("keras", "cpu", timeout=300) as keras:
        try:
            facts = keras.call("train_step", workload=told)
        except NotInstalled as error:
            pytest.skip(f"{error} is not installed")
        assert facts["parameters"] == ours.parameters
        assert keras.call("block", calls=1) > 0
