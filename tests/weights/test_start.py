"""Other libraries' files in, ours out, encoders and heads between models."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import segzoo
from segzoo import SegzooError, registry, weights
from segzoo.weights import ModelInfo, Source, flatten, start_from, unflatten
from segzoo.weights.convert import layouts_of, to_theirs
from segzoo.weights.fit import adapt_input, shapes_of

# One network of each family that another library stores.
NETWORKS = {
    "resnet18": ("torchvision", "timm"),
    "vgg11_bn": ("torchvision", "timm"),
    "alexnet": ("torchvision",),
    "googlenet": ("torchvision",),
    "inception_v2": ("pretrainedmodels",),
    "densenet121": ("torchvision", "timm"),
    "efficientnet_b0": ("torchvision", "timm"),
    "xception41": ("timm",),
}
CASES = [(name, library) for name, libraries in NETWORKS.items() for library in libraries]
SHAPE = (64, 64, 3)


class Segmenter(nn.Module):
    """An encoder and a head, whose name a classifier's head has too."""

    backbone: nn.Module
    num_classes: int = 3
    dtype: type = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train=False):
        x = self.backbone(image, train=train)[-1]
        return nn.Conv(self.num_classes, (1, 1), name="head")(x)


def drawn(model, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes_of(model, shape).items()}


def described(name, model, **more):
    """A description of a narrow classifier."""
    shape = registry.entry(name).input_shape
    args = more.pop("model_args", {"num_classes": model.num_classes, "width": 8})
    names = tuple(f"class {i}" for i in range(model.num_classes))
    channels = shape[-1]
    return ModelInfo(
        *(name, args, names, ()),
        **{
            "mean": (1.0,) * channels,
            "std": (2.0,) * channels,
            "task": "classification",
            "in_channels": channels,
            **more,
        },
    )


def equal(one, other):
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


@pytest.fixture(scope="module")
def resnet():
    """A narrow ResNet-18, its tensors by our paths and by torchvision's names."""
    model = segzoo.get("resnet18", width=4, num_classes=10)
    ours = drawn(model)
    return model, ours, to_theirs(ours, model, "torchvision")


def started(source, model, shape=SHAPE, where="net.pth", info=None):
    """What `start_from` makes of a source: variables by path, and the notes as one text."""
    fresh = drawn(model, shape, seed=1)
    got, notes = start_from(Source(where, source, info), unflatten(fresh), model, shape)
    return flatten(got), fresh, " ".join(notes)


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "library"), CASES)
def test_what_is_exported_comes_back_bit_for_bit(tmp_path, name, library):
    model = segzoo.get(name, width=8, num_classes=7)
    info = described(name, model)
    variables = unflatten(drawn(model, registry.entry(name).input_shape))
    path = tmp_path / "net.safetensors"
    weights.export(path, variables, info, library)
    again, loaded, found = segzoo.load(path)
    assert (again, found) == (model, info)
    equal(loaded, variables)
    # Without our description: a file of the other library's.
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, path)
    _, loaded, found = segzoo.load(path, name, width=8)
    equal(loaded, variables)
    assert found.model_args == {"num_classes": 7, "width": 8}
    assert len(found.class_names) == 7


def test_every_family_with_a_layout_is_tested():
    models = {name: segzoo.get(name) for name in segzoo.list_models(task="classification")}
    stored = {type(m.backbone).__name__ for m in models.values() if layouts_of(m)}
    assert stored == {type(models[name].backbone).__name__ for name in NETWORKS}


def test_an_unknown_layout_is_refused(tmp_path):
    model = segzoo.get("resnet18", width=4)
    info = described("resnet18", model, model_args={"num_classes": 1000, "width": 4})
    variables = unflatten(drawn(model))
    path = tmp_path / "x.safetensors"
    with pytest.raises(SegzooError, match=r"unknown layout of ResNet 'tim'\. Did you mean 'timm'"):
        weights.export(path, variables, info, "tim")
    with pytest.raises(SegzooError, match="ends otherwise"):
        weights.export(tmp_path / "x.pth", variables, info)
    unet = segzoo.get("unet", width=4, depth=1)
    with pytest.raises(SegzooError, match="no other library's layout of UNet is known"):
        to_theirs(drawn(unet), unet, "timm")


