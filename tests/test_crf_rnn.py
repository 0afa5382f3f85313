"""The dense CRF as trained layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segzoo.crf_rnn import CRFasRNN
from segzoo.ops.dense_crf import DenseCRF, dense_crf

CONFIG = DenseCRF(iterations=2, appearance_width=8.0, appearance_color=20.0)


def scene():
    rng = np.random.default_rng(0)
    label = np.broadcast_to(np.arange(10) >= 5, (1, 8, 10)).astype(np.int32)
    image = np.clip(90 + 80 * label[..., None] + rng.normal(0, 5, (1, 8, 10, 3)), 0, 255)
    logits = np.eye(3)[label] + rng.normal(size=(1, 8, 10, 3))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(image, jnp.uint8), jnp.asarray(label)


def test_starts_as_the_crf_it_is_given_and_learns():
    logits, image, label = scene()
    model = CRFasRNN(CONFIG, capacity=500)
    variables = jax.jit(model.init)(jax.random.key(0), logits, image)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {"smoothness": (3,), "appearance": (3,), "compatibility": (3, 3)}

    @jax.jit
    def step(variables, logits):
        def loss(variables, logits):
            refined = model.apply(variables, logits, image)
            losses = optax.softmax_cross_entropy_with_integer_labels(refined, label)
            return losses.mean(), refined

        gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, refined), (g, g_logits) = gradients(variables, logits)
        return jax.tree.map(lambda p, g: p - 0.2 * g, variables, g), value, refined, g, g_logits

    losses = []
    for i in range(4):
        variables, value, refined, gradients, into_logits = step(variables, logits)
        losses.append(float(value))
        if i == 0:
            expected = dense_crf(logits, image, CONFIG)
            np.testing.assert_allclose(jax.nn.softmax(refined), expected, atol=1e-5)
            assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients))
            assert np.abs(into_logits).max() > 1e-4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
