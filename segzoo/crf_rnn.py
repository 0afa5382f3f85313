"""The dense CRF as layers that are trained (Zheng et al. 2015, arXiv:1502.03240)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops.dense_crf import DenseCRF, kernels, mean_field

Array = jax.Array


class CRFasRNN(nn.Module):
    """Mean field whose kernel weights and compatibilities are parameters.

    As in section 5.2 of the paper there is one weight per kernel and class, and a full, not
    necessarily symmetric matrix of compatibilities; they start as `config` and Potts. The widths of
    the kernels stay. Every image builds its lattice; no gradient goes into the image.

    Attributes:
        config: initial weights, widths and number of iterations (the paper trains with 5, tests
            with 10).
        capacity: rows of each appearance lattice; by default what the worst image needs. An image
            that needs more gives NaN.
    """

    config: DenseCRF = dataclasses.field(default_factory=lambda: DenseCRF(iterations=5))
    capacity: int | None = None

    @nn.compact
    def __call__(self, logits: Array, image: Array) -> Array:
        """Refines logits.

        Args:
            logits: float `[B, *S, K]`, K at least 2.
            image: `[B, *S, C]`, 0..255, not normalised.

        Returns:
            float32 `[B, *S, K]`, logits whose softmax are the marginals.
        """
        classes = logits.shape[-1]
        config = self.config
        initial = {"smoothness": config.smoothness_weight, "appearance": config.appearance_weight}
        weights = [
            self.param(name, nn.initializers.constant(weight), (classes,), jnp.float32)
            for name, weight in initial.items()
            if weight > 0
        ]
        potts = 1 - jnp.eye(classes, dtype=jnp.float32)
        compatibility = self.param("compatibility", lambda key: potts)

        def refine(one: tuple[Array, Array]) -> Array:
            logits, image = one
            found = kernels(image, config, self.capacity)
            flat = logits.reshape(-1, classes)
            refined = mean_field(flat, found, weights, compatibility, config.iterations)
            return refined.reshape(logits.shape)

        return lax.map(refine, (logits, jnp.asarray(image)))
