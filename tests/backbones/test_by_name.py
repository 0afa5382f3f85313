import jax
import jax.numpy as jnp
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.backbones.by_name import backbone, backbone_names


@pytest.mark.parametrize("name", segzoo.list_models(task="classification"))
def test_every_classifier_lends_its_encoder(name):
    assert name in backbone_names()
    encoder = backbone(name, dtype=jnp.bfloat16, axis_name="devices")
    assert (encoder.dtype, encoder.axis_name) == (jnp.bfloat16, "devices")
    assert list(encoder.reductions) == sorted(encoder.reductions)


def test_the_output_stride_is_the_encoders():
    encoder = backbone("resnet18", dtype=jnp.float32, axis_name=None, output_stride=8, width=8)
    assert encoder.reductions[-1] == 8
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    features, _ = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, train=False), image
    )
    assert features[-1].shape == (1, 8, 8, 64)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("resnet5", {}, "unknown backbone 'resnet5'. Did you mean 'resnet50'"),
        ("unet", {}, "unknown backbone 'unet'"),
        ("lenet5", {"output_stride": 16}, "backbone 'lenet5' has no output_stride to set"),
        ("vgg16", {"output_stride": 4}, "output_stride is 4; expected one of 8, 16, 32"),
        ("vgg16", {"widht": 4}, "model 'vgg16' has no override 'widht'"),
    ],
)
def test_mistakes(name, overrides, message):
    with pytest.raises(SegzooError) as caught:
        backbone(name, dtype=jnp.float32, axis_name=None, **overrides)
    assert message in str(caught.value)
