"""Random initial values, all of a network's drawn in one loop.

Compiled, an initialiser of `flax.linen.initializers` becomes some forty operations of XLA's for
each array. In a deep network they take longer to compile than to train with for an epoch of a small
data set; here they are a single loop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core.tracers import current_trace
from jax import lax
from jax.extend import core

from segzoo.ops.threefry import encipher, words

__all__ = ["Initializer", "gaussian", "he_normal", "he_uniform", "init", "variance_scaling"]

Array = jax.Array
Kind = Literal["normal", "uniform"]

# Numbers of a pass of the loop. The last pass of an array draws some for nothing.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Initializer:
    """`(key, shape, dtype) -> Array`, as a parameter of a Flax module takes it.

    Attributes:
        alone: draws one array.
        kind: "normal", of standard deviation 1, or "uniform", between -1 and 1.
        factor: by the shape, what such numbers are multiplied by.
    """

    alone: nn.initializers.Initializer
    kind: Kind
    factor: Callable[[Sequence[int]], np.float32]

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """Draws an array, or has it drawn with the network's others where `init` asks for it."""
        requests = _requests.get()
        # Within a function that is traced by itself the key is of no use to anyone outside.
        if requests is None or requests.trace != current_trace() or dtype != jnp.float32:
            return self.alone(key, shape, dtype)
        # Not a number: whatever else were made of it would show.
        stand_in = jnp.full(shape, jnp.nan, dtype)
        draw = _Draw(tuple(shape), self.kind, float(self.factor(shape)))
        requests.made.append((stand_in, key, draw))
        return stand_in


def gaussian(deviation: float) -> Initializer:
    """Returns what draws from a normal distribution of mean 0 and this standard deviation."""
    alone = nn.initializers.normal(deviation)
    return Initializer(alone, "normal", lambda shape: np.float32(deviation))


def variance_scaling(scale: float, kind: Kind) -> Initializer:
    """Returns what draws from a distribution of mean 0 and variance `scale / N`.

    N is the number of inputs of an output: all axes but the last of the array multiplied.
    """
    alone = nn.initializers.variance_scaling(scale, "fan_in", kind)

    def factor(shape: Sequence[int]) -> np.float32:
        variance = np.float32(scale / max(1, math.prod(shape[:-1])))
        return np.sqrt(variance if kind == "normal" else np.float32(3) * variance)

    return Initializer(alone, kind, factor)


# Gaussian with standard deviation sqrt(2 / N), N the incoming nodes of a neuron (He et al. 2015,
# arXiv:1502.01852, eq. 10). Not truncated: the published variance is the variance.
he_normal = variance_scaling(2.0, "normal")
# Uniform in +-sqrt(6 / N): the same variance.
he_uniform = variance_scaling(2.0, "uniform")


def init(model: nn.Module, rngs: Array | dict[str, Array], *args: Any, **kwargs: Any) -> Any:
    """`model.init`, ready in seconds: neither the forward pass nor most initialisers are compiled.

    Args:
        model: any Flax module; what the initialisers of this file draw is drawn at once.
        rngs: a key, or keys by the names of their collections.
        *args: of the module's call, as `model.init` takes them.
        **kwargs: likewise.

    Returns:
        The variables that `jax.jit(model.init)` returns for a key of JAX's default kind, Threefry;
        for others the numbers are other ones of the same distributions. In a function that is being
        traced, what `model.init` returns.
    """
    # An array made here is traced where everything is, if no argument be.
    seen = jax.tree.leaves((jnp.zeros(()), rngs, args, kwargs))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in seen):
        return model.init(rngs, *args, **kwargs)
    draws: list[_Draw] = []
    drawn: list[int] = []  # where among the leaves

    def begin(rngs: Any) -> tuple[Any, list[Array]]:
        with _collected() as requests:
            variables = model.init(rngs, *args, **kwargs)
        places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(variables))}
        # Of a stand-in that is no leaf something else was made, which cannot be drawn for it.
        if all(id(stand_in) in places for stand_in, _, _ in requests.made):
            draws.extend(draw for _, _, draw in requests.made)
            drawn.extend(places[id(stand_in)] for stand_in, _, _ in requests.made)
            return variables, [key for _, key, _ in requests.made]
        return model.init(rngs, *args, **kwargs), []

    closed, shapes = jax.make_jaxpr(begin, return_shape=True)(rngs)
    given, outputs = jax.tree.leaves(rngs), closed.jaxpr.outvars
    count = len(jax.tree.leaves(shapes[0]))
    others = sorted(set(range(count)) - set(drawn))

    # Unoptimised they are ready much sooner, and they run once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    rest = jax.jit(_part(closed, [outputs[place] for place in others]), compiler_options=options)
    leaves = dict(zip(others, rest(*given), strict=True))
    # One by one: the same small program each time, which is compiled once.
    keys = _part(closed, outputs[count:])(*given)
    leaves.update(zip(drawn, _draw(keys, draws), strict=True))
    return jax.tree.unflatten(jax.tree.structure(shapes[0]), [leaves[i] for i in range(count)])


