"""Receptive fields: those of the literature, and those of the values themselves."""

from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError, registry
from segzoo.backbones.vgg import VGG
from segzoo.layers import Conv, ConvNormAct, max_pool
from segzoo.ops.convolution import as_written
from segzoo.reach import Reach, reach
from segzoo.receptive_field import describe, model_fields, receptive_fields


def sizes(model, **arguments):
    return [found[0].size for found in receptive_fields(model, train=False, **arguments)]


class TestLiterature:
    """The recursion r + (k - 1) d j, by hand, and published numbers."""

    def test_vgg(self):
        # conv5_3 and pool5 of VGG-16; 404 after the 7x7 convolution is Table 1 of arXiv:1411.4038.
        *_, conv5, pool5 = receptive_fields(VGG(16, width=1), train=False)
        assert [(axis.size, axis.stride, axis.start) for axis in conv5] == [(196, 16, -90)] * 2
        assert [(axis.size, axis.stride, axis.start) for axis in pool5] == [(212, 32, -90)] * 2
        assert 212 + (7 - 1) * 32 == 404
        assert sizes(VGG(11, width=1))[-1] == 150
        assert sizes(VGG(19, width=1))[-1] == 268

    def test_fcn_sees_404_pixels_before_it_upsamples(self):
        model = segzoo.get("fcn32s", width=2)

        class Conv7(nn.Module):
            @nn.compact
            def __call__(self, image):
                *_, pool5 = VGG(16, 1, first_padding=100, ceil_mode=True)(image, train=False)
                return Conv(1, (7, 7), padding="VALID")(pool5)

        (before,) = {axis.size for axis in receptive_fields(Conv7())}
        assert before == 404
        # Up-sampled, each pixel is interpolated between two positions, 32 pixels apart.
        assert {axis.size for axis in receptive_fields(model)} == {404 + 32}

    def test_alexnet(self):
        # 355 after a 6x6 convolution on pool5 is Table 1 of arXiv:1411.4038.
        assert sizes(segzoo.get("alexnet", width=4).backbone)[-1] == 195
        assert 195 + (6 - 1) * 32 == 355

    def test_googlenet(self):
        # With the paper's 5x5 convolutions and 3x3 pools 715, and 907 after the 7x7 average of its
        # classifier: Table 1 of arXiv:1411.4038.
        paper = segzoo.get("googlenet", variant="paper", width=8).backbone
        assert sizes(paper)[-1] + (7 - 1) * 32 == 907

    @pytest.mark.parametrize(
        ("variant", "by_hand"),
        [("torchvision", [7, 35, 91, 267, 427]), ("paper", [7, 35, 99, 291, 483])],
    )
    def test_resnet(self, variant, by_hand):
        # The variants differ in where a stage strides: in its first 3x3 convolution, or before it.
        fields, field, jump = [7], 7 + 2 * 2, 4
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                strides = stage > 0 and block == 0
                jump *= 2 if strides and variant == "paper" else 1
                field += 2 * jump
                jump *= 2 if strides and variant == "torchvision" else 1
            fields.append(field)
        assert fields == by_hand
        assert sizes(segzoo.get("resnet50", width=4, variant=variant).backbone) == by_hand

    def test_dilation_keeps_the_field_and_halves_the_stride(self):
        usual = receptive_fields(segzoo.get("resnet18", width=4).backbone, train=False)
        dilated = receptive_fields(
            segzoo.get("resnet18", width=4, output_stride=8).backbone, train=False
        )
        assert [axes[0].size for axes in usual][:3] == [axes[0].size for axes in dilated][:3]
        assert [axes[0].stride for axes in usual] == [2, 4, 8, 16, 32]
        assert [axes[0].stride for axes in dilated] == [2, 4, 8, 8, 8]
        assert usual[-1][0].size == dilated[-1][0].size == 435

    def test_unet(self):
        # Down: 5 at full resolution, then each level adds a pool and two convolutions, 4 j + j/2.
        down = 5
        for jump in (2, 4, 8, 16):
            down += jump // 2 + 4 * jump
        assert down == 140
        # Up: convolutions of the coarser level first, then those of the finer ones; 188 pixels
        # around the places where up-convolutions do not straddle two positions.
        field = receptive_fields(segzoo.get("unet", width=2))
        assert [(axis.size, axis.stride) for axis in field] == [(204, 1)] * 2
        near = receptive_fields(segzoo.get("unet_precision", width=2, num_classes=1))
        assert near[0].size == 44

    def test_squeeze_and_excitation_sees_the_whole_image(self):
        fields = model_fields(segzoo.get("efficientnet_b0", width=8), logits=False)
        assert list(fields) == ["1/2", "1/4", "1/8", "1/16", "1/32"]
        assert describe(fields["1/32"]) == "851 + whole image"
        assert all(axis.whole_image for axes in fields.values() for axis in axes)


def test_the_logits_of_a_classifier_see_all_there_is():
    fields = model_fields(segzoo.get("resnet18", width=4))
    assert describe(fields["logits"]) == "whole image"
    assert fields["logits"][0].size is None
    assert describe(fields["1/32"]) == "435"


def test_maps_of_equal_reduction_are_told_apart():
    model = segzoo.get("resnet18", width=4, output_stride=8)
    assert list(model_fields(model, logits=False)) == ["1/2", "1/4", "1/8", "1/8 (2)", "1/8 (3)"]


