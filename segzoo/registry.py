"""The registry of models: a builder function's name is the key."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from segzoo.errors import SegzooError, check_name, check_positive_int, did_you_mean

if TYPE_CHECKING:
    import flax.linen as nn

TaskName = Literal["semantic", "instance", "classification"]
Builder = TypeVar("Builder", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One registered model.

    Attributes:
        name: the key, equal to the builder's name.
        builder: keyword-only function that returns a linen module.
        task: what the module's output means.
        paper: where it was published, as `arXiv:...` or a citation.
        input_shape: `(*S, C)` of a typical input, used where none is given (`segzoo info`, tests).
        parameters: how many trained values the published network has, exactly.
        gmacs: its published cost at `input_shape`, in 1e9 multiply-adds.
    """

    name: str
    builder: Callable[..., nn.Module]
    task: TaskName
    paper: str
    input_shape: tuple[int, ...]
    parameters: int | None = None
    gmacs: float | None = None

    @property
    def summary(self) -> str:
        """The first line of the builder's docstring."""
        return (inspect.getdoc(self.builder) or "").split("\n", 1)[0]

    @property
    def overrides(self) -> dict[str, Any]:
        """The names `get` accepts for this model, with their defaults."""
        parameters = inspect.signature(self.builder).parameters
        return {name: parameter.default for name, parameter in parameters.items()}


_ENTRIES: dict[str, ModelEntry] = {}


def register(
    *,
    task: TaskName,
    paper: str,
    input_shape: tuple[int, ...] = (224, 224, 3),
    parameters: int | None = None,
    gmacs: float | None = None,
) -> Callable[[Builder], Builder]:
    """Registers a builder under its own name.

    The builder takes keyword arguments only, each with a default, and passes them to a module. It
    must name every override it accepts: `**kwargs` would make misspelt overrides silent.

    Args:
        task: "semantic", "instance" or "classification".
        paper: the publication, e.g. "arXiv:1505.04597".
        input_shape: `(*S, C)` of a typical input.
        parameters: the exact number published for the builder's defaults, or counted by hand from
            the paper or on an independent implementation; the tests hold the builder to it.
        gmacs: 1e9 multiply-adds published for a forward pass at `input_shape`, likewise; 1 % off
            is the tests' tolerance.

    Raises:
        SegzooError: when the name is taken, or a parameter is not a plain keyword with a default.
    """

    def decorate(builder: Builder) -> Builder:
        name = builder.__name__
        known = _ENTRIES.get(name)
        # The same definition executed again (a reloaded module, a notebook cell) replaces itself.
        if known is not None and known.builder.__module__ != builder.__module__:
            raise SegzooError(
                f"model {name!r} is registered already, by {known.builder.__module__}."
            )
        for parameter in inspect.signature(builder).parameters.values():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise SegzooError(
                    f"builder {name!r} must name its overrides, not *{parameter.name}."
                )
            if parameter.default is parameter.empty:
                raise SegzooError(f"override {parameter.name!r} of {name!r} needs a default.")
        _ENTRIES[name] = ModelEntry(name, builder, task, paper, input_shape, parameters, gmacs)
        return builder

    return decorate


def with_fixed(name: str, builder: Callable[..., Any], summary: str, **fixed: Any) -> Any:
    """Returns a builder of the same networks under another name, some overrides fixed.

    What is fixed can no longer be overridden; everything else stays an override.

    Args:
        name: the new builder's name.
        builder: the general one.
        summary: the new builder's docstring.
        **fixed: values for overrides of `builder`.
    """

    def build(**overrides: Any) -> Any:
        return builder(**fixed, **overrides)

    signature = inspect.signature(builder)
    others = [p for p in signature.parameters.values() if p.name not in fixed]
    build.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    build.__name__ = build.__qualname__ = name
    build.__module__ = builder.__module__
    build.__doc__ = summary
    return build


@functools.cache
def _import_zoo() -> None:
    """Imports every model file once, on first need: `import segzoo` itself stays light."""
    importlib.import_module("segzoo.backbones")
    importlib.import_module("segzoo.models")


def entry(name: str) -> ModelEntry:
    """Returns the registry's entry for `name`.

    Raises:
        SegzooError: for an unknown name, with the nearest known ones.
    """
    _import_zoo()
    check_name("model", name, _ENTRIES)
    return _ENTRIES[name]


def get(name: str, **overrides: Any) -> nn.Module:
    """Builds the model registered under `name`.

    Args:
        name: a name from `list_models()`.
        **overrides: fields to change, by the words people know: `num_classes`, `width`, `depth`,
            `spatial_dims`, ... `segzoo.registry.entry(name).overrides` lists them.

    Returns:
        A linen module: a static description without parameters.

    Raises:
        SegzooError: for an unknown name or override (with near matches) or an impossible value.
    """
    found = entry(name)
    for override in overrides:
        if override not in found.overrides:
            raise SegzooError(
                f"model {name!r} has no override {override!r}."
                f"{did_you_mean(override, found.overrides)}"
            )
    if "num_classes" in overrides:
        check_positive_int("num_classes", overrides["num_classes"])
    return found.builder(**overrides)


def list_models(pattern: str = "*", *, task: TaskName | None = None) -> list[str]:
    """Returns the registered names that match a shell pattern, sorted.

    Args:
        pattern: e.g. `"*unet*"`.
        task: keep only models of this task.

    Raises:
        SegzooError: for an unknown task.
    """
    _import_zoo()
    if task is not None:
        check_name("task", task, ("semantic", "instance", "classification"))
    return sorted(
        name
        for name, found in _ENTRIES.items()
        if fnmatch.fnmatchcase(name, pattern) and task in (None, found.task)
    )
