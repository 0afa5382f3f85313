"""Weights in and out: safetensors files, run folders, other libraries' files, the hub."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import safetensors.numpy

from segzoo import __version__, parallel, registry
from segzoo.errors import SegzooError, check_positive_int
from segzoo.files import write_atomically
from segzoo.initializers import init
from segzoo.weights.convert import to_theirs
from segzoo.weights.fit import (
    COLLECTIONS,
    examine,
    fit,
    flatten,
    refuse,
    shapes_of,
    unflatten,
)
from segzoo.weights.info import ModelInfo
from segzoo.weights.source import EXPORTED, METADATA, Source, read

if TYPE_CHECKING:
    import flax.linen as nn

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, nested dicts of arrays


def save(path: Path | str, variables: Mapping[str, Any], info: ModelInfo) -> None:
    """Writes one `.safetensors` file: float32 tensors `params/a/b/kernel`, the info as metadata.

    The file appears whole or not at all.

    Args:
        path: where to; must end in `.safetensors`.
        variables: `{"params": ..., "batch_stats": ...}`; other collections are left out.
        info: the description `load` rebuilds the model from.

    Raises:
        SegzooError: for another suffix, variables that do not fit the model, or an unwritable path.
    """
    tensors = _checked(path, variables, info)[1]
    _write(path, tensors, {METADATA: json.dumps(info.to_json())})


def export(
    path: Path | str, variables: Mapping[str, Any], info: ModelInfo, layout: str = "torchvision"
) -> None:
    """Writes a `.safetensors` file as another library stores the same network.

    Its `load_state_dict` takes the tensors as they are; `load` takes the file too, by the
    description in its metadata.

    Args:
        path: where to; must end in `.safetensors`.
        variables: as for `save`.
        info: the description.
        layout: the library: "torchvision", "timm", ...

    Raises:
        SegzooError: as `save`, and when the library has no such network, or no such part of it.
    """
    model, tensors = _checked(path, variables, info)
    named = to_theirs(tensors, model, layout)
    _write(path, named, {EXPORTED: json.dumps(info.to_json()), "format": "pt", "layout": layout})


def load(
    source: Path | str,
    model: str | None = None,
    *,
    in_channels: int | None = None,
    seed: int = 0,
    **overrides: Any,
) -> tuple[nn.Module, Variables, ModelInfo]:
    """Loads a model with its weights.

    What is adapted to overrides, and what is found out about another library's file, is said on
    stderr, a line each.

    Args:
        source: a run folder (its best checkpoint, else its latest); a file, `.safetensors` or
            PyTorch's `.pth` or `.pt`; a hub id `hf:owner/name[@revision][/file]`; or one of the
            names of `weights.pretrained()`.
        model: the model of the registry another library's file is for; our own files and the known
            names say it themselves.
        in_channels: by default as many as the weights take. With another number the first
            convolution is adapted, mean and std likewise.
        seed: of the initialisation of what starts afresh.
        **overrides: of the model. With another `num_classes` the head starts afresh.

    Returns:
        The module, its variables `{"params": ..., "batch_stats": ...}` (no `batch_stats` when the
        model has none) and the description of both.

    Raises:
        SegzooError: when the source cannot be read, or tensors are missing, unexpected, of another
            shape or not finite: all are listed.
    """
    if in_channels is not None:
        check_positive_int("in_channels", in_channels)
    found = read(source)
    described = found.info or found.exported
    if described is not None and model not in (None, described.model):
        raise SegzooError(
            f"{found.where} holds {described.model!r}, not {model!r}; weights.start_from takes the "
            "encoder of another model."
        )
    if described is None:
        info, channels = _described(found, model, overrides)
    else:
        info = dataclasses.replace(described, model_args={**described.model_args, **overrides})
        channels = described.in_channels
        if overrides.get("num_classes") not in (
            None,
            described.model_args.get("num_classes"),
        ):
            info = _with_classes(info)
    info = _with_channels(info, in_channels or channels)

    net = _built(info, found.where)
    shape = image_shape(net, info)
    fitted = fit(
        found.tensors,
        net,
        shape,
        found.where,
        native=found.info is not None,
        whole=repr(info.model),
        classes="num_classes" in overrides,
        channels=in_channels is not None,
    )
    for note in (*found.notes, *fitted.notes):
        parallel.log(note)
    values = dict(fitted.values)
    if fitted.fresh:
        values |= _initialised(net, shape, fitted.fresh, seed)
    return net, unflatten(values), info


def variable_shapes(model: nn.Module, info: ModelInfo) -> Variables:
    """Returns the variables the model would be initialised with, as `jax.ShapeDtypeStruct`s.

    Nothing is allocated or run; see `image_shape` for the input.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape(model, info)), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: shapes[name] for name in COLLECTIONS if name in shapes}


