"""The other libraries' networks: built, filled and run with torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from parity import Case, Outputs, draw, draw_image
from shim import torch, torchvision

with warnings.catch_warnings():  # theirs
    warnings.simplefilter("ignore")
    import timm

torch.set_num_threads(1)

# Where the features of our backbones are in each library, see `_capture`; VGG's are at its pools.
PLACES: dict[tuple[str, str], tuple[str, ...]] = {
    ("alexnet", "torchvision"): ("features.2:in", "features.5:in", "features.12:in", "features"),
    ("googlenet", "torchvision"): (
        "conv1",
        "conv3",
        "inception3b",
        "inception4e",
        "inception5b",
    ),
    ("inception_v2", "pretrainedmodels"): (
        "conv1_relu_7x7",
        "conv2_relu_3x3",
        "inception_3c_3x3_reduce:in",
        "inception_4e_3x3_reduce:in",
        "global_pool:in",
    ),
    ("resnet", "torchvision"): ("relu", *(f"layer{i}" for i in (1, 2, 3, 4))),
    ("resnet", "timm"): ("act1", *(f"layer{i}" for i in (1, 2, 3, 4))),
    ("densenet", "torchvision"): (
        "features.relu0",
        *(f"features.transition{i}.relu" for i in (1, 2, 3)),
        "features.norm5:relu",
    ),
    # timm's norms have their ReLU inside.
    ("densenet", "timm"): (
        "features.norm0",
        *(f"features.transition{i}.norm" for i in (1, 2, 3)),
        "features.norm5",
    ),
    ("efficientnet", "torchvision"): tuple(f"features.{i}" for i in (1, 2, 3, 5, 7)),
    ("efficientnet", "timm"): tuple(f"blocks.{i}" for i in (0, 1, 2, 4, 6)),
}


def build(case: Case) -> torch.nn.Module:
    """Returns the case's reference without values, in evaluation mode."""
    options = dict(case.options)
    with warnings.catch_warnings(), torch.device("meta"):  # drawing its own weights takes longer
        warnings.simplefilter("ignore")
        if case.library == "timm":
            network = timm.create_model(case.theirs, **options)
        elif case.library == "torchvision":
            if case.theirs == "googlenet":
                options["init_weights"] = False  # it asks for SciPy's truncated normals
            network = torchvision.models.get_model(case.theirs, **options)
        elif case.library == "segmentation_models_pytorch":
            library = importlib.import_module(case.library)
            network = library.__dict__[case.theirs](encoder_weights=None, **options)
        else:
            network = importlib.import_module(case.library).__dict__[case.theirs](
                pretrained=None, **options
            )
            # Its pool has the size of the features of a 224x224 image.
            network.global_pool = torch.nn.AdaptiveAvgPool2d(1)
    return network.eval()


def fill(network: torch.nn.Module, variances: Mapping[str, float]) -> None:
    """Gives a network the weights drawn for it."""
    tensors = {
        name: torch.zeros(())  # the count of batches
        if tensor.ndim == 0
        else torch.from_numpy(draw(name, tuple(tensor.shape), variances))
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(tensors, strict=True, assign=True)


def measure(case: Case, network: torch.nn.Module) -> dict[str, float]:
    """Measures the variance of what enters each normalisation, of those before it at unit scale.

    Args:
        case: what the network is.
        network: from `build`; is filled.
    """
    norms = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    variances = dict.fromkeys(norms, 1.0)
    fill(network, variances)

    def note(name: str) -> Any:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            # To three digits, the same on every processor.
            variances[name] = float(f"{args[0].var(correction=0):.3g}")
            for leaf in ("running_mean", "running_var"):
                statistic = getattr(module, leaf)
                drawn = draw(f"{name}.{leaf}", tuple(statistic.shape), variances)
                statistic.copy_(torch.from_numpy(drawn))

        return hook

    handles = [norm.register_forward_pre_hook(note(name)) for name, norm in norms.items()]
    outputs(case, network, draw_image(case.sizes[-1]))
    for handle in handles:
        handle.remove()
    return variances


def describe(case: Case) -> str:
    """Returns the library, its version and the network's name."""
    return f"{case.library} {importlib.metadata.version(case.library)} {case.theirs}"


def outputs(case: Case, network: torch.nn.Module, image: np.ndarray) -> Outputs:
    """Runs the reference: its logits, its features where ours has them, its auxiliary logits.

    Args:
        case: what the network is.
        network: from `build`.
        image: `[B, H, W, 3]`.
    """
    captured: dict[str, torch.Tensor] = {}
    handles = [
        _capture(network, place, captured, f"stage{i}")
        for i, place in enumerate(_places(case, network))
    ]
    heads = {"aux1": "inception4a", "aux2": "inception4d"} if getattr(network, "aux1", None) else {}
    handles += [_capture(network, place, captured, head) for head, place in heads.items()]
    with torch.inference_mode():
        result = network(torch.from_numpy(image.transpose(0, 3, 1, 2)).contiguous())
        if isinstance(result, dict):  # torchvision's segmenters
            found = {"logits": result["out"], "aux0": result["aux"]}
        else:
            found = {"logits": result}
        # It runs its auxiliary classifiers in training alone.
        for i, head in enumerate(heads):
            found[f"aux{i}"] = network.get_submodule(head)(captured.pop(head))
    for handle in handles:
        handle.remove()
    found |= captured
    return {
        name: np.ascontiguousarray(np.moveaxis(value.numpy(), 1, -1))
        for name, value in found.items()
    }


def _capture(
    network: torch.nn.Module, place: str, captured: dict[str, torch.Tensor], key: str
) -> Any:
    """Keeps what leaves the module `place`, or what enters it if that ends in ":in".

    ":relu" is for a ReLU that is no module.
    """
    name, _, which = place.partition(":")
    module = network.get_submodule(name)

    def keep(value: torch.Tensor) -> None:
        # A copy: what follows may work in place.
        captured[key] = value.relu() if which == "relu" else value.clone()

    if which == "in":
        return module.register_forward_pre_hook(lambda module, args: keep(args[0]))
    return module.register_forward_hook(lambda module, args, result: keep(result))


def _places(case: Case, network: torch.nn.Module) -> list[str]:
    """Where the reference has the features of our backbone, finest first."""
    family = type(case.build().backbone).__module__.rpartition(".")[2]
    if family == "vgg":
        layers = network.get_submodule("features").named_children()
        pools = [name for name, layer in layers if isinstance(layer, torch.nn.MaxPool2d)]
        return [*(f"features.{name}:in" for name in pools), "features"]
    if family == "xception":  # whose places timm knows
        return [str(place["module"]) for place in network.feature_info]
    prefix = next((f"{part}." for part in ("backbone", "encoder") if hasattr(network, part)), "")
    library = "torchvision" if prefix == "encoder." else case.library  # whose network it is
    return [prefix + place for place in PLACES[family, library]]