def test_caffes_kernel_takes_blue_first():
    model = segzoo.get("inception_v2", width=8)
    ours = drawn(model)
    theirs = to_theirs(ours, model, "pretrainedmodels")
    kernel = ours["params/backbone/conv1/conv/kernel"]
    np.testing.assert_array_equal(
        theirs["conv1_7x7_s2.weight"], kernel[:, :, ::-1].transpose(3, 2, 0, 1)
    )
    (layout,) = layouts_of(model)
    assert layout.mean == (128.0, 117.0, 104.0)


def test_a_foreign_file_says_what_images_it_wants(tmp_path):
    model = segzoo.get("googlenet", width=8)
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(to_theirs(drawn(model), model, "torchvision"), path)
    _, _, info = segzoo.load(path, "googlenet", width=8)
    assert info.mean == info.std == (127.5,) * 3
    assert info.task == "classification"


# --- encoders ------------------------------------------------------------------------------------


def test_a_classifiers_file_gives_the_encoder_and_its_statistics(resnet):
    model, ours, theirs = resnet
    theirs = {**theirs, "bn1.num_batches_tracked": np.zeros((), np.int64)}
    segmenter = Segmenter(model.backbone)
    for tensors, info in ((theirs, None), (ours, object())):
        got, fresh, notes = started(tensors, segmenter, info=info)
        for path, value in got.items():
            expected = ours if "/backbone/" in path else fresh
            np.testing.assert_array_equal(value, expected[path], err_msg=path)
        assert any(path.startswith("batch_stats/backbone/") for path in got)
        assert "head" in notes
        assert "afresh" in notes
    _, _, notes = started(theirs, segmenter)
    assert "not needed of net.pth: fc (2 tensors)" in notes


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder."])
def test_names_may_begin_alike(resnet, prefix):
    model, ours, theirs = resnet
    theirs = {**{prefix + name: v for name, v in theirs.items()}, "decoder.weight": np.ones(2)}
    got, _, notes = started(theirs, Segmenter(model.backbone))
    path = "params/backbone/stem/conv/kernel"
    np.testing.assert_array_equal(got[path], ours[path])
    assert f"begin with {prefix!r}" in notes
    assert "decoder" in notes


def test_every_fault_of_the_encoder_is_listed(resnet):
    model, ours, theirs = resnet
    segmenter = Segmenter(model.backbone)
    theirs = dict(theirs)
    del theirs["layer1.0.bn1.running_var"], theirs["layer4.1.conv2.weight"]
    theirs["layer2.0.conv1.weight"] = np.zeros((8, 4, 5, 5), np.float32)
    theirs["layer4.2.conv1.weight"] = theirs["layer3.0.se.weight"] = np.zeros(3, np.float32)
    with pytest.raises(SegzooError) as caught:
        started(theirs, segmenter)
    message = str(caught.value)
    assert "2 tensors missing" in message
    assert "layer1.0.bn1.running_var" in message
    assert "layer4.1.conv2.weight" in message
    assert "2 tensors unexpected: layer4.2.conv1.weight, layer3.0.se.weight" in message
    assert "layer2.0.conv1.weight [8, 4, 5, 5] instead of [8, 4, 3, 3]" in message
    assert "does not fit Segmenter on ResNet" in message
    ours = {k: v for k, v in ours.items() if k != "batch_stats/backbone/stem/norm/mean"}
    with pytest.raises(SegzooError, match=r"1 tensor missing: batch_stats/backbone/stem/norm/mean"):
        started(ours, segmenter, info=object())


def test_a_deeper_networks_file_does_not_pass_for_a_shallower_ones(resnet):
    deeper = segzoo.get("resnet34", width=4)
    theirs = to_theirs(drawn(deeper), deeper, "timm")
    with pytest.raises(SegzooError, match=r"80 tensors unexpected: layer1\.2\.conv1\.weight"):
        started(theirs, Segmenter(resnet[0].backbone))


def test_files_of_other_families_are_refused(resnet):
    model = resnet[0]
    with pytest.raises(SegzooError, match=r"no known layout of ResNet: it holds 'a'; expected"):
        started({"a": np.zeros(2, np.float32)}, model)
    vgg = segzoo.get("vgg11", width=4)
    with pytest.raises(SegzooError, match=r"no known layout of ResNet|does not fit"):
        started(to_theirs(drawn(vgg), vgg, "torchvision"), model)


