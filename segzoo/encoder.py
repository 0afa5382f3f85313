"""The encoder inside a model: its stages, its features, and the model that goes on from them.

A model holds its encoder as the submodule `backbone`. What follows intercepts the call of it, so it
works for every such model and needs nothing of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.errors import SegzooError

NAME = "backbone"
Tree = dict[str, Any]


def encoder_stages(
    model: nn.Module, image_shape: tuple[int, ...], name: str = ""
) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the encoder's direct submodules, stage by stage.

    Args:
        model: nothing of it is run.
        image_shape: `(*S, C)` of an image.
        name: what to call the model in an error; by default its class.

    Raises:
        SegzooError: when the model has no encoder, or the encoder parameters outside its stages.
    """
    name = name or type(model).__name__
    found: list[tuple[tuple[str, ...], ...]] = []

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if _is_call_of_encoder(context):
            found.append(getattr(context.module, "stages", ()))
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    if not found:
        raise SegzooError(
            f"model {name!r} has no encoder of its own, so none can be fixed or trained at another "
            "rate; expected a model with a backbone."
        )
    stages = found[0]
    outside = set(shapes["params"].get(NAME, ())).difference(*stages)
    if outside:
        raise SegzooError(
            f"the encoder of {name!r} has parameters outside its stages: "
            f"{', '.join(sorted(outside))}."
        )
    return stages


def encode(model: nn.Module, variables: Tree, image: jax.Array) -> tuple[jax.Array, ...]:
    """Returns what a model's encoder answers to a batch, in inference mode, finest map first.

    Under `jit` the rest of the model is not computed.

    Args:
        model: a module with a backbone.
        variables: its `params` and, where it has any, `batch_stats`.
        image: `[B, *S, C]`, normalised.

    Raises:
        SegzooError: when the model has no encoder, or calls it more than once.
    """
    _, state = model.apply(
        variables,
        image,
        capture_intermediates=lambda module, method: (
            module.path == (NAME,) and method == "__call__"
        ),
        mutable=["intermediates"],
    )
    calls = state.get("intermediates", {}).get(NAME, {}).get("__call__", ())
    if len(calls) != 1:
        raise SegzooError(
            f"model {type(model).__name__!r} calls its encoder {len(calls)} times; features can be "
            "taken from one call."
        )
    features: tuple[jax.Array, ...] = calls[0]
    return features


def apply_with_features(
    model: nn.Module,
    variables: Tree,
    image: jax.Array,
    features: Sequence[jax.Array] | Mapping[int, jax.Array],
    **options: Any,
) -> Any:
    """Returns `model.apply(variables, image, **options)` with features in place of the encoder.

    Args:
        model: a module with a backbone.
        variables: its variables; those of the encoder are not used.
        image: `[B, *S, C]`, normalised, that the features were computed of.
        features: from `encode`; or some of them by their position, where the others do not change
            the result (see `used_features`).
        **options: for `model.apply`: `train`, `mutable`, `rngs`.
    """
    if isinstance(features, Mapping):
        shapes = jax.eval_shape(lambda v, x: encode(model, v, x), variables, image)
        zeros = (jnp.zeros(shape.shape, shape.dtype) for shape in shapes)
        features = [features.get(place, zero) for place, zero in enumerate(zeros)]

    def answer(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return tuple(features) if _is_call_of_encoder(context) else call(*args, **kwargs)

    with nn.intercept_methods(answer):
        return model.apply(variables, image, **options)


def used_features(model: nn.Module, variables: Tree, image: Any) -> tuple[int, ...]:
    """Returns the positions of the maps that logits and auxiliary logits depend on.

    Read off the program, without running it; a map may be named that is not used in the end, but
    none that is used is left out.

    Args:
        model: a module with a backbone.
        variables: its variables, or their shapes.
        image: `[B, *S, C]`, or its shape.
    """
    features = jax.eval_shape(lambda v, x: encode(model, v, x), variables, image)

    def head(features: tuple[jax.Array, ...], variables: Tree, image: jax.Array) -> Any:
        logits, sown = apply_with_features(
            model, variables, image, features, mutable=["aux_logits"]
        )
        return logits, sown

    program = jax.make_jaxpr(head)(features, variables, image).jaxpr
    alive = {id(variable) for variable in program.outvars}
    for equation in reversed(program.eqns):
        if any(id(variable) in alive for variable in equation.outvars):
            alive |= {id(variable) for variable in equation.invars}
    inputs = program.invars[: len(features)]
    return tuple(place for place, variable in enumerate(inputs) if id(variable) in alive)


def _is_call_of_encoder(context: Any) -> bool:
    module = context.module
    return context.method_name == "__call__" and module.scope is not None and module.path == (NAME,)
