"""Where weights come from: a run folder, a file, ours or another library's, or the hub."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from segzoo.errors import SegzooError
from segzoo.weights import hub, known, torch_file
from segzoo.weights.fit import flatten
from segzoo.weights.hub import HubId
from segzoo.weights.info import FILE_NAME, ModelInfo
from segzoo.weights.known import Pretrained, pretrained

METADATA = "segzoo"  # the key of a ModelInfo in a safetensors file with our paths
EXPORTED = "segzoo-export"  # and in one with another library's names
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
        exported: the description in a file that `weights.export` wrote.
        known: what is known of them, where they were asked for by one of our names.
    """

    where: str
    tensors: Mapping[str, np.ndarray]
    info: ModelInfo | None = None
    notes: tuple[str, ...] = ()
    origin: str = ""
    exported: ModelInfo | None = None
    known: Pretrained | None = None


def read(source: Path | str) -> Source:
    """Reads weights, whole.

    Args:
        source: a run folder (its best checkpoint, else its latest); a file: `.safetensors`, ours or
            another library's, or PyTorch's `.pth` or `.pt`; a hub id `hf:owner/name`, see
            `weights.hub`; or a name from `weights.pretrained()`.

    Raises:
        SegzooError: when there is nothing of that name, or it is damaged or no weights.
    """
    path = Path(source)
    wanted = _on_hub(source)
    if wanted is not None:
        return _read_hub(str(source), wanted)
    if path.is_dir():
        return read_run(path)
    if not path.exists():
        near = difflib.get_close_matches(str(source), pretrained(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SegzooError(
            f"{path} does not exist; expected a run folder, a file of weights, hf:owner/name or a "
            f"name of weights.pretrained().{hint}"
        )
    return read_file(path)


def pin(source: str) -> str:
    """Returns the source with a floating revision on the hub replaced by the commit it is now.

    The file is downloaded, unless it is in the cache. A path stays as it is.

    Raises:
        SegzooError: when the hub has no such file, or cannot be reached.
    """
    wanted = _on_hub(source)
    if wanted is None or wanted.pinned:
        return source
    _, pinned = hub.fetch(wanted)
    return str(pinned) if hub.is_id(source) else f"{source.partition('@')[0]}@{pinned.revision}"


def is_pin_of(pinned: str | None, source: str | None) -> bool:
    """Whether `pin(source)` may have given `pinned`, at whatever revision."""
    if pinned is None or source is None:
        return False
    fixed, floating = _on_hub(pinned), _on_hub(source)
    return fixed is not None and floating is not None and fixed.stands_for(floating)


def _on_hub(source: Path | str) -> HubId | None:
    """The file on the hub a source names; a path of that name goes first."""
    if isinstance(source, Path) or Path(source).exists():
        return None
    if hub.is_id(source):
        return HubId.parse(source)
    return known.find(source)[1] if known.is_known(source) else None


def _read_hub(name: str, wanted: HubId) -> Source:
    path, pinned = hub.fetch(wanted)
    notes: tuple[str, ...] = ()
    if not wanted.pinned:
        notes = (f"{name} is now commit {pinned.revision} of hf:{pinned.repository}.",)
    row = None if hub.is_id(name) else known.find(name)[0]
    read = read_file(path, str(pinned))
    return dataclasses.replace(
        read, notes=(*notes, *read.notes), origin=read.origin or str(pinned), known=row
    )


def read_file(path: Path, where: str | None = None) -> Source:
    """Reads a file; see `read`.

    Args:
        path: the file; its ending says what it is.
        where: what it is called in messages; by default the path.
    """
    where = where or str(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, where)
    if path.suffix in TORCH_SUFFIXES:
        tensors, notes = torch_file.read(path, where)
        return Source(where, tensors, notes=notes)
    raise SegzooError(
        f"{where} is neither a run folder nor a file of weights (.safetensors, or PyTorch's "
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


def _read_safetensors(path: Path, where: str) -> Source:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: _tensor(file, name, where) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise SegzooError(f"{where} is not a whole safetensors file: {error}.") from error
    described = METADATA if METADATA in metadata else EXPORTED
    if described not in metadata:
        return Source(where, tensors)
    info = ModelInfo.from_text(metadata[described], f"{where} (metadata)")
    source = Source(where, tensors, origin=info.origin)
    if described == METADATA:
        return dataclasses.replace(source, info=info)
    return dataclasses.replace(source, exported=info)


def _tensor(file: Any, name: str, where: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError, KeyError) as error:  # a type numpy has not
        kind = file.get_slice(name).get_dtype()
        raise SegzooError(f"{where}: {name} is of type {kind}, which is not read here.") from error
