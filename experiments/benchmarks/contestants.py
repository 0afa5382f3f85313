"""Who is timed: the names, and what every contestant can do.

A contestant lives in a process of its own (`worker`). It is told what to build, says what it is,
and then makes as many calls as it is asked for. Nothing here imports a library of any of them.
"""

from __future__ import annotations

import abc
import functools
import gc
import importlib.metadata
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments.benchmarks.worker import Worker
from segzoo.errors import SegzooError

Facts = dict[str, Any]
_TORCH = "experiments.benchmarks.peers.torch_side"
_HOUSE = "experiments.benchmarks.house"

TARGETS: dict[str, str] = {
    "ours": f"{_HOUSE}:House",
    "linen": f"{_HOUSE}:PlainLinen",
    "torch": f"{_TORCH}:Eager",
    "torch-channels-last": f"{_TORCH}:ChannelsLast",
    "torch-compile": f"{_TORCH}:Compiled",
    "torch-compile-channels-last": f"{_TORCH}:CompiledChannelsLast",
    "keras": "experiments.benchmarks.peers.keras_side:Keras",
}
PEERS = tuple(name for name in TARGETS if name != "ours")
# What every library has a network for.
_SMALL: Facts = {
    "model": "unet",
    "model_args": {"width": 2, "depth": 1},
    "task": "semantic",
    "classes": 1,
    "size": [16, 16],
    "channels": 3,
    "batch": 2,
}


class Contestant(abc.ABC):
    """One library on one device.

    A method that builds something sets `self.run`, which is then timed.

    Attributes:
        packages: whose versions are said.
        run: makes one call, without waiting for its end where the library does not.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    run: Callable[[], Any]

    @abc.abstractmethod
    def platform(self) -> str:
        """Returns "cpu" or "gpu"."""

    @abc.abstractmethod
    def synchronize(self, result: Any) -> None:
        """Waits until a call's result, and all before it, are there."""

    @abc.abstractmethod
    def train_step(self, workload: Facts) -> Facts:
        """Builds a train step on resident data; returns `parameters`, and ours `macs`."""

    @abc.abstractmethod
    def inference(self, workload: Facts) -> Facts:
        """Builds a forward pass on resident data; returns the same."""

    @abc.abstractmethod
    def device_peak(self) -> int | None:
        """Returns the allocator's peak in bytes; None where the memory is the host's."""

    def primitive(self, name: str, shape: Sequence[int], dtype: str, backward: bool) -> Facts:
        """Builds a single operation, see `primitives`."""
        raise NotImplementedError

    def product(self, side: int, dtype: str) -> Facts:
        """Builds the product of two square matrices."""
        raise NotImplementedError

    def describe(self) -> Facts:
        """Returns `platform` and `versions`."""
        versions = {name: importlib.metadata.version(name) for name in self.packages}
        return {"platform": self.platform(), "versions": versions}

    def build(self, key: str, method: str, arguments: Facts) -> Facts:
        """Calls a method that builds something, and keeps what it built under a name."""
        facts: Facts = getattr(self, method)(**arguments)
        self.kept[key] = self.run
        return facts

    @functools.cached_property
    def kept(self) -> dict[str, Callable[[], Any]]:
        """What was built, by name."""
        return {}

    def block(self, calls: int, key: str | None = None) -> float:
        """Makes calls and returns the seconds until the last one's result is there.

        Args:
            calls: how many.
            key: of what was built; None takes the latest.
        """
        run = self.run if key is None else self.kept[key]
        begin = time.perf_counter()
        for _ in range(calls):
            result = run()
        self.synchronize(result)
        return time.perf_counter() - begin

    def memory(self, workload: Facts) -> Facts:
        """Trains three steps in this process, in which nothing was done before.

        Returns:
            `first`, the peak of memory up to the end of the first step in bytes, its compilation
            included; `peak`, that of the steps after it; `seconds`, what one of those takes; and
            what `train_step` returns. Without a device's own memory, the peaks are the growth of
            the process over what it took to load the library and train a network of a few hundred
            parameters.
        """
        self.train_step(_SMALL | {"dtype": workload["dtype"]})
        self.block(1)  # loads what is loaded once
        del self.run
        gc.collect()
        before = _resident()
        _forget_peak()
        facts = self.train_step(workload)
        self.block(1)
        first = self.device_peak()
        own_memory = first is not None
        if not own_memory:
            first = _peak() - before
            _forget_peak()
        seconds = self.block(2) / 2
        peak = self.device_peak() if own_memory else _peak() - before
        return {**facts, "first": first, "peak": peak, "seconds": seconds}


def _status(field: str) -> int:
    """A field of this process's status, in bytes."""
    if not _STATUS.exists():
        raise SegzooError(f"the memory of a process is read from Linux's {_STATUS}")
    text = _STATUS.read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _forget_peak() -> None:
    # 5 sets the peak back to what is resident now.
    _STATUS.with_name("clear_refs").write_text("5")


_STATUS = Path("/proc/self/status")


def start(
    name: str,
    platform: str | None,
    timeout: float,
    environment: Mapping[str, str | None] | None = None,
) -> Worker:
    """Starts a contestant's process.

    Args:
        name: of `TARGETS`.
        platform: "cpu" hides every GPU from it; "gpu" and None show it the first.
        timeout: seconds an answer may take.
        environment: further changes to the environment.
    """
    changes: dict[str, str | None] = {
        # Contestants share the GPU's memory, so none may take all of it.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
        # One device each, whatever the surroundings say.
        "XLA_FLAGS": None,
        "JAX_NUM_CPU_DEVICES": None,
        "CUDA_VISIBLE_DEVICES": _first_gpu(),
    }
    if platform == "cpu":
        changes |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return Worker(TARGETS[name], {**changes, **(environment or {})}, timeout)


def _first_gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
