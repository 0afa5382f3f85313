"""`segzoo convert`, and weights on the hub at the beginning of a run."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

import segzoo
from segzoo import SegzooError, assembly, experiment, weights
from segzoo.cli import main
from segzoo.weights import Source, hub, source, unflatten
from segzoo.weights.convert import to_theirs
from segzoo.weights.fit import shapes_of

COMMIT, NEWER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def resnet():
    """A narrow ResNet-18 and its tensors by path."""
    model = segzoo.get("resnet18", width=4, num_classes=6)
    rng = np.random.default_rng(0)
    shapes = shapes_of(model, (32, 32, 3))
    return model, {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def test_the_command_converts_there_and_back(tmp_path, resnet, torch_file, state_dict):
    model, ours = resnet
    theirs = to_theirs(ours, model, "torchvision")
    path, mine, back = torch_file(state_dict(theirs)), tmp_path / "a.safetensors", tmp_path / "b"
    words = ["convert", str(path), str(mine), "--model", "resnet18", "--override", "width", "4"]
    assert main(words) == 0
    jax.tree.map(np.testing.assert_array_equal, segzoo.load(mine)[1], unflatten(ours))
    back = back.with_suffix(".safetensors")
    assert main(["convert", str(mine), str(back), "--layout", "torchvision"]) == 0
    again = safetensors.numpy.load_file(back)
    assert again.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.pth", "x.safetensors"], "nowhere.pth does not exist"),
        (["net.pth", "x.safetensors"], "does not say which model it is for"),
        (["net.pth", "x.safetensors", "--model", "resnet19"], "unknown model 'resnet19'"),
        (["net.pth", "x.safetensors", "--model", "resnet18"], "does not fit 'resnet18'"),
    ],
)
def test_a_mistake_is_one_line(torch_file, state_dict, monkeypatch, capsys, words, message):
    monkeypatch.chdir(torch_file(state_dict({"conv1.weight": np.ones(3, np.float32)})).parent)
    assert main(["convert", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.fixture
def on_hub(tmp_path, resnet, monkeypatch):
    """A hub whose every file is a ResNet-18 of timm's; `on_hub["commit"]` is its newest."""
    model, ours = resnet
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(to_theirs(ours, model, "timm"), path)
    newest = {"commit": COMMIT}

    def fetch(wanted):
        return path, wanted if wanted.pinned else dataclasses.replace(
            wanted, revision=newest["commit"]
        )

    monkeypatch.setattr(hub, "fetch", fetch)
    return newest


def test_a_known_name_brings_its_model_mean_and_origin(on_hub, resnet, capsys):
    model, ours = resnet
    net, variables, info = segzoo.load("resnet18.a1_in1k", width=4)
    assert net == model
    jax.tree.map(np.testing.assert_array_equal, variables, unflatten(ours))
    assert info.origin == f"hf:timm/resnet18.a1_in1k@{COMMIT}/model.safetensors"
    assert info.image_size == (288, 288)
    assert info.mean == (123.675, 116.28, 103.53)
    assert f"resnet18.a1_in1k is now commit {COMMIT}" in capsys.readouterr().err
    with pytest.raises(SegzooError, match="does not say which model"):
        segzoo.load("hf:timm/resnet18.a1_in1k")
    assert segzoo.load("hf:timm/resnet18.a1_in1k", "resnet18", width=4)[0] == model


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "hf:timm/resnet18.a1_in1k"])
def test_a_run_keeps_the_commit_it_began_with(tiny, tmp_path, on_hub, name):
    wanted = tiny.experiment(init_from=name)
    begun = assembly.pinned(wanted, tmp_path / "run")
    assert COMMIT in begun.init_from
    assert weights.is_pin_of(begun.init_from, name)
    (tmp_path / "run").mkdir()
    experiment.save(begun, tmp_path / "run" / "config.json")
    on_hub["commit"] = NEWER
    assert assembly.pinned(wanted, tmp_path / "run") == begun
    assert assembly.pinned(begun, tmp_path / "run") == begun
    assert assembly.pinned(begun, tmp_path / "other") == begun
    assert NEWER in assembly.pinned(wanted, tmp_path / "other").init_from
    for other in (None, "runs/first", "resnet34.a1_in1k"):
        changed = assembly.pinned(tiny.experiment(init_from=other), tmp_path / "run")
        assert changed.init_from == other


def test_a_path_goes_before_a_known_name(tmp_path, monkeypatch, on_hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18.tv_in1k").mkdir()
    with pytest.raises(SegzooError, match="is not a run folder"):
        weights.read("resnet18.tv_in1k")
    assert weights.pin("resnet18.tv_in1k") == "resnet18.tv_in1k"
    assert isinstance(source.read("resnet18.gluon_in1k"), Source)
