import jax
import numpy as np
import pytest

from segzoo import assembly, data, weights
from segzoo.data.augment import Augment
from segzoo.data.statistics import median_frequency
from segzoo.errors import SegzooError
from segzoo.losses import Loss
from segzoo.train import train


def test_the_model_is_built_for_the_classes_of_the_dataset(tiny):
    model = assembly.build_model(tiny.experiment(), tiny.dataset().spec, "batch")
    assert (model.num_classes, model.axis_name) == (11, "batch")
    one = tiny.experiment(model_args={"num_classes": 1})
    assert assembly.build_model(one, data.get("dsb2018_nuclei").spec, None).num_classes == 1


def test_a_model_must_fit_the_task(tiny):
    with pytest.raises(SegzooError, match=r"'tiny' is for semantic, but dataset 'mnist' is for cl"):
        assembly.build_model(tiny.experiment(dataset="mnist"), data.get("mnist").spec, None)


def test_images_are_brought_to_zero_mean_and_unit_variance(tiny):
    spec = tiny.dataset().spec
    image = np.asarray(spec.mean) + np.asarray(spec.std) * np.ones((1, 2, 2, 3))
    np.testing.assert_allclose(assembly.normalise(image, spec), 1.0, rtol=1e-5)


def test_the_size_of_training_is_that_of_the_crop_or_the_image(tiny):
    source = tiny.dataset((20, 30)).source("train")
    assert assembly.training_shape(tiny.experiment(), source) == (20, 30, 3)
    fitted = tiny.experiment(image_size=(8, 12))
    assert assembly.training_shape(fitted, source) == (8, 12, 3)
    cropped = tiny.experiment(image_size=(8, 12), augment=Augment(crop_size=(4, 4)))
    assert assembly.training_shape(cropped, source) == (4, 4, 3)


def test_evaluation_fills_every_device(tiny):
    sizes = [assembly.eval_batch_size(tiny.experiment(batch_size=size)) for size in (1, 4, 5, 8)]
    assert sizes == [4, 4, 8, 8]


def test_class_weights_are_given_or_measured_on_the_training_split(tiny):
    dataset = tiny.dataset()
    assert assembly.class_weights(tiny.experiment(), dataset) is None
    wanted = tuple(float(k) for k in range(1, 12))
    given = tiny.experiment(loss=Loss(class_weights=wanted))
    assert assembly.class_weights(given, dataset).tolist() == list(wanted)
    measured = tiny.experiment(loss=Loss(class_weights="median_frequency"))
    np.testing.assert_allclose(
        assembly.class_weights(measured, dataset), median_frequency(dataset.source("train"), 11)
    )


def test_a_run_can_start_from_anothers_variables(tiny, tmp_path, capsys):
    train(tiny.experiment(steps=1), tmp_path / "first", dataset=tiny.dataset())
    _, source, _ = weights.load(tmp_path / "first")
    experiment = tiny.experiment(init_from=str(tmp_path / "first"), model_args={"num_classes": 5})

    def start(**changes):
        model = tiny.Tiny(**{"num_classes": 5, **changes})
        fresh = model.init(jax.random.key(1), np.zeros((1, 16, 16, 3)))
        return fresh, assembly.initial_variables(experiment, fresh, model, (16, 16, 3))

    fresh, started = start()
    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, fresh)
    assert_same(started["params"]["Conv_0"], source["params"]["Conv_0"])
    assert_same(started["batch_stats"], source["batch_stats"])
    assert_same(started["params"]["Conv_1"], fresh["params"]["Conv_1"])  # of other classes
    assert "Conv_1 starts afresh" in capsys.readouterr().err
    with pytest.raises(SegzooError, match=r"of another shape.*Conv_0"):
        start(width=7)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
