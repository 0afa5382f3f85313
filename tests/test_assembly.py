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


def test_a_run_can_start_from_anothers_parameters(tiny, tmp_path):
    train(tiny.experiment(steps=1), tmp_path / "first", dataset=tiny.dataset())
    _, variables, _ = weights.load(tmp_path / "first")
    second = tiny.experiment(init_from=str(tmp_path / "first"))
    mine = {
        "Conv_0": {"kernel": np.zeros((3, 3, 3, 4))},
        "Conv_1": {"kernel": np.zeros((1, 1, 4, 5)), "bias": np.zeros(5)},
    }
    taken = assembly.initial_variables(second, {"params": mine})["params"]
    np.testing.assert_array_equal(
        taken["Conv_0"]["kernel"], variables["params"]["Conv_0"]["kernel"]
    )
    assert not taken["Conv_1"]["kernel"].any()  # of other classes: starts afresh
    with pytest.raises(SegzooError, match="has no parameter that fits 'tiny'"):
        assembly.initial_variables(second, {"params": {"Dense_0": {"kernel": np.zeros((2, 2))}}})
