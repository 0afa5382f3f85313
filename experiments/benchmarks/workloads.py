"""What is trained and predicted in the benchmarks: a table of networks, image sizes and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from segzoo import registry

PLATFORMS = ("cpu", "gpu")
DTYPES = {"cpu": "float32", "gpu": "bfloat16"}  # of computation; parameters are float32
LEARNING_RATE = 1e-4  # of Adam, for everyone
MEAN, STD = 128.0, 64.0  # of every channel, by which everyone normalises

TORCH = ("torch", "torch-channels-last", "torch-compile", "torch-compile-channels-last")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and the images it sees.

    Attributes:
        model: its name in the registry.
        size: `*S` of the images.
        batch: images of a step, by platform.
        model_args: overrides of the model.
        classes: K; with 1 the loss is binary cross-entropy, else cross-entropy.
        channels: C of the images.
        peers: what it is timed beside, see `contestants`.
    """

    model: str
    size: tuple[int, ...]
    batch: Mapping[str, int]
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: int = 2
    channels: int = 3
    peers: tuple[str, ...] = TORCH

    @property
    def task(self) -> str:
        """Of the model: "semantic" or "classification"."""
        return registry.entry(self.model).task


def _batch(cpu: int, gpu: int) -> dict[str, int]:
    return {"cpu": cpu, "gpu": gpu}


# A batch of the CPU's takes a few seconds of two cores to train on.
WORKLOADS: dict[str, Workload] = {
    "unet64": Workload("unet", (128, 128), _batch(8, 64), peers=(*TORCH, "linen")),
    "unet32": Workload("unet", (128, 128), _batch(8, 64), {"width": 32}, peers=(*TORCH, "linen")),
    "unet64_360x480": Workload("unet", (360, 480), _batch(1, 8), peers=(*TORCH, "linen")),
    # The U-Net of the Keras tutorials: one logit, 64 to 1024 channels.
    "unet_keras": Workload(
        "unet", (128, 128), _batch(8, 32), classes=1, peers=("torch-channels-last", "keras")
    ),
    "attention_unet": Workload("attention_unet", (128, 128), _batch(4, 64)),
    "segnet": Workload("segnet", (360, 480), _batch(1, 8), classes=11, peers=(*TORCH, "linen")),
    "fcn8s": Workload("fcn8s", (320, 320), _batch(1, 16), classes=21),
    "deeplabv3plus_resnet50": Workload(
        "deeplabv3plus",
        (321, 321),
        _batch(4, 32),
        {"backbone": "resnet50", "separable": False},
        classes=21,
    ),
    "fc_densenet56": Workload("fc_densenet56", (224, 224), _batch(4, 32), classes=11),
    "unet3d": Workload(
        "unet",
        (64, 64, 64),
        _batch(1, 4),
        {"spatial_dims": 3, "width": 32, "depth": 3},
        channels=1,
        peers=(*TORCH, "linen"),
    ),
    "resnet50": Workload("resnet50", (224, 224), _batch(16, 128), classes=1000),
}

_TINY = {
    "unet": {"width": 4, "depth": 2},
    "attention_unet": {"width": 4},
    "segnet": {"width": 4},
    "fcn8s": {"width": 2},
    "fc_densenet56": {"width": 12},
}


def tiny(workload: Workload) -> Workload:
    """Returns the same network small and on small images, to see that everything works.

    ResNets keep their width: torchvision has no narrower ones.
    """
    side = 16 if len(workload.size) == 3 else 33 if workload.size == (321, 321) else 32
    return dataclasses.replace(
        workload,
        size=(side,) * len(workload.size),
        batch=dict.fromkeys(PLATFORMS, 2),
        model_args={**workload.model_args, **_TINY.get(workload.model, {})},
    )


def as_arguments(
    workload: Workload, platform: str, batch_size: int | None = None
) -> dict[str, Any]:
    """Returns what a contestant is told of a workload, as JSON can say it.

    Args:
        workload: the workload.
        platform: decides batch and dtype.
        batch_size: in place of the workload's.
    """
    return {
        "model": workload.model,
        "model_args": dict(workload.model_args),
        "task": workload.task,
        "classes": workload.classes,
        "size": list(workload.size),
        "channels": workload.channels,
        "batch": batch_size or workload.batch[platform],
        "dtype": DTYPES[platform],
    }
