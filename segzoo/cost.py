"""What a model costs: parameters, multiply-adds and memory, without running it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core

from segzoo.errors import SegzooError
from segzoo.ops.conv3d import convolve3d
from segzoo.ops.convolution import transposed_convolution
from segzoo.ops.convolve2d import convolve2d
from segzoo.ops.depthwise import depthwise_convolution
from segzoo.reach import called
from segzoo.tiles import input_window
from segzoo.weights.store import COLLECTIONS

if TYPE_CHECKING:
    import flax.linen as nn

# What calls of these are named.
_TRANSPOSED = inspect.unwrap(transposed_convolution).__name__
_DIRECT = {
    inspect.unwrap(call).__name__ for call in (convolve2d, convolve3d, depthwise_convolution)
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one forward pass at one input size.

    Attributes:
        input_shape: `[B, *S, C]`.
        output_shape: of the logits; of an instance model, of each of its answers by name.
        parameters: number of trained values.
        state: number of values in `batch_stats`.
        macs: multiply-adds of the whole batch, see `multiply_adds`.
    """

    input_shape: tuple[int, ...]
    output_shape: Any
    parameters: int
    state: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of one forward pass.

    Attributes:
        flops: floating-point operations, a multiply-add counting two; None where it does not say.
        peak_bytes: device memory of arguments, results and temporaries together; None likewise.
        platform: what was compiled for: "cpu", "gpu" or "tpu".
    """

    flops: float | None
    peak_bytes: int | None
    platform: str


def measure(model: nn.Module, size: tuple[int, ...], channels: int, batch_size: int = 1) -> Cost:
    """Counts a model's parameters and multiply-adds; compiles nothing, allocates no array.

    Args:
        model: any module of the zoo.
        size: `*S` of the input. For a model with `padding="VALID"`, the size of the output wanted.
        channels: C of the input.
        batch_size: B.

    Raises:
        SegzooError: for a size the model cannot take.
    """
    variables, image = _arguments(model, size, channels, batch_size)
    closed, output = jax.make_jaxpr(model.apply, return_shape=True)(variables, image)
    return Cost(
        input_shape=image.shape,
        output_shape=jax.tree.map(lambda leaf: tuple(leaf.shape), output),
        parameters=_count(variables.get("params", {})),
        state=_count(variables.get("batch_stats", {})),
        macs=multiply_adds(closed),
    )


def compile_for(
    model: nn.Module, size: tuple[int, ...], channels: int, batch_size: int = 1
) -> Program:
    """Compiles a model's forward pass for this device and reads its cost off the program.

    Args:
        model: any module of the zoo.
        size: see `measure`.
        channels: C of the input.
        batch_size: B.

    Raises:
        SegzooError: for a size the model cannot take.
    """
    variables, image = _arguments(model, size, channels, batch_size)
    compiled = jax.jit(model.apply).lower(variables, image).compile()
    return Program(
        flops=_flops(compiled), peak_bytes=_peak(compiled), platform=jax.default_backend()
    )


def multiply_adds(closed: core.ClosedJaxpr) -> int:
    """Counts the multiply-adds of a program's convolutions and matrix products.

    What published numbers count: every tap of every output, those that fall on padding too; a
    transposed convolution by its inputs, each of which every tap spreads. Not counted are products
    with constants (interpolation, pooling), additions of biases, normalisations and activations,
    nor what no result needs.

    Args:
        closed: from `jax.make_jaxpr`; its arguments are the parameters and the image.

    Returns:
        The number of multiply-adds.
    """
    jaxpr = closed.jaxpr
    return _multiply_adds(jaxpr, [True] * len(jaxpr.invars), [True] * len(jaxpr.outvars))


def _multiply_adds(jaxpr: core.Jaxpr, varying: Sequence[bool], needed: Sequence[bool]) -> int:
    """Counts what the needed results take, given which arguments are no constants."""
    varies = {var for var, known in zip(jaxpr.invars, varying, strict=True) if known}

    def flags(eqn: Any) -> list[bool]:
        return [not isinstance(a, core.Literal) and a in varies for a in eqn.invars]

    for eqn in jaxpr.eqns:
        if any(flags(eqn)):
            varies.update(eqn.outvars)
    wanted = {
        atom
        for atom, need in zip(jaxpr.outvars, needed, strict=True)
        if need and not isinstance(atom, core.Literal)
    }
    total = 0
    for eqn in reversed(jaxpr.eqns):
        results = [var in wanted for var in eqn.outvars]
        if not any(results):
            continue
        wanted.update(a for a in eqn.invars if not isinstance(a, core.Literal))
        inner = called(eqn)
        if eqn.params.get("name") == _TRANSPOSED:
            x, kernel = (_shape(atom) for atom in eqn.invars)
            total += math.prod(x[:-1]) * math.prod(kernel)
        elif eqn.params.get("name") in _DIRECT:
            total += math.prod(_shape(eqn.outvars[0])) * math.prod(_shape(eqn.invars[1])[:-1])
        elif inner is not None:
            total += _multiply_adds(inner.jaxpr, flags(eqn), results)
        elif all(flags(eqn)):
            total += _products(eqn)
    return total


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _products(eqn: Any) -> int:
    """The multiply-adds of one operation."""
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        inner = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
        kernel = _shape(eqn.invars[1])  # its input features are those of one group
        inner = math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        # Of a dilated input only every so manyth tap meets a value.
        inner //= math.prod(eqn.params["lhs_dilation"])
    else:
        return 0
    return math.prod(_shape(eqn.outvars[0])) * inner


def _arguments(
    model: nn.Module, size: tuple[int, ...], channels: int, batch_size: int
) -> tuple[dict[str, Any], jax.ShapeDtypeStruct]:
    """The shapes of a model's variables and of its image."""
    size, _ = input_window(model, size)
    image = jax.ShapeDtypeStruct((batch_size, *size, channels), jnp.float32)
    try:
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    except SegzooError:
        raise
    except (TypeError, ValueError) as error:  # shapes that do not work out, in the library's words
        reason = str(error).split("\n", 1)[0]
        raise SegzooError(
            f"an input of {' x '.join(map(str, size))} pixels and {channels} channels does not fit "
            f"{type(model).__name__}: {reason}"
        ) from error
    return {name: shapes[name] for name in COLLECTIONS if name in shapes}, image


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _flops(compiled: Any) -> float | None:
    analysis = compiled.cost_analysis()
    if isinstance(analysis, list):  # one per computation, in some versions of jax
        analysis = analysis[0] if analysis else None
    return analysis.get("flops") if analysis else None


def _peak(compiled: Any) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
