"""PyTorch's `.pth` and `.pt` files, without PyTorch and without unpickling.

Such a file holds the raw numbers of its tensors, and a pickle that says how they belong together,
which `pickle_machine` reads. Both formats are known: the zip archive of PyTorch 1.6 and later, and
what came before it. Sizes are checked against the file before memory is taken.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from segzoo.errors import SegzooError
from segzoo.weights.pickle_machine import Damaged, Machine, Refused, Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_SMALL = 2**24  # bytes a tensor may have in a smaller file, by repeating what is there
# What zipfile and struct raise over damaged files.
_BROKEN = (
    *(OSError, EOFError, ValueError, OverflowError, RuntimeError),
    *(zipfile.BadZipFile, struct.error),
)
_DEEPEST = 4  # dicts around a state dict

# What a checkpoint's dict calls the weights, likeliest first.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "student",
)


def read(
    path: Path | str, where: str | None = None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the tensors of a state dict that `torch.save` wrote.

    A state dict inside a checkpoint (`{"state_dict": ..., "epoch": ...}`) is found.

    Args:
        path: the file.
        where: what it is called in messages; by default the path.

    Returns:
        Arrays by name, in the order of the file: views, of the dtypes of the file; and sentences on
        what was passed over.

    Raises:
        SegzooError: when the file is damaged or holds no state dict, or asks for anything that
            would run code.
    """
    where = where or str(path)
    try:
        with Path(path).open("rb") as file:
            reader = _Archive(file) if zipfile.is_zipfile(file) else _Legacy(file)
            named, notes = _state_dict(reader.content, where)
            return {name: reader.array(tensor, name) for name, tensor in named.items()}, notes
    except Refused as refused:
        raise SegzooError(f"{where} {refused}.") from None
    except (Damaged, *_BROKEN) as error:
        raise SegzooError(f"{where} is not a whole file of torch.save: {error}.") from error


# --- the two formats -----------------------------------------------------------------------------


class _Reader:
    """What both formats share: the unpickled content, and arrays over the storages."""

    content: Any
    size: int  # of the file, in bytes
    swapped: bool  # whether its numbers are big-endian

    def __init__(self) -> None:
        self._raw: dict[str, np.ndarray] = {}
        self._held = 0

    def _bytes(self, key: str) -> bytes:
        """The bytes of a storage."""
        raise NotImplementedError

    def array(self, tensor: Tensor, name: str) -> np.ndarray:
        """Returns a tensor as a view of its storage."""
        storage = tensor.storage
        needed = (storage.start + storage.count) * storage.dtype.itemsize
        if storage.key not in self._raw:
            if needed + self._held > self.size:
                raise Damaged(f"the storage of {name} is larger than the file")
            data = self._bytes(storage.key)
            self._held += len(data)
            self._raw[storage.key] = np.frombuffer(data, np.uint8)
        raw = self._raw[storage.key]
        start = storage.start * storage.dtype.itemsize
        size = tensor.dtype.itemsize
        count = min(needed, len(raw)) - start
        last = tensor.offset + sum(
            (length - 1) * stride
            for length, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        empty = 0 in tensor.shape
        # Strides of zero make much of little.
        if not empty and math.prod(tensor.shape) * size > max(self.size, _SMALL):
            raise Damaged(f"{name} is larger than the file")
        if needed > len(raw) or (not empty and (last + 1) * size > count):
            raise Damaged(f"{name} reaches past the end of its storage")
        dtype = tensor.dtype.newbyteorder(">") if self.swapped else tensor.dtype
        flat = raw[start : start + count // size * size].view(dtype)
        if self.swapped:
            flat = flat.astype(tensor.dtype)
        if empty:
            return np.zeros(tensor.shape, tensor.dtype)
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :],
            tensor.shape,
            tuple(stride * size for stride in tensor.strides),
            writeable=False,
        )