def test_numbers_that_are_none_are_refused(resnet):
    model, _, theirs = resnet
    for value in (np.nan, np.inf):
        bad = {**theirs, "bn1.weight": np.full(4, value, np.float32)}
        with pytest.raises(SegzooError, match=r"bn1\.weight holds numbers that are not finite"):
            started(bad, model)
    with pytest.raises(SegzooError, match=r"bn1\.weight is int8; expected floating numbers"):
        started({**theirs, "bn1.weight": np.ones(4, np.int8)}, model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(resnet, dtype):
    model, ours, theirs = resnet
    theirs = {name: value.astype(jnp.dtype(dtype)) for name, value in theirs.items()}
    got, _, _ = started(theirs, model)
    for path, value in got.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, ours[path].astype(jnp.dtype(dtype)).astype("f4"))


def test_fcn_starts_from_the_classifier_of_vgg16(filled):
    vgg = segzoo.get("vgg16", width=4)
    ours = drawn(vgg, (32, 32, 3))
    for library in ("torchvision", "timm"):
        theirs = to_theirs(ours, vgg, library)
        fcn = segzoo.get("fcn32s", width=4, num_classes=5)
        got, fresh, notes = started(theirs, fcn, (32, 32, 3))
        kernel = ours["params/fc6/kernel"].reshape(7, 7, 32, 256)
        np.testing.assert_array_equal(got["params/fc6/conv/kernel"], kernel)
        np.testing.assert_array_equal(
            got["params/fc7/conv/kernel"][0, 0], ours["params/fc7/kernel"]
        )
        np.testing.assert_array_equal(
            got["params/score_fr/kernel"], fresh["params/score_fr/kernel"]
        )
        assert "not needed" in notes


# --- other classes, other channels ---------------------------------------------------------------


def test_a_head_for_other_classes_starts_afresh(resnet):
    model, ours, theirs = resnet
    other = model.clone(num_classes=4)
    for tensors, info in ((theirs, None), (ours, object())):
        got, fresh, notes = started(tensors, other, info=info)
        for path, value in got.items():
            expected = fresh if "/head/" in path else ours
            np.testing.assert_array_equal(value, expected[path])
        assert "has 10 classes, the model 4: head starts afresh" in notes


def test_a_whole_segmenter_goes_on_with_other_classes():
    unet = segzoo.get("unet", width=4, depth=1, num_classes=3)
    ours = drawn(unet)
    got, fresh, notes = started(ours, unet.clone(num_classes=5), info=object())
    for path, value in got.items():
        expected = fresh if "/score/" in path else ours
        np.testing.assert_array_equal(value, expected[path])
    assert "score starts afresh" in notes
    wider = segzoo.get("unet", width=8, depth=1, num_classes=3)
    with pytest.raises(SegzooError, match=r"of another shape: params/down0/conv1/conv/"):
        started(ours, wider, info=object())


def test_a_head_that_contradicts_itself_is_an_error(resnet):
    model, _, theirs = resnet
    with pytest.raises(SegzooError, match=r"fc\.bias \[4\] instead of \[10\]"):
        started({**theirs, "fc.bias": np.zeros(4, np.float32)}, model)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_first_convolution_takes_other_channels(resnet, channels):
    model, ours, theirs = resnet
    got, _, notes = started(theirs, model, (32, 32, channels))
    path = "params/backbone/stem/conv/kernel"
    kernel = ours[path]
    if channels == 1:
        expected = kernel.sum(axis=2, keepdims=True)
    else:
        turns = [kernel[:, :, i % 3] * np.float32(3 / channels) for i in range(channels)]
        expected = np.stack(turns, axis=2)
    np.testing.assert_array_equal(got[path], expected)
    assert f"conv1.weight takes 3 channels in net.pth, here {channels}" in notes


