"""What a model costs: parameters, operations and memory, without running it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from segzoo.errors import SegzooError
from segzoo.tiles import input_window
from segzoo.weights.store import COLLECTIONS

if TYPE_CHECKING:
    import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one forward pass at one input size.

    Attributes:
        input_shape: `[B, *S, C]`.
        output_shape: of the logits.
        parameters: number of trained values.
        state: number of values in `batch_stats`.
        flops: floating-point operations of the compiled program, a multiply-add counting two; None
            where the compiler does not say.
        peak_bytes: device memory of arguments, results and temporaries together; None likewise.
        platform: what was compiled for: "cpu", "gpu" or "tpu".
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    state: int
    flops: float | None
    peak_bytes: int | None
    platform: str


def measure(model: nn.Module, size: tuple[int, ...], channels: int, batch_size: int = 1) -> Cost:
    """Compiles a model's forward pass and reads its cost off the program; allocates no array.

    Args:
        model: any module of the zoo.
        size: `*S` of the input. For a model with `padding="VALID"`, the size of the output wanted.
        channels: C of the input.
        batch_size: B.

    Raises:
        SegzooError: for a size the model cannot take.
    """
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
    variables = {name: shapes[name] for name in COLLECTIONS if name in shapes}

    def forward(variables: Any, image: jax.Array) -> Any:
        return model.apply(variables, image)

    lowered = jax.jit(forward).lower(variables, image)
    compiled = lowered.compile()
    return Cost(
        input_shape=image.shape,
        output_shape=tuple(lowered.out_info.shape),
        parameters=_count(variables["params"]),
        state=_count(variables.get("batch_stats", {})),
        flops=_flops(compiled),
        peak_bytes=_peak(compiled),
        platform=jax.default_backend(),
    )


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
