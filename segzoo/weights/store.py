"""Weights in and out: safetensors files and run folders. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from segzoo import registry
from segzoo.errors import SegzooError
from segzoo.files import write_atomically
from segzoo.weights.info import FILE_NAME, ModelInfo

if TYPE_CHECKING:
    import flax.linen as nn

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, nested dicts of arrays

COLLECTIONS = ("params", "batch_stats")
_METADATA = "segzoo"


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
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SegzooError(f"weights are written as .safetensors; {path} ends otherwise.")
    kept = {name: variables[name] for name in COLLECTIONS if variables.get(name)}
    check_fits(kept, info, "the variables given")
    # `ascontiguousarray` would turn a scalar into a vector; safetensors writes memory order as is.
    tensors = {
        name: np.array(value, dtype=np.float32, order="C") for name, value in _flatten(kept).items()
    }
    write_atomically(
        path, safetensors.numpy.save(tensors, metadata={_METADATA: json.dumps(info.to_json())})
    )


def load(path: Path | str) -> tuple[nn.Module, Variables, ModelInfo]:
    """Loads a model with its weights.

    Args:
        path: a run folder (its best checkpoint, else its latest) or a `.safetensors` file.

    Returns:
        The module, its variables `{"params": ..., "batch_stats": ...}` (no `batch_stats` when the
        model has none) and the description of both.

    Raises:
        SegzooError: when the path is missing, no run folder and no segzoo file, damaged, or holds
            tensors that do not fit the model.
    """
    path = Path(path)
    if path.is_dir():
        return _load_run(path)
    if not path.exists():
        raise SegzooError(f"{path} does not exist; expected a run folder or a .safetensors file.")
    if path.suffix != ".safetensors":
        raise SegzooError(f"{path} is neither a run folder nor a .safetensors file.")
    return _load_file(path)


def variable_shapes(model: nn.Module, info: ModelInfo) -> Variables:
    """Returns the variables the model would be initialised with, as `jax.ShapeDtypeStruct`s.

    Nothing is allocated or run. The input is of `info.image_size`, else of the registry's typical
    size: parameters depend on it only in classifiers.
    """
    size = info.image_size or registry.entry(info.model).input_shape[:-1]
    if len(size) != info.spatial_dims:
        size = (min(size),) * info.spatial_dims
    if getattr(model, "padding", None) == "VALID" and hasattr(model, "input_size"):
        size = model.input_size(tuple(size))
    image = jax.ShapeDtypeStruct((1, *size, info.in_channels), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: shapes[name] for name in COLLECTIONS if name in shapes}


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
    return _check_fits(_flatten(variables), info, where)


def _check_fits(found: Mapping[str, Any], info: ModelInfo, where: str) -> nn.Module:
    """`check_fits` for tensors by their path, as a file holds them."""
    try:
        model = info.build()
    except SegzooError as error:
        raise SegzooError(f"{where}: {error}") from error
    expected = _flatten(variable_shapes(model, info))
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {list(np.shape(found[name]))} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and np.shape(found[name]) != expected[name].shape
    ]
    faults = [
        _few(fault, names)
        for fault, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if faults:
        raise SegzooError(f"{where} does not fit {info.model!r}: {'; '.join(faults)}.")
    return model


def _load_run(folder: Path) -> tuple[nn.Module, Variables, ModelInfo]:
    if not (folder / FILE_NAME).exists():
        runs = sorted(found.parent.name for found in folder.glob(f"*/{FILE_NAME}"))
        inside = f" It holds the run folders {', '.join(runs[:5])}." if runs else ""
        raise SegzooError(f"{folder} is not a run folder: it has no {FILE_NAME}.{inside}")
    from segzoo.checkpoint import restore_variables  # Orbax takes seconds to import
    from segzoo.experiment import load as load_experiment

    info = ModelInfo.read(folder)
    config = folder / "config.json"
    mode = load_experiment(config).mode if config.exists() else "max"
    variables, step = restore_variables(folder, which="best", mode=mode)
    model = check_fits(variables, info, str(folder))
    return model, variables, dataclasses.replace(info, step=step)


def _load_file(path: Path) -> tuple[nn.Module, Variables, ModelInfo]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise SegzooError(f"{path} is not a whole safetensors file: {error}.") from error
    if _METADATA not in metadata:
        raise SegzooError(
            f"{path} carries no segzoo description: only files written by segzoo.weights.save load."
        )
    info = ModelInfo.from_text(metadata[_METADATA], f"{path} (metadata)")
    model = _check_fits(tensors, info, str(path))
    return model, traverse_util.unflatten_dict(tensors, sep="/"), info


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """`{"params/a/b/kernel": array}`; empty collections vanish."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def _few(fault: str, names: list[str], most: int = 3) -> str:
    more = ", ..." if len(names) > most else ""
    tensors = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {tensors} {fault}: {', '.join(names[:most])}{more}"