class _Archive(_Reader):
    """The zip archive: `<name>/data.pkl`, `<name>/data/<key>`, `<name>/byteorder`."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.size = os.fstat(file.fileno()).st_size
        self._zip = zipfile.ZipFile(file)
        names = self._zip.namelist()
        found = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(found) != 1:
            raise Refused(
                f"is a zip archive with {len(found)} entries data.pkl; expected one, as torch.save "
                "writes it"
            )
        self._base = found[0].removesuffix("data.pkl")
        if f"{self._base}constants.pkl" in names:
            raise Refused("is a TorchScript program, which would run code; expected a state dict")
        has_order = f"{self._base}byteorder" in names
        self.swapped = has_order and self._entry("byteorder") == b"big"
        self.content = Machine().run(io.BytesIO(self._entry("data.pkl")))

    def _entry(self, name: str) -> bytes:
        try:
            entry = self._zip.getinfo(self._base + name)
        except KeyError:
            raise Damaged(f"it lacks the entry {name}") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Damaged(f"the entry {name} is compressed, which torch.save never does")
        if entry.file_size > self.size:
            raise Damaged(f"the entry {name} is larger than the file")
        return self._zip.read(entry)

    def _bytes(self, key: str) -> bytes:
        return self._entry(f"data/{key}")


class _Legacy(_Reader):
    """Magic number, protocol, system, content and keys, each a pickle; then the storages."""

    def __init__(self, opened: BinaryIO) -> None:
        super().__init__()
        self.size = os.fstat(opened.fileno()).st_size
        if self.size == 0:
            raise Damaged("it is empty")
        # Reading past the end of a map, however far, gives what is there and takes no memory.
        self._file = file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            magic = Machine().run(file)
        except (Damaged, Refused):
            magic = None
        if magic != _LEGACY_MAGIC:
            raise Damaged("it begins neither as a zip archive nor with PyTorch's magic number")
        if Machine().run(file) != _LEGACY_PROTOCOL:
            raise Damaged(f"its protocol is not {_LEGACY_PROTOCOL}")
        system = Machine().run(file)
        self.swapped = isinstance(system, dict) and system.get("little_endian") is False
        machine = Machine()
        self.content = machine.run(file)
        widths: dict[str, int] = {}
        for storage in machine.storages:
            if widths.setdefault(storage.key, storage.dtype.itemsize) != storage.dtype.itemsize:
                raise Damaged(f"the storage {storage.key} is of two types")
        self._places = dict(self._walk(Machine().run(file), widths))

    def _walk(self, keys: Any, widths: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yields where each storage lies: its first byte and its number of bytes."""
        order = ">" if self.swapped else "<"
        if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
            raise Damaged("it has no list of storages")
        for key in map(str, keys):
            (count,) = struct.unpack(f"{order}q", self._file.read(8))
            width = widths.get(key)
            start = self._file.tell()
            if width is None or count < 0 or start + count * width > self.size:
                raise Damaged(f"the storage {key} reaches past the end of the file")
            yield key, (start, count * width)
            self._file.seek(start + count * width)

    def _bytes(self, key: str) -> bytes:
        if key not in self._places:
            raise Damaged(f"it lacks the storage {key}")
        start, length = self._places[key]
        self._file.seek(start)
        return self._file.read(length)


# --- the state dict ------------------------------------------------------------------------------


def _state_dict(content: Any, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Finds the dict of tensors in what a file holds, and says which it was."""
    way: list[str] = []
    while len(way) < _DEEPEST:
        inner = _inner(content) if isinstance(content, dict) else {}
        if not inner:
            break
        names = sorted(inner, key=lambda name: _rank(name, inner))
        way.append(names[0])
        content = inner[names[0]]
    named = _tensors(content)
    if not named:
        raise Refused("holds no state dict: no dict of names and tensors is in it")
    notes = [f"the weights of {where} are in {'.'.join(way)}."] if way else []
    return named, tuple(notes)


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _inner(content: dict[Any, Any]) -> dict[str, Any]:
    """The entries that are, or hold, state dicts; none where `content` is one itself."""
    held = {
        name: value
        for name, value in content.items()
        if isinstance(name, str)
        and isinstance(value, dict)
        and (_tensors(value) or name in _WRAPPERS)
    }
    known = {name: value for name, value in held.items() if name in _WRAPPERS}
    return known if known or _tensors(content) else held


def _rank(name: str, inner: Mapping[str, Any]) -> tuple[int, int]:
    """The names checkpoints use first; then whatever holds the most tensors."""
    known = _WRAPPERS.index(name) if name in _WRAPPERS else len(_WRAPPERS)
    return known, -len(_tensors(inner[name]))
