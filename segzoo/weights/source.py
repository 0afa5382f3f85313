"""Where weights come from: a run folder or a file, ours or another library's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors

from segzoo.errors import SegzooError
from segzoo.weights import torch_file
from segzoo.weights.fit import flatten
from segzoo.weights.info import FILE_NAME, ModelInfo

METADATA = "segzoo"  # the key of a ModelInfo in a safetensors file
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .pth.tar is a habit


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that were read.

    Attributes:
        where: where from, named in messages.
        tensors: by our paths where there is an `info`, else by another library's names.
        info: the description our own files carry.
        notes: sentences on how they were read.
        origin: where they came from, so that they can be found again.
    """

    where: str
    tensors: Mapping[str, np.ndarray]
    info: ModelInfo | None = None
    notes: tuple[str, ...] = ()
    origin: str = ""


def read(source: Path | str) -> Source:
    """Reads weights, whole.

    Args:
        source: a run folder (its best checkpoint, else its latest) or a file: `.safetensors`, ours
            or another library's, or PyTorch's `.pth` or `.pt`.

    Raises:
        SegzooError: when there is nothing of that name, or it is damaged or no weights.
    """
    path = Path(source)
    if path.is_dir():
        return read_run(path)
    if not path.exists():
        raise SegzooError(f"{path} does not exist; expected a run folder or a file of weights.")
    return read_file(path)


def read_file(path: Path) -> Source:
    """Reads a file; see `read`."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        tensors, notes = torch_file.read(path)
        return Source(str(path), tensors, notes=notes, origin=path.name)
    raise SegzooError(
        f"{path} is neither a run folder nor a file of weights (.safetensors or PyTorch's "
        f"{', '.join(TORCH_SUFFIXES)})."
    )


def read_run(folder: Path) -> Source:
    """Reads a run folder; see `read`."""
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
    info = dataclasses.replace(info, step=step)
    return Source(str(folder), flatten(variables), info, origin=info.origin)


def _read_safetensors(path: Path) -> Source:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {}
            for name in file.keys():  # noqa: SIM118
                try:
                    tensors[name] = file.get_tensor(name)
                except (AttributeError, TypeError, KeyError) as error:
                    kind = file.get_slice(name).get_dtype()
                    raise SegzooError(
                        f"{path}: {name} is of the type {kind}, which is not read here."
                    ) from error
    except (safetensors.SafetensorError, OSError) as error:
        raise SegzooError(f"{path} is not a whole safetensors file: {error}.") from error
    if METADATA not in metadata:
        return Source(str(path), tensors, origin=path.name)
    info = ModelInfo.from_text(metadata[METADATA], f"{path} (metadata)")
    return Source(str(path), tensors, info, origin=info.origin)
