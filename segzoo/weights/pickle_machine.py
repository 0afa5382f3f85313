"""The pickles inside PyTorch's files, run by a machine that calls nothing.

A pickle is a program for a small machine that can call any function there is. This one builds
containers, numbers, strings and descriptions of tensors; a request for anything else is refused
with its name. Python's own unpickler is not used even with its names restricted: a few bytes can
make it take any amount of memory.
"""

from __future__ import annotations

import dataclasses
import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    "float64": "f8",
    "double": "f8",
    "float32": "f4",
    "float": "f4",
    "float16": "f2",
    "half": "f2",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "int64": "i8",
    "long": "i8",
    "int32": "i4",
    "int": "i4",
    "int16": "i2",
    "short": "i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "bool": "?",
    "complex64": "c8",
    "complex128": "c16",
}
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "UntypedStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
}

# Names that stand for something without weights; checkpoints carry such things along.
_IGNORED = {
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.frozenset",
    "builtins.object",
    "builtins.set",
    "builtins.slice",
    "collections.Counter",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.nn.Parameter",
}
_MOST_AXES = 32
# What a pickle that is no pickle brings about.
_BROKEN = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError),
    Warning,
)


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name the pickle asks for; what it stands for is never imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Ignored:
    """An object without weights that checkpoints often carry along, such as a `Namespace`."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Raw numbers in the file: `count` of `dtype`, under `key`, from element `start` on."""

    key: str
    dtype: np.dtype
    count: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Damaged(Exception):
    """The file contradicts itself; the message says how."""


class Refused(Exception):
    """The file holds what is not read here; the message says what."""


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**60:
        raise Damaged("a size is no size")
    return value


class Machine:
    """Runs one pickle.

    Attributes:
        storages: all that it referred to.
    """

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._calls: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self._dict,
            "collections.defaultdict": lambda *_: {},
            "copyreg._reconstructor": lambda *_: _Ignored(),
            "torch.Size": lambda sizes=(): tuple(sizes),
            "torch._tensor._rebuild_from_type_v2": lambda function, _, arguments, __: self._call(
                function, arguments
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
        }

    def run(self, file: Any) -> Any:
        """Returns what the pickle at the file's place holds, and leaves the place behind it."""
        try:
            with warnings.catch_warnings(action="error"):
                for opcode, argument, _ in pickletools.genops(file):
                    if opcode.name == "STOP":
                        return self._stack.pop()
                    self._do(opcode.name, argument)
        except _BROKEN as error:
            raise Damaged(f"its pickle is broken ({type(error).__name__})") from error
        raise Damaged("its pickle does not end")

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _MADE:
            stack.append(_MADE[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._since_mark()
            stack.append(self._collected(name, items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(self._last(count))]
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            items = self._since_mark()
            self._put(stack[-1], items, pairs=name == "SETITEMS")
        elif name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            items = self._last(count)
            del stack[-count:]
            self._put(stack[-1], items, pairs=count == 2)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            stack.append(self._global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            home, what = self._last(2)
            stack[-2:] = [self._global(home, what)]
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._last(2)
            stack[-2:] = [self._call(function, arguments)]
        elif name == "NEWOBJ_EX":
            function, arguments, _ = self._last(3)
            stack[-3:] = [self._call(function, arguments)]
        elif name == "BUILD":
            stack.pop()  # the attributes of an object, none of which are weights
        elif name == "BINPERSID":
            stack[-1:] = [self._storage(stack[-1])]
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"uses the pickle operation {name}, which no state dict needs")

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise Damaged("its pickle takes more than there is")
        return self._stack[-count:]

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _collected(self, name: str, items: list[Any]) -> Any:
        if name == "DICT":
            made: dict[Any, Any] = {}
            self._put(made, items, pairs=True)
            return made
        return tuple(items) if name == "TUPLE" else items if name == "LIST" else _Ignored()

    def _put(self, into: Any, items: list[Any], pairs: bool) -> None:
        if isinstance(into, _Ignored):
            return
        if pairs != isinstance(into, dict) or not isinstance(into, dict | list):
            raise Damaged(f"its pickle puts items into a {type(into).__name__}")
        if isinstance(into, list):
            into.extend(items)
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Weights have names; hashing what else there is may take forever.
            if isinstance(key, str | int | float | bytes | None):
                into[key] = value

    def _global(self, home: Any, name: Any) -> _Global:
        """A name, if it is one of those that stand for tensors and what comes with them."""
        if not isinstance(home, str) or not isinstance(name, str):
            raise Damaged("its pickle asks for something without a name")
        home = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(home, home)
        full = f"{home}.{name}"
        known = (
            full in self._calls
            or full in _IGNORED
            or (home in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES)
            or (home == "torch" and name in _DTYPES)
            or (home == "builtins" and name in ("int", "float", "str", "bool", "list", "dict"))
        )
        if not known:
            raise Refused(
                f"holds {full[:120]}: to rebuild it would run code; expected a state dict of "
                "plain tensors, as torch.save(model.state_dict(), ...) writes it"
            )
        return _Global(full)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise Refused("calls something that is not a name, which would run code")
        if function.name in self._calls:
            return self._calls[function.name](*arguments)
        return _Ignored()

    def _storage(self, reference: Any) -> Storage:
        """A persistent id: `("storage", type, key, location, count)`, and a view of it or None."""
        if not isinstance(reference, tuple) or reference[:1] != ("storage",):
            raise Refused("refers to something outside it that is not a storage of numbers")
        if len(reference) not in (5, 6):
            raise Damaged("a storage has no size")
        _, kind, key, _, count, *rest = reference
        name = kind.name.rpartition(".")[2] if isinstance(kind, _Global) else ""
        if name not in _STORAGES or not isinstance(key, str | int):
            raise Damaged("a storage has no type or name")
        storage = Storage(str(key), jnp.dtype(_STORAGES[name]), _count(count))
        if rest and rest[0] is not None:
            _, start, length = rest[0]
            storage = dataclasses.replace(storage, start=_count(start), count=_count(length))
        self.storages.append(storage)
        return storage

    def _dict(self, pairs: Any = ()) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        self._put(made, [item for pair in pairs for item in pair], pairs=True)
        return made

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: Any = None
    ) -> Tensor:
        if not isinstance(storage, Storage):
            raise Damaged("a tensor has no storage")
        if not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise Damaged("a tensor has no shape")
        if len(shape) != len(strides) or len(shape) > _MOST_AXES:
            raise Damaged("a tensor has an impossible shape")
        sizes, steps = tuple(map(_count, shape)), tuple(map(_count, strides))
        return Tensor(storage, dtype or storage.dtype, _count(offset), sizes, steps)

    def _tensor_v3(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *others: Any
    ) -> Tensor:
        kind = others[2]  # after requires_grad and hooks
        name = kind.name.removeprefix("torch.") if isinstance(kind, _Global) else ""
        if name not in _DTYPES:
            raise Damaged("a tensor has no type")
        return self._tensor(storage, offset, shape, strides, dtype=jnp.dtype(_DTYPES[name]))


# Operations that push what follows them.
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
# Operations that push something of their own.
_MADE: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": _Ignored,
    "NEWFALSE": lambda: False,
    "NEWTRUE": lambda: True,
    "NONE": lambda: None,
}