class _Draw(NamedTuple):
    shape: tuple[int, ...]
    kind: Kind
    factor: float

    @property
    def blocks(self) -> int:
        return -(-math.prod(self.shape) // _BLOCK)


class _Requests(NamedTuple):
    trace: Any
    made: list[tuple[Array, Array, _Draw]]  # what stands for the array, its key, what to draw


_requests: ContextVar[_Requests | None] = ContextVar("requests", default=None)


@contextmanager
def _collected() -> Iterator[_Requests]:
    requests = _Requests(current_trace(), [])
    token = _requests.set(requests)
    try:
        yield requests
    finally:
        _requests.reset(token)


def _part(closed: core.ClosedJaxpr, wanted: Sequence[Any]) -> Callable[..., list[Array]]:
    """A program's function that returns some of its variables, and computes what they need."""
    needed = {atom for atom in wanted if not isinstance(atom, core.Literal)}
    operations = []
    for eqn in reversed(closed.jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            operations.append(eqn)
            needed.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
    part = closed.jaxpr.replace(eqns=operations[::-1], outvars=list(wanted))
    return core.jaxpr_as_fun(core.ClosedJaxpr(part, closed.consts))


def _draw(keys: Sequence[Array], draws: Sequence[_Draw]) -> list[Array]:
    """The numbers of each draw, by its key."""
    made: dict[int, Array] = {}
    for kind in ("normal", "uniform"):
        chosen = [place for place, draw in enumerate(draws) if draw.kind == kind]
        if not chosen:
            continue
        blocks = [draws[place].blocks for place in chosen]
        numbers = np.asarray(
            _blocks(
                np.stack([np.asarray(words(keys[place])) for place in chosen]),
                np.array([draws[place].factor for place in chosen], np.float32),
                np.repeat(np.arange(len(chosen), dtype=np.int32), blocks),
                np.concatenate([np.arange(count, dtype=np.uint32) for count in blocks]),
                kind,
            )
        )
        # Cut by NumPy: XLA takes longer to compile that than the loop.
        for place, part in zip(chosen, np.split(numbers, np.cumsum(blocks)[:-1]), strict=True):
            shape = draws[place].shape
            made[place] = jnp.array(part.reshape(-1)[: math.prod(shape)].reshape(shape))
    return [made[place] for place in range(len(draws))]


@partial(jax.jit, static_argnums=4)
def _blocks(keys: Array, factors: Array, of: Array, number: Array, kind: Kind) -> Array:
    """`float32[blocks, _BLOCK]`: of the array `of[i]` the block `number[i]`.

    The numbers are those of `jax.random.normal` and `jax.random.uniform`, which are each made of
    its place in the array alone.
    """
    low = np.float32(-1) if kind == "uniform" else np.nextafter(np.float32(-1), np.float32(0))
    if kind == "normal":
        factors = factors * np.float32(math.sqrt(2))

    def block(which: tuple[Array, Array]) -> Array:
        of, number = which
        place = number * np.uint32(_BLOCK) + lax.iota(jnp.uint32, _BLOCK)
        a, b = encipher(keys[of], jnp.zeros_like(place), place)
        # 23 random bits as the mantissa of a number from 1 to 2.
        bits = (a ^ b) >> np.uint32(9) | np.float32(1).view(np.uint32)
        unit = lax.bitcast_convert_type(bits, jnp.float32) - 1
        even = jnp.maximum(low, unit * (1 - low) + low)
        return (even if kind == "uniform" else lax.erf_inv(even)) * factors[of]

    return lax.map(block, (of, number))
