"""U-Net's decoder on an encoder: counts, channels, dilated encoders, another library's files."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import segzoo
from segzoo import weights
from segzoo.backbones.resnet import ResNet
from segzoo.models.unet_encoder import EncoderUNet
from segzoo.weights import flatten
from segzoo.weights.convert import layouts_of, to_theirs

SHAPE = (1, 64, 64, 3)


def shapes_of(model, shape=SHAPE):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 14_328_354), ("resnet34", 24_436_514), ("resnet50", 32_521_250)],
)
def test_the_counts_of_segmentation_models_pytorch(count_parameters, name, count):
    assert count_parameters(segzoo.get("unet", backbone=name), SHAPE) == count


def test_channels_of_the_decoder():
    params = shapes_of(segzoo.get("unet", backbone="resnet34"))["params"]
    widths = [params[f"up{level}"]["conv1"]["conv"]["kernel"].shape[2:] for level in range(5)]
    # What comes from below and the encoder's map, to 16, 32, 64, 128 and 256 channels.
    assert widths == [(32, 16), (64 + 64, 32), (128 + 64, 64), (256 + 128, 128), (512 + 256, 256)]
    assert params["score"]["kernel"].shape == (3, 3, 16, 2)


def test_transposed_convolutions_are_the_papers():
    params = shapes_of(segzoo.get("unet", backbone="resnet18", upsample="transpose"))["params"]
    kernels = [params[f"upsample{level}"]["kernel"].shape for level in range(5)]
    channels = (16, 32, 64, 128, 256, 512)
    assert kernels == [(2, 2, channels[i + 1], channels[i]) for i in range(5)]


@pytest.mark.parametrize("upsample", ["nearest", "transpose"])
def test_a_dilated_encoder_keeps_a_step_for_each_map(filled, upsample):
    backbone = ResNet(18, 4, output_stride=8)
    model = EncoderUNet(3, jnp.float32, None, backbone, width=2, upsample=upsample)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 20, 9, 3)), jnp.float32)
    variables = filled(model, image.shape)
    assert {f"up{level}" for level in range(5)} <= set(variables["params"])
    ups = {name for name in variables["params"] if name.startswith("upsample")}
    # Between maps of one stride there is nothing to up-sample.
    expected = {"upsample0", "upsample1", "upsample2"} if upsample == "transpose" else set()
    assert ups == expected
    logits = jax.jit(model.apply)(variables, image)
    assert logits.shape == (1, 20, 9, 3)
    assert np.isfinite(logits).all()


def test_a_step_may_span_more_than_a_factor_of_two(filled):
    class Encoder(nn.Module):
        reductions = (1, 4)

        @nn.compact
        def __call__(self, image, *, train):
            return image, nn.avg_pool(image, (4, 4), (4, 4))

    model = EncoderUNet(2, jnp.float32, None, Encoder(), width=3, upsample="transpose")
    variables = filled(model, (1, 7, 5, 2))
    assert variables["params"]["upsample0"]["kernel"].shape == (4, 4, 2, 3)
    assert jax.jit(model.apply)(variables, jnp.ones((1, 7, 5, 2))).shape == (1, 7, 5, 2)


def test_drop_out_is_at_the_end_of_the_contracting_path(filled):
    model = segzoo.get("unet", backbone="alexnet", width=16, dropout=0.5, norm="group")
    image = jnp.ones(SHAPE)
    variables = filled(model, SHAPE)

    def apply(key):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, image, train=True, rngs=rngs)

    run = jax.jit(apply)
    assert np.any(run(0) != run(1))
    assert set(variables) == {"params"}  # the norm of the decoder is by groups


def test_bfloat16_computes_near_float32(filled):
    image = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    exact, half = (
        segzoo.get("unet", backbone="alexnet", width=16, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    variables = filled(exact, SHAPE)
    logits, reference = (jax.jit(model.apply)(variables, image) for model in (half, exact))
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - reference).max() < 0.1 * np.abs(reference).max()


def test_a_file_of_segmentation_models_pytorch(tmp_path, filled):
    model = segzoo.get("unet", backbone="resnet18", width=4, num_classes=3)
    learnt = flatten(filled(model, SHAPE))
    theirs = to_theirs(learnt, model, "segmentation_models_pytorch")
    assert theirs["decoder.blocks.0.conv1.0.weight"].shape == (16, 32 + 16, 3, 3)  # the coarsest
    assert "segmentation_head.0.bias" in theirs
    path = tmp_path / "unet.safetensors"
    safetensors.numpy.save_file(theirs, path)

    again, loaded, info = segzoo.load(path, "unet", backbone="resnet18", width=4)
    assert again == model
    assert info.model_args == {"backbone": "resnet18", "width": 4, "num_classes": 3}
    for name, value in flatten(loaded).items():
        np.testing.assert_array_equal(value, learnt[name], err_msg=name)

    # To another decoder, and to a classifier, it gives the encoder.
    for name, overrides in {"fcn16s": {"backbone": "resnet18"}, "resnet18": {}}.items():
        other = segzoo.get(name, width=4, **overrides)
        fresh = filled(other, SHAPE, seed=1)
        started, _ = weights.start_from(path, fresh, other, SHAPE[1:])
        for place, value in flatten(started).items():
            expected = learnt if "/backbone/" in place else flatten(fresh)
            np.testing.assert_array_equal(value, expected[place], err_msg=place)


@pytest.mark.parametrize(
    "overrides",
    [{"backbone": "densenet121"}, {"upsample": "transpose"}, {"norm": "group"}],
    ids=str,
)
def test_another_decoder_or_encoder_is_not_theirs(overrides):
    model = segzoo.get("unet", **{"backbone": "resnet18", **overrides})
    libraries = {layout.library for layout in layouts_of(model)}
    assert libraries == {"torchvision", "timm"}  # the encoder's alone
