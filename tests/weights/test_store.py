import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import segzoo
from segzoo import SegzooError, weights
from segzoo.weights import ModelInfo


def make_info(**changes):
    info = ModelInfo(
        model="unet",
        model_args={"num_classes": 3, "width": 4, "depth": 1, "norm": "batch"},
        class_names=("background", "cell", "edge"),
        palette=((0, 0, 0), (255, 0, 0), (0, 255, 0)),
        mean=(120.0, 110.0, 100.0),
        std=(60.0, 61.5, 62.0),
        image_size=(32, 48),
        image_fit="resize",
        dataset="cells",
        step=7,
        segzoo_version="0.1.0",
    )
    return dataclasses.replace(info, **changes)


def make_variables(info, seed=0):
    rng = np.random.default_rng(seed)
    shapes = weights.variable_shapes(info.build(), info)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def saved(tmp_path):
    info = make_info()
    variables = make_variables(info)
    path = tmp_path / "net.safetensors"
    weights.save(path, variables, info)
    return path, variables, info


def rewrite(path, change):
    """Changes the tensors or the metadata of a file."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    path.write_bytes(safetensors.numpy.save(tensors, metadata=metadata))


def test_a_file_gives_back_what_was_saved(saved):
    path, variables, info = saved
    model, loaded, found = segzoo.load(path)
    assert found == info
    assert model == info.build()
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    assert "batch_stats" in loaded


def test_tensors_are_named_by_their_path_and_stored_as_float32(saved, tmp_path):
    _, variables, info = saved
    half = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, jax.numpy.bfloat16), variables)
    path = tmp_path / "half.safetensors"
    weights.save(path, half, info)
    with safetensors.safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        assert "params/score/kernel" in names
        assert any(name.startswith("batch_stats/") for name in names)
        assert all(file.get_slice(name).get_dtype() == "F32" for name in names)


def test_memory_order_does_not_reach_the_file(saved, tmp_path):
    _, variables, info = saved
    transposed = jax.tree.map(np.asfortranarray, variables)
    path = tmp_path / "order.safetensors"
    weights.save(path, transposed, info)
    jax.tree.map(np.testing.assert_array_equal, weights.load(path)[1], variables)


def test_save_leaves_nothing_but_the_file(saved):
    path, _, _ = saved
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_save_refuses_variables_of_another_model(saved, tmp_path):
    _, variables, info = saved
    other = make_info(model_args={**info.model_args, "width": 8})
    with pytest.raises(SegzooError, match=r"does not fit 'unet'.*of another shape"):
        weights.save(tmp_path / "other.safetensors", variables, other)
    assert not (tmp_path / "other.safetensors").exists()


def test_missing_unexpected_and_misshapen_tensors_are_listed(saved):
    path, _, _ = saved

    def change(tensors, metadata):
        tensors["params/stranger"] = tensors.pop("params/score/bias")
        tensors["params/score/kernel"] = np.zeros((1, 1, 4, 5), np.float32)

    rewrite(path, change)
    with pytest.raises(SegzooError) as caught:
        segzoo.load(path)
    message = str(caught.value)
    assert "1 tensor missing: params/score/bias" in message
    assert "1 tensor unexpected: params/stranger" in message
    assert "params/score/kernel [1, 1, 4, 5] instead of [1, 1, 4, 3]" in message
    assert "\n" not in message


def test_many_faults_are_counted(saved):
    path, _, _ = saved
    rewrite(path, lambda tensors, _: [tensors.pop(n) for n in list(tensors) if "down" in n])
    with pytest.raises(SegzooError, match=r"20 tensors missing: ([^,]+, ){19}[^, ]+\."):
        segzoo.load(path)
    rewrite(path, lambda tensors, _: tensors.pop("params/score/bias"))
    with pytest.raises(SegzooError, match=r"21 tensors missing: .* and 1 more\."):
        segzoo.load(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_truncated_file_is_named(saved, keep):
    path, _, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SegzooError, match=r"net\.safetensors is not a whole safetensors file"):
        segzoo.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "net.h5").write_bytes(b"\x89HDF")
    with pytest.raises(SegzooError, match=r"net\.h5 is neither a run folder nor a file of weights"):
        segzoo.load(tmp_path / "net.h5")


def test_a_foreign_file_needs_the_name_of_its_model(tmp_path):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(safetensors.numpy.save({"weight": np.zeros(3, np.float32)}))
    with pytest.raises(SegzooError, match="does not say which model it is for"):
        segzoo.load(path)
    with pytest.raises(SegzooError, match="no other library's layout of UNet is known"):
        segzoo.load(path, "unet")


def test_an_unknown_model_is_named_with_its_file(saved):
    path, _, info = saved

    def change(tensors, metadata):
        metadata["segzoo"] = json.dumps({**info.to_json(), "model": "unett"})

    rewrite(path, change)
    with pytest.raises(SegzooError, match=r"net\.safetensors: unknown model 'unett'.*'unet'"):
        segzoo.load(path)


def test_missing_paths_and_plain_folders(tmp_path):
    with pytest.raises(SegzooError, match="does not exist"):
        segzoo.load(tmp_path / "nothing")
    with pytest.raises(SegzooError, match=r"no model\.json"):
        segzoo.load(tmp_path)
    make_info().write(tmp_path / "run1")
    with pytest.raises(SegzooError, match="holds the run folders run1"):
        segzoo.load(tmp_path)


def test_info_survives_json():
    info = make_info(model_args={"num_classes": 3, "rates": (6, (12, 18))}, image_size=None)
    again = ModelInfo.from_text(json.dumps(info.to_json()))
    assert again == info
    hash(again.model_args["rates"])  # fields of modules must be hashable


def test_info_of_a_later_version_loads():
    assert ModelInfo.from_json({**make_info().to_json(), "licence": "x"}) == make_info()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [1.0]}, "mean is .* expected 3 numbers"),
        ({"std": [1.0, 0.0, 1.0]}, "expected positive"),
        ({"class_names": "abc"}, "class_names is 'abc'; expected a list"),
        ({"image_size": 3}, "image_size is 3; expected a list or null"),
        ({"palette": [[0, 0, 0]]}, "1 colours for 3 classes"),
        ({"image_fit": "squash"}, "image_fit is 'squash'"),
        ({"model_args": None}, "model_args is None; expected an object"),
    ],
)
def test_impossible_infos_are_refused(changes, message):
    with pytest.raises(SegzooError, match=message):
        ModelInfo.from_json({**make_info().to_json(), **changes}, "model.json")


def test_incomplete_and_damaged_infos_are_refused(tmp_path):
    with pytest.raises(SegzooError, match=r"lacks 'mean', 'std'"):
        ModelInfo.from_json(
            {k: v for k, v in make_info().to_json().items() if k not in ("mean", "std")}
        )
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(SegzooError, match=r"model\.json is not valid JSON"):
        ModelInfo.read(tmp_path)
    with pytest.raises(SegzooError, match="expected a JSON object"):
        ModelInfo.from_text("[]")


def test_overrides_json_cannot_say_are_refused():
    with pytest.raises(SegzooError, match="cannot be written as JSON"):
        make_info(model_args={"num_classes": 3, "dtype": np.float32}).to_json()


def test_spatial_dims_follow_overrides_then_size_then_registry():
    assert make_info(image_size=None).spatial_dims == 2
    assert make_info(image_size=(8, 8, 8)).spatial_dims == 3
    assert make_info(model_args={"spatial_dims": 3}).spatial_dims == 3


def test_a_run_folder_gives_its_best_checkpoint(tmp_path):
    from segzoo.checkpoint import Checkpoints

    info = make_info()
    info.write(tmp_path)
    saved = {step: make_variables(info, seed=step) for step in (1, 2, 3)}
    checkpoints = Checkpoints(tmp_path)
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.4)):
        state = {"step": np.asarray(step), **saved[step], "ema": {}}
        checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), score)
    checkpoints.close()
    _, variables, found = segzoo.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, saved[2])
    assert found == dataclasses.replace(info, step=2)


def test_a_run_folder_without_checkpoint_says_so(tmp_path):
    make_info().write(tmp_path)
    with pytest.raises(SegzooError, match="holds no checkpoint yet"):
        segzoo.load(tmp_path)