def test_equal_channels_give_the_answer_they_gave():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 5)).astype(np.float32)
    grey = rng.normal(size=(3, 3)).astype(np.float32)
    answer = np.einsum("hw,hwcf->f", grey, kernel)
    for channels in (1, 3, 6, 9):
        adapted = adapt_input(kernel, (3, 3, channels, 5))
        np.testing.assert_allclose(np.einsum("hw,hwcf->f", grey, adapted), answer, rtol=1e-4)
    assert adapt_input(kernel, (5, 5, 1, 5)) is None


def test_load_adapts_to_overrides(tmp_path, resnet, capsys):
    model, ours, _ = resnet
    args = {"num_classes": 10, "width": 4}
    info = described("resnet18", model, model_args=args, mean=(1.0, 2.0, 6.0), image_size=(64, 64))
    path = tmp_path / "net.safetensors"
    weights.save(path, unflatten(ours), info)
    net, variables, found = segzoo.load(path, num_classes=4, in_channels=1, seed=3)
    assert net.num_classes == 4
    assert (found.mean, found.std, found.in_channels) == ((3.0,), (2.0,), 1)
    assert found.class_names == ("class 0", "class 1", "class 2", "class 3")
    said = capsys.readouterr().err
    assert "head starts afresh" in said
    assert "summed up" in said
    # The head is what the model's own initialisers make of the seed.
    head = variables["params"]["head"]
    assert np.any(head["kernel"])
    assert not np.any(head["bias"])
    again = segzoo.load(path, num_classes=4, in_channels=1, seed=3)[1]
    equal(again, variables)
    other = segzoo.load(path, num_classes=4, in_channels=1, seed=4)[1]
    assert np.any(other["params"]["head"]["kernel"] != head["kernel"])
    with pytest.raises(SegzooError, match="holds 'resnet18', not 'resnet34'"):
        segzoo.load(path, "resnet34")
    with pytest.raises(SegzooError, match="in_channels is 0; expected an integer of at least 1"):
        segzoo.load(path, in_channels=0)


def test_heads_that_only_training_uses_may_be_missing_or_spare():
    name = "googlenet"
    with_heads = segzoo.get(name, width=8, aux_loss=True)
    without = segzoo.get(name, width=8, aux_loss=False)
    shape = registry.entry(name).input_shape
    ours = drawn(with_heads, shape)
    theirs = to_theirs(ours, with_heads, "torchvision")
    got, _, notes = started(theirs, without, shape)
    assert not any("aux1" in path for path in got)
    assert "not needed of net.pth: aux1, aux2" in notes
    fewer = {name: value for name, value in theirs.items() if not name.startswith("aux")}
    got, fresh, notes = started(fewer, with_heads, shape)
    assert "has nothing for aux1, aux2" in notes
    for path, value in got.items():
        expected = fresh if "/aux" in path else ours
        np.testing.assert_array_equal(value, expected[path])


# --- files of torch.save -------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torch_save_is_loaded(torch_file, state_dict, resnet, legacy, capsys):
    _, ours, theirs = resnet
    tensors = {f"module.{name}": value for name, value in theirs.items()}
    path = torch_file({"state_dict": state_dict(tensors)}, legacy=legacy)
    net, variables, info = segzoo.load(path, "resnet18", width=4)
    equal(variables, unflatten(ours))
    assert net.num_classes == info.model_args["num_classes"] == 10
    assert info.mean == (123.675, 116.28, 103.53)
    said = capsys.readouterr().err
    assert "are in state_dict" in said
    assert "begin with 'module.'" in said


def test_load_wants_the_whole_network(torch_file, state_dict, resnet):
    theirs = {name: value for name, value in resnet[2].items() if not name.startswith("fc.")}
    path = torch_file(state_dict(theirs))
    with pytest.raises(SegzooError, match=r"'resnet18': 2 tensors missing: fc\.bias, fc\.weight"):
        segzoo.load(path, "resnet18", width=4, num_classes=10)
    path = torch_file(state_dict({**resnet[2], "queue": np.zeros(3, np.float32)}))
    with pytest.raises(SegzooError, match="1 tensor unexpected: queue"):
        segzoo.load(path, "resnet18", width=4)


def test_what_a_description_does_not_say_stays(resnet):
    info = described("resnet18", resnet[0])
    assert ModelInfo.from_json(info.to_json()) == info
    assert dataclasses.replace(info, origin="hf:a/b@c").to_json()["origin"] == "hf:a/b@c"
