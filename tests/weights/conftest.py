"""Writes what `torch.save` writes, byte by byte: no PyTorch, and no `pickle`."""

import dataclasses
import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass
class Global:
    """A name the reader is to look up."""

    home: str
    name: str


@dataclasses.dataclass
class Call:
    """`function(*arguments)`, to be done by the reader."""

    function: Any
    arguments: tuple[Any, ...]


@dataclasses.dataclass
class Persistent:
    """Something outside the pickle."""

    reference: Any


@dataclasses.dataclass
class Raw:
    """Bytes of the pickle as they are."""

    code: bytes


@dataclasses.dataclass
class Tensor:
    """A view of a storage: a vector under `key`; the claims may be lies."""

    storage: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    key: str = ""
    count: int | None = None
    view: tuple[int, int] | None = None  # of the older format: the first element and the number
    parameter: bool = False

    @classmethod
    def of(cls, array, **more):
        array = np.ascontiguousarray(array)
        strides = tuple(step // array.itemsize for step in array.strides)
        return cls(array.reshape(-1), array.shape, strides, **more)


class Writer:
    """A pickle and the storages it refers to."""

    def __init__(self, legacy):
        self.legacy = legacy
        self.storages = {}

    def code(self, value):
        match value:
            case Raw():
                return value.code
            case None | True | False:
                return {None: b"N", True: b"\x88", False: b"\x89"}[value]
            case int():
                size = value.bit_length() // 8 + 1
                return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                text = value.encode()
                return b"X" + struct.pack("<I", len(text)) + text
            case tuple():
                return b"(" + b"".join(map(self.code, value)) + b"t"
            case list():
                return b"](" + b"".join(map(self.code, value)) + b"e"
            case dict():
                items = (self.code(part) for item in value.items() for part in item)
                return b"}(" + b"".join(items) + b"u"
            case Global():
                return f"c{value.home}\n{value.name}\n".encode()
            case Call():
                return self.code(value.function) + self.code(value.arguments) + b"R"
            case Persistent():
                return self.code(value.reference) + b"Q"
            case Tensor():
                return self.tensor(value)
        raise TypeError(value)

    def tensor(self, tensor):
        key = tensor.key or str(id(tensor.storage))
        self.storages[key] = tensor.storage
        count = tensor.storage.size if tensor.count is None else tensor.count
        kind = Global("torch", STORAGES[tensor.storage.dtype.name])
        reference = ("storage", kind, key, "cpu", count)
        if self.legacy:
            view = None if tensor.view is None else (f"{key}/view", *tensor.view)
            reference = (*reference, view)
        hooks = Call(Global("collections", "OrderedDict"), ())
        arguments = (
            *(Persistent(reference), tensor.offset, tensor.shape, tensor.strides),
            *(False, hooks),
        )
        made = Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)
        if tensor.parameter:
            made = Call(Global("torch._utils", "_rebuild_parameter"), (made, True, hooks))
        return self.code(made)

    def pickled(self, value):
        return b"\x80\x02" + self.code(value) + b"."


def written(content, *, legacy=False, big=False, compression=zipfile.ZIP_STORED):
    """The bytes of a file that holds `content`."""
    writer = Writer(legacy)
    program = writer.pickled(content)
    order = ">" if big else "<"
    storages = {
        key: storage.astype(storage.dtype.newbyteorder(order)).tobytes()
        for key, storage in writer.storages.items()
    }
    if legacy:
        system = {"protocol_version": 1001, "little_endian": not big, "type_sizes": {"int": 4}}
        parts = [
            *map(writer.pickled, (0x1950A86A20F9469CFC6C, 1001, system)),
            program,
            writer.pickled(list(storages)),
        ]
        for key, raw in storages.items():
            parts += [struct.pack(f"{order}q", writer.storages[key].size), raw]
        return b"".join(parts)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("net/data.pkl", program)
        archive.writestr("net/byteorder", "big" if big else "little")
        for key, raw in storages.items():
            archive.writestr(f"net/data/{key}", raw)
        archive.writestr("net/version", "3\n")
    return buffer.getvalue()


@pytest.fixture
def torch_file(tmp_path):
    """`torch_file(content)`: the path of a file; `torch_file.Tensor` and so on make content."""

    def write(content, name="net.pth", **more):
        path = tmp_path / name
        path.write_bytes(written(content, **more))
        return path

    for part in (Tensor, Global, Call, Persistent, Raw):
        setattr(write, part.__name__, part)
    return write


@pytest.fixture
def state_dict():
    """`state_dict(tensors)`: arrays by name as content for `torch_file`."""
    return lambda tensors: {name: Tensor.of(array) for name, array in tensors.items()}
