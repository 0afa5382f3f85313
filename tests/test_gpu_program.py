"""What is handed to XLA for a GPU, which needs none: no operation that is slow there."""

import re

import jax
import jax.numpy as jnp
import pytest

import segzoo


@pytest.mark.parametrize(
    ("name", "arguments", "wide"),
    [
        ("unet", {"width": 8}, 0),
        ("attention_unet", {"width": 8}, 0),
        ("segnet", {"width": 8}, 3),  # its last convolution, whose results are the logits
        ("fc_densenet56", {}, 0),
        ("deeplabv3plus", {"backbone": "resnet18"}, 0),
        ("efficientnet_b0", {}, 0),
    ],
)
def test_a_training_gradient_scatters_nothing_and_convolves_in_bfloat16(
    monkeypatch, name, arguments, wide
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = segzoo.get(name, num_classes=2, dtype=jnp.bfloat16, **arguments)
    image = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def objective(params, others, image):
        logits, _ = model.apply(
            {"params": params, **others},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.sum(jnp.sin(logits))

    others = {name: tree for name, tree in variables.items() if name != "params"}
    traced = jax.jit(jax.grad(objective)).trace(variables["params"], others, image)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    # Neither select-and-scatter, as of max-pools, nor scatter, as of unpooling and of gathers.
    assert "scatter" not in program
    results = re.findall(r"stablehlo\.convolution.* -> tensor<\S+x(\w+)>", program)
    assert results.count("bf16") > wide
    assert len(results) == results.count("bf16") + wide