def image_shape(model: nn.Module, info: ModelInfo) -> tuple[int, ...]:
    """Returns `(*S, C)` of an image for the model: of `info.image_size`, else of typical size."""
    size = info.image_size or registry.entry(info.model).input_shape[:-1]
    if len(size) != info.spatial_dims:
        size = (min(size),) * info.spatial_dims
    if getattr(model, "padding", None) == "VALID" and hasattr(model, "input_size"):
        size = model.input_size(tuple(size))
    return (*size, info.in_channels)


def check_fits(variables: Mapping[str, Any], info: ModelInfo, where: str) -> nn.Module:
    """Builds the model of `info` and checks that the variables are exactly its own.

    Args:
        variables: nested dicts of arrays.
        info: names the model.
        where: what holds the variables, named in the error.

    Returns:
        The model.

    Raises:
        SegzooError: lists missing, unexpected and misshapen tensors.
    """
    found = flatten(variables)
    model = _built(info, where)
    expected = shapes_of(model, image_shape(model, info))
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(np.shape(found[name]))} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and np.shape(found[name]) != shape
        ],
    }
    refuse(faults, where, repr(info.model))
    return model


def _checked(
    path: Path | str, variables: Mapping[str, Any], info: ModelInfo
) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The model, and what is to be written of its variables, by path."""
    if Path(path).suffix != ".safetensors":
        raise SegzooError(f"weights are written as .safetensors; {path} ends otherwise.")
    kept = {name: variables[name] for name in COLLECTIONS if variables.get(name)}
    model = check_fits(kept, info, "the variables given")
    return model, {path: np.asarray(value, np.float32) for path, value in flatten(kept).items()}


def _write(path: Path | str, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    # `ascontiguousarray` would turn a scalar into a vector; safetensors writes memory order as is.
    packed = {name: np.array(value, order="C") for name, value in tensors.items()}
    write_atomically(path, safetensors.numpy.save(packed, metadata=metadata))


def _built(info: ModelInfo, where: str) -> nn.Module:
    try:
        return info.build()
    except SegzooError as error:
        raise SegzooError(f"{where}: {error}") from error


def _described(
    source: Source, model: str | None, overrides: Mapping[str, Any]
) -> tuple[ModelInfo, int]:
    """Describes another library's weights, by what is known of them and by their shapes.

    Returns:
        The description, of three channels, and the number of channels the weights take.
    """
    known = source.known
    name = model or (known.model if known is not None else None)
    if name is None:
        raise SegzooError(
            f"{source.where} does not say which model it is for: give its name, as in "
            f"segzoo.load({source.where!r}, 'resnet50')."
        )
    entry = registry.entry(name)
    args = {**(known.model_args if known is not None and known.model == name else {}), **overrides}
    info = ModelInfo(
        model=name,
        model_args=args,
        class_names=(),
        palette=(),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        task=entry.task,
        image_size=known.image_size if known is not None else None,
        image_fit="resize",
        segzoo_version=__version__,
        origin=source.origin,
    )
    net = _built(info, source.where)
    told = examine(source.tensors, net, image_shape(net, info), source.where)
    args.setdefault("num_classes", told.classes or entry.overrides["num_classes"])
    expects = known or told.layout
    info = dataclasses.replace(info, model_args=args, mean=expects.mean, std=expects.std)
    return _with_classes(info), told.channels or 3


def _with_classes(info: ModelInfo) -> ModelInfo:
    """The description with classes that have numbers for names."""
    count = int(info.model_args["num_classes"])
    return dataclasses.replace(
        info, class_names=tuple(f"class {i}" for i in range(count)), palette=()
    )


def _with_channels(info: ModelInfo, channels: int) -> ModelInfo:
    """The description with mean and std for another number of channels, as the kernel has it."""
    if channels == info.in_channels:
        return info
    mean, std = (
        (float(np.mean(values)),)
        if channels == 1
        else tuple(values[i % len(values)] for i in range(channels))
        for values in (info.mean, info.std)
    )
    return dataclasses.replace(info, in_channels=channels, mean=mean, std=std)


def _initialised(
    model: nn.Module, shape: Sequence[int], paths: Iterable[str], seed: int
) -> dict[str, np.ndarray]:
    """Some of a model's variables as its initialisers make them."""

    keys = {"params": jax.random.key(seed)}
    fresh = flatten(init(model, keys, np.zeros((1, *shape), np.float32)))
    return {path: np.asarray(fresh[path]) for path in paths}
