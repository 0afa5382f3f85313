"""PyTorch's side: eager and compiled, channels first and last."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks.contestants import Contestant, Facts
from experiments.benchmarks.peers import primitives_torch, resnet
from experiments.benchmarks.peers.attention_unet import AttentionUNet
from experiments.benchmarks.peers.fc_densenet import FCDenseNet
from experiments.benchmarks.peers.fcn import FCN8s
from experiments.benchmarks.peers.segnet import SegNet
from experiments.benchmarks.peers.unet import UNet
from experiments.benchmarks.workloads import LEARNING_RATE, MEAN, STD
from segzoo.data.spec import VOID
from segzoo.errors import SegzooError, check_name


class Eager(Contestant):
    """PyTorch as it comes.

    Attributes:
        compiled: whether networks go through `torch.compile`.
        channels_last: whether arrays lie channels last in memory.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch",)
    compiled: ClassVar[bool] = False
    channels_last: ClassVar[bool] = False

    def __init__(self) -> None:
        if self.compiled:
            _check_compiler()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True

    def platform(self) -> str:
        """Returns "cpu" or "gpu"."""
        return "gpu" if self._device.type == "cuda" else "cpu"

    def synchronize(self, result: Any) -> None:
        """Waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def device_peak(self) -> int | None:
        """Returns the allocator's peak, None on a CPU."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None

    def train_step(self, workload: Facts) -> Facts:
        """Builds forward, backward and Adam on a resident batch."""
        network = self._network(workload).train()
        loss_of = _loss(workload["classes"])

        def objective(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return loss_of(network(_normalise(image)), label)

        compute = self._maybe_compiled(objective)
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
        image, label = self._image(workload), self._label(workload)

        def run() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with self._autocast(workload["dtype"]):
                loss = compute(image, label)
            loss.backward()
            optimizer.step()
            return loss.detach()

        self.run = run
        return _facts(network)

    def inference(self, workload: Facts) -> Facts:
        """Builds the forward pass, from uint8 images to float32 logits."""
        network = self._network(workload).eval()
        compute = self._maybe_compiled(lambda image: network(_normalise(image)).float())
        image = self._image(workload)

        def run() -> Any:
            with torch.inference_mode(), self._autocast(workload["dtype"]):
                return compute(image)

        self.run = run
        return _facts(network)

    def primitive(self, name: str, shape: Sequence[int], dtype: str, backward: bool) -> Facts:
        """Builds an operation of `torch.nn.functional`."""
        place = self._placed if self.channels_last else self._moved
        self.run = primitives_torch.build(name, shape, getattr(torch, dtype), backward, place)
        return {}

    def product(self, side: int, dtype: str) -> Facts:
        """Builds the product of two square matrices."""
        a, b = (torch.randn(side, side).to(self._device, getattr(torch, dtype)) for _ in range(2))
        self.run = lambda: a @ b
        return {}

    def _maybe_compiled(self, function: Callable[..., torch.Tensor]) -> Any:
        # Not dynamic: a second batch size would otherwise get a program for any, which is slower.
        return torch.compile(function, dynamic=False) if self.compiled else function

    def _network(self, workload: Facts) -> nn.Module:
        return self._placed(network(workload))

    def _image(self, workload: Facts) -> torch.Tensor:
        shape = (workload["batch"], workload["channels"], *workload["size"])
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return self._placed(torch.from_numpy(pixels))

    def _label(self, workload: Facts) -> torch.Tensor:
        rng = np.random.default_rng(1)
        shape = (workload["batch"], *(workload["size"] if workload["task"] == "semantic" else ()))
        ids = rng.integers(0, max(2, workload["classes"]), shape)
        return torch.from_numpy(ids).to(self._device)

    def _moved(self, tensor: Any) -> Any:
        return tensor.to(self._device)

    def _placed(self, thing: Any) -> Any:
        """Brings a tensor or a network to the device, in this contestant's order of memory."""
        thing = thing.to(self._device)
        if not self.channels_last:
            return thing
        if isinstance(thing, nn.Module):
            ranks = {p.ndim for p in thing.parameters()}
            return thing.to(memory_format=_LAST[5 if 5 in ranks else 4])
        return thing.to(memory_format=_LAST[thing.ndim]) if thing.ndim in _LAST else thing

    def _autocast(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        if dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, getattr(torch, dtype))


class ChannelsLast(Eager):
    """Eager, channels last."""

    channels_last = True


class Compiled(Eager):
    """Through `torch.compile`."""

    compiled = True


class CompiledChannelsLast(Compiled):
    """Through `torch.compile`, channels last."""

    channels_last = True


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "attention_unet": AttentionUNet,
    "segnet": SegNet,
    "fcn8s": FCN8s,
    "fc_densenet56": FCDenseNet,
    "deeplabv3plus": resnet.DeepLabV3Plus,
    "resnet50": resnet.resnet50,
}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _check_compiler() -> None:
    """What inductor compiles is C++, on a GPU too."""
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted) is None:
        raise SegzooError(f"torch.compile needs a C++ compiler; found no {wanted}")


def network(workload: Facts) -> nn.Module:
    """Returns a workload's network.

    Raises:
        SegzooError: for a model that is not written here.
    """
    check_name("network in torch", workload["model"], NETWORKS)
    return NETWORKS[workload["model"]](
        workload["classes"], workload["channels"], **workload["model_args"]
    )


def _normalise(image: torch.Tensor) -> torch.Tensor:
    return (image.float() - MEAN) / STD


def _loss(classes: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if classes == 1:
        return lambda logits, label: F.binary_cross_entropy_with_logits(
            logits[:, 0].float(), label.float()
        )
    return lambda logits, label: F.cross_entropy(logits.float(), label, ignore_index=VOID)


def _facts(network: nn.Module) -> Facts:
    return {"parameters": sum(p.numel() for p in network.parameters())}
