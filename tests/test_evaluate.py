import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segzoo import assembly, evaluate, tasks
from segzoo.errors import SegzooError
from segzoo.metrics import predict_classes
from segzoo.train import train


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny.experiment(), folder, dataset=tiny.dataset())
    return folder, tiny.experiment(), tiny.dataset()


@pytest.fixture(scope="module")
def record(trained):
    return evaluate.evaluate_checkpoint(*trained)


def test_the_record_says_what_a_reader_needs(trained, record):
    folder, _, dataset = trained
    assert json.loads((folder / "results.json").read_text()) == record
    assert record["scores"]["pixels"] == 6 * 14 * 16  # two void rows in each of six images
    confusion = np.asarray(record["confusion"])
    assert confusion.shape == (11, 11)
    assert confusion.sum() == record["scores"]["pixels"]
    assert record["scores"]["pixel_accuracy"] == pytest.approx(
        np.trace(confusion) / confusion.sum()
    )
    assert set(record["scores"]["iou"]) == set(dataset.spec.class_names)
    assert record["steps"] == 12
    assert record["best_step"] in (4, 8, 12)
    assert record["parameters"] == 3 * 3 * 3 * 4 + 2 * 4 + 4 * 11 + 11
    assert "picked by miou on 'val'" in record["protocol"]
    assert {"device", "versions", "commit", "date", "train_seconds"} <= record.keys()


def test_the_best_checkpoint_is_scored(trained, record):
    folder, *_ = trained
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["miou"] for row in rows if row["split"] == "val"}
    assert scores[record["best_step"]] == max(scores.values())


def test_pictures_and_curves_can_be_opened(trained, record):
    folder, experiment, _ = trained
    pictures = [*(folder / "predictions").glob("test-*.png"), folder / "curves.png"]
    assert len(pictures) == experiment.pictures + 1
    for picture in pictures:
        with Image.open(picture) as opened:
            opened.load()
            assert min(opened.size) > 10


def test_another_split_cannot_pass_for_the_test_split(trained, record):
    folder, *_ = trained
    before = (folder / "results.json").read_bytes()
    found = evaluate.evaluate_checkpoint(*trained, split="val")
    assert found["split"] == "val"
    assert json.loads((folder / "results-val.json").read_text())["split"] == "val"
    assert (folder / "results.json").read_bytes() == before


def test_the_size_of_the_batch_changes_no_count(tiny, trained, record):
    folder, _, dataset = trained
    for size in (4, 12):  # six images: a filled batch, and one that is half void
        other = tiny.experiment(batch_size=size)
        assert (
            evaluate.evaluate_checkpoint(folder, other, dataset)["confusion"]
            == (record["confusion"])
        )


def test_the_count_is_that_of_one_image_after_the_other(trained, record):
    from segzoo import checkpoint

    folder, experiment, dataset = trained
    variables, _ = checkpoint.restore_variables(folder)
    model = assembly.build_model(experiment, dataset.spec, None)
    counted = np.zeros((11, 11), int)
    for index in range(6):
        example = dataset.source("test")[index]
        logits = model.apply(variables, assembly.normalise(example["image"], dataset.spec)[None])
        guess = np.asarray(predict_classes(logits))[0]
        valid = example["label"] != 255
        np.add.at(counted, (example["label"][valid], guess[valid]), 1)
    assert counted.tolist() == record["confusion"]


def test_both_ways_is_the_mean_of_the_probabilities():
    class Steep(nn.Module):
        """Logits that grow to the right: a mirrored image is answered otherwise."""

        classes: int

        def __call__(self, image):
            ramp = jnp.arange(image.shape[2])[:, None] * jnp.arange(1.0, self.classes + 1)
            return image[..., :1] * ramp

    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 1)), jnp.float32)
    for classes, probabilities in ((3, jax.nn.softmax), (1, jax.nn.sigmoid)):
        model = Steep(classes)
        one = probabilities(model.apply({}, image))
        two = probabilities(model.apply({}, image[:, :, ::-1]))[:, :, ::-1]
        both = probabilities(evaluate.both_ways(model, {}, image))
        assert np.abs(both - (one + two) / 2).max() < 1e-6
        assert np.abs(one - two).max() > 0.1


def test_the_scores_of_both_ways_stand_beside_the_others(trained, record, tmp_path):
    folder, experiment, dataset = trained
    shutil.copytree(folder, tmp_path / "run")
    asked = dataclasses.replace(experiment, flip_test=True)
    found = evaluate.evaluate_checkpoint(tmp_path / "run", asked, dataset)
    assert found["scores"]["miou"] == record["scores"]["miou"]
    assert found["scores"]["flip"]["pixels"] == record["scores"]["pixels"]
    assert found["scores"]["flip"]["iou"] != record["scores"]["iou"]
    assert "no flips" in record["protocol"]
    assert "with (flip)" in found["protocol"]


def test_a_run_is_found_by_its_folder(trained, record, monkeypatch):
    folder, _, dataset = trained
    monkeypatch.setattr(assembly, "open_dataset", lambda experiment: dataset)
    again = evaluate.evaluate_run(folder)
    assert again["confusion"] == record["confusion"]


def test_what_cannot_be_evaluated_is_said(trained, tmp_path):
    folder, experiment, dataset = trained
    with pytest.raises(SegzooError, match=r"config.json does not exist"):
        evaluate.evaluate_run(tmp_path)
    with pytest.raises(SegzooError, match="holds no checkpoint yet"):
        evaluate.evaluate_checkpoint(tmp_path, experiment, dataset)
    with pytest.raises(SegzooError, match=r"has no split 'tset'\. Did you mean 'test'"):
        evaluate.evaluate_checkpoint(folder, experiment, dataset, split="tset")


def test_the_protocol_says_whose_statistics_were_used(tiny):
    plain = tiny.experiment()
    task = tasks.for_dataset("semantic", 11)
    by_image = dataclasses.replace(plain, model_args={"test_statistics": "image"})
    said = [evaluate.protocol(experiment, task, "test") for experiment in (plain, by_image)]
    assert "statistics" not in said[0]
    assert "batch norm by each image's own statistics" in said[1]
