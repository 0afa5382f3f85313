"""The registry; what it promises of every model is in test_contract.py."""

import inspect
import subprocess
import sys

import pytest

import segzoo
from segzoo import SegzooError, registry


@pytest.mark.parametrize("name", segzoo.list_models())
def test_the_entry_of_a_model(name):
    entry = registry.entry(name)
    assert entry.name == entry.builder.__name__ == name
    assert entry.summary.endswith(".")
    assert entry.paper
    assert {"num_classes", "dtype", "axis_name"} <= set(entry.overrides)
    assert segzoo.get(name) == entry.builder(**entry.overrides)
    for field in ("num_classes", "dtype", "axis_name"):
        assert getattr(segzoo.get(name), field) == entry.overrides[field]


@pytest.mark.parametrize("name", segzoo.list_models())
@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True, "2"])
def test_impossible_numbers_of_classes(name, num_classes):
    with pytest.raises(SegzooError, match=r"num_classes is .*; expected an integer of at least 1"):
        segzoo.get(name, num_classes=num_classes)
    with pytest.raises(SegzooError, match=r"num_classes is .*; expected an integer of at least 1"):
        registry.entry(name).builder(num_classes=num_classes)


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(SegzooError, match=r"unknown model 'attention-unet'\. Did you mean 'attent"):
        segzoo.get("attention-unet")
    with pytest.raises(
        SegzooError, match=r"'unet' has no override 'widht'\. Did you mean 'width'\?"
    ):
        segzoo.get("unet", widht=3)
    with pytest.raises(SegzooError, match=r"unknown task 'segmentation'"):
        segzoo.list_models(task="segmentation")


def test_listing():
    names = segzoo.list_models()
    assert names == sorted(names)
    assert {"unet", "attention_unet", "fcn8s", "fcn16s", "fcn32s"} <= set(names)
    assert set(segzoo.list_models("fcn*s")) == {"fcn8s", "fcn16s", "fcn32s"}
    assert "unet" in segzoo.list_models("*unet*", task="semantic")
    assert segzoo.list_models("no such*") == []


class TestRegister:
    @pytest.fixture(autouse=True)
    def entries(self, monkeypatch):
        segzoo.list_models()
        monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    def test_a_builder_becomes_a_model(self):
        @segzoo.register(task="semantic", paper="none", input_shape=(8, 8, 1))
        def my_net(num_classes: int = 2):
            """A net of one's own."""
            return ("built", num_classes)

        assert segzoo.get("my_net", num_classes=3) == ("built", 3)
        assert registry.entry("my_net").summary == "A net of one's own."

    def test_a_name_taken_elsewhere_is_refused(self):
        def unet(num_classes: int = 2):
            return None

        with pytest.raises(
            SegzooError, match=r"'unet' is registered already, by segzoo\.models\.unet"
        ):
            segzoo.register(task="semantic", paper="none")(unet)

    def test_overrides_must_be_named_and_have_defaults(self):
        def loose(**overrides):
            return None

        def strict(num_classes):
            return None

        with pytest.raises(SegzooError, match=r"'loose' must name its overrides"):
            segzoo.register(task="semantic", paper="none")(loose)
        with pytest.raises(SegzooError, match=r"'num_classes' of 'strict' needs a default"):
            segzoo.register(task="semantic", paper="none")(strict)


def test_import_is_light():
    program = """
import sys
import segzoo
heavy = {"flax", "tensorflow_datasets", "orbax", "grain", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
segzoo.list_models()
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_builder_with_overrides_fixed():
    def net(num_classes=2, depth=4, width=8):
        """Any net."""
        return num_classes, depth, width

    deep = registry.with_fixed("deep", net, "A deep net.", depth=9)
    assert (deep.__name__, deep.__doc__) == ("deep", "A deep net.")
    assert list(inspect.signature(deep).parameters) == ["num_classes", "width"]
    assert deep(width=3) == (2, 9, 3)
    with pytest.raises(TypeError, match="depth"):
        deep(depth=1)