def test_axes_may_differ():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, image):
            return Conv(1, (3, 7), strides=(1, 2))(image)

    height, width = receptive_fields(Wide())
    assert (height.size, height.stride, height.start) == (3, 1, -1)
    assert (width.size, width.stride, width.start) == (7, 2, -2)
    assert describe((height, width)) == "3 x 7"


def test_volumes():
    assert {axis.size for axis in receptive_fields(VolumeNet(), channels=1, spatial_dims=3)} == {8}


class VolumeNet(nn.Module):
    @nn.compact
    def __call__(self, image):
        for _ in range(2):
            image = ConvNormAct(2)(image, train=False)
        image = max_pool(image, (2, 2, 2))
        return ConvNormAct(2, kernel_size=2, padding="VALID")(image, train=False)


def test_up_convolutions_leave_a_fraction_of_a_pixel():
    class Up(nn.Module):
        @nn.compact
        def __call__(self, image):
            return jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2)

    (axis, _) = receptive_fields(Up())
    assert (axis.size, axis.stride, axis.start) == (1, Fraction(1, 2), 0)


def test_group_norm_sees_the_whole_image():
    field = receptive_fields(segzoo.get("unet_precision", width=8, norm="group"))
    assert describe(field) == "44 + whole image"


def test_what_cannot_be_followed_or_is_too_large_is_said():
    class Spectrum(nn.Module):
        @nn.compact
        def __call__(self, image):
            return jnp.fft.fft2(image, axes=(1, 2)).real

    class Huge(nn.Module):
        @nn.compact
        def __call__(self, image):
            return Conv(1, (3, 3), kernel_dilation=9000)(image)

    with pytest.raises(SegzooError, match="cannot be followed through the operation 'fft'"):
        receptive_fields(Spectrum())
    with pytest.raises(SegzooError, match="no feature of Huge lies 8192 pixels from the border"):
        receptive_fields(Huge())


# --- against the values: light from one line of pixels falls on the positions that see it ---------


def check_by_light(model, size=(63, 70), channels=3, **arguments):
    """With positive weights and nothing added, a value is zero where all that it sees is zero."""
    shape = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    shapes = jax.eval_shape(lambda k, x: model.init(k, x, **arguments), jax.random.key(0), shape)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("bias", "mean"):
            return jnp.zeros(leaf.shape)
        gain = 1.5 / np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 1.0
        return jnp.asarray(gain * rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    apply = jax.jit(lambda image: model.apply(variables, image, **arguments))
    reached = reach(lambda image: model.apply(variables, image, **arguments), shape)
    expected = [reached] if isinstance(reached[0], Reach) else reached
    # One image for each line of pixels along either axis, with that line lit.
    images = np.zeros((sum(size), *shape.shape[1:]), np.float32)
    for line in range(size[0]):
        images[line, line] = 1
    for line in range(size[1]):
        images[size[0] + line, :, line] = 1
    with as_written():  # sums of rows that cancel leave rounding errors where all is dark
        maps = jax.tree.leaves(apply(images))
    assert len(maps) == len(expected)
    for found, lines in zip(maps, expected, strict=True):
        for axis, part in ((1, slice(size[0])), (2, slice(size[0], None))):
            others = tuple(a for a in (1, 2, 3) if a != axis)
            lit = (np.asarray(found[part]) > 0).any(axis=others)  # [pixels, positions]
            dark = ~lit.any(axis=0)  # padding alone, where a small image is padded
            first, last = lit.argmax(axis=0), len(lit) - 1 - lit[::-1].argmax(axis=0)
            told, others = lines[axis - 1], (0, *others)
            # A pool that leaves a single position has become a global one.
            local = told.local_first <= told.local_last
            told_first = np.where(local, told.local_first, told.first).min(axis=others)
            told_last = np.where(local, told.local_last, told.last).max(axis=others)
            np.testing.assert_array_equal(told_first > told_last, dark)
            np.testing.assert_array_equal(told_first[~dark], first[~dark])
            np.testing.assert_array_equal(told_last[~dark], last[~dark])


def narrow(name, **overrides):
    known = registry.entry(name).overrides
    return segzoo.get(name, **({"width": 8} if "width" in known else {}), **overrides)


QUICK = {"alexnet", "googlenet", "lenet5", "resnet18", "vgg11"}


@pytest.mark.parametrize("name", sorted(QUICK))
def test_light_falls_on_what_sees_it(name):
    channels = registry.entry(name).input_shape[-1]
    check_by_light(narrow(name).backbone, channels=channels, train=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted({*segzoo.list_models(task="classification")} - QUICK))
def test_light_falls_on_what_sees_it_in_every_encoder(name):
    channels = registry.entry(name).input_shape[-1]
    check_by_light(narrow(name).backbone, channels=channels, train=False)


@pytest.mark.parametrize("name", ["unet_standard", "attention_unet", "fcn8s"])
def test_light_falls_on_what_sees_it_in_a_segmenter(name):
    overrides = {"norm": "none", "depth": 2} if name == "attention_unet" else {}
    check_by_light(narrow(name, num_classes=1, **overrides))


def test_light_falls_on_what_sees_it_through_dilated_convolutions():
    check_by_light(narrow("resnet18", output_stride=8).backbone, train=False)


def test_squeeze_and_excitation_carries_light_everywhere(filled):
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, image):
            return segzoo.get("efficientnet_b0", width=8).backbone(image, train=False)[1]

    model, shape = Encoder(), (1, 64, 64, 3)
    variables = filled(model, shape)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    other = image.copy()
    other[:, 0] += 10
    apply = jax.jit(model.apply)
    assert (apply(variables, image) != apply(variables, other)).any(axis=(0, 2, 3)).all()
