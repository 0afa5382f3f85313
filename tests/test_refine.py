"""The dense CRF behind the doors: predict, evaluate, crf-search."""

import dataclasses
import json

import numpy as np
import pytest

from segzoo import Predictor, assembly, cli, evaluate, refine
from segzoo.errors import SegzooError
from segzoo.metrics import confusion_matrix
from segzoo.ops.dense_crf import DenseCRF, dense_crf
from segzoo.train import train
from segzoo.weights import load

CRF = DenseCRF(iterations=2, appearance_width=8.0, appearance_color=20.0)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny.experiment(), folder, dataset=tiny.dataset())
    return folder, tiny.experiment(), tiny.dataset()


def test_predictions_are_the_marginals_of_the_models_logits(run):
    folder, *_ = run
    model, variables, info = load(folder)
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    plain = Predictor(model, variables, info)(image, probabilities=True)
    expected = np.asarray(dense_crf(np.log(plain)[None], image[None], CRF))[0]
    for tile in (None, 16):
        refined = Predictor(model, variables, info, tile=tile, crf=CRF)
        got = refined(image, probabilities=True)
        assert got.shape == plain.shape
        np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(refined(image), got.argmax(-1))
        if tile is None:
            np.testing.assert_allclose(got, expected, atol=1e-4)
            assert np.abs(got - plain).max() > 0.01


def test_evaluation_counts_the_refined_classes(run):
    folder, experiment, dataset = run
    record = evaluate.evaluate_checkpoint(*run, crf=CRF)
    assert json.loads((folder / "results-crf.json").read_text()) == record
    assert record["crf"] == dataclasses.asdict(CRF)
    assert "dense CRF" in record["protocol"]
    total = np.zeros((11, 11), int)
    for image, label, logits in refine.predictions(folder, experiment, dataset, "test"):
        ids = np.asarray(dense_crf(logits[None], image[None], CRF))[0].argmax(-1)
        total += np.asarray(confusion_matrix(ids, label, 11))
    assert record["confusion"] == total.tolist()
    assert any((folder / "predictions-crf").glob("*.png"))


def test_boundary_f1_is_scored_when_asked(run):
    plain = evaluate.evaluate_checkpoint(*run)
    record = evaluate.evaluate_checkpoint(*run, boundary=True)
    assert "boundary_f1" not in plain["scores"]
    assert 0 <= record["scores"]["boundary_f1"] <= 1
    assert "0.75 %" in record["scores"]["boundary_definition"]
    # Image by image counts what whole batches on all devices count.
    assert record["confusion"] == plain["confusion"]
    assert record["scores"]["loss"] == pytest.approx(plain["scores"]["loss"])
    assert "boundary F1" in record["protocol"]
    assert "boundary F1" not in plain["protocol"]
    folder, experiment, dataset = run
    asked = dataclasses.replace(experiment, boundary_f1=True)
    assert evaluate.evaluate_checkpoint(folder, asked, dataset)["scores"] == record["scores"]


def test_outlines_are_those_of_segmentations(run):
    _, experiment, dataset = run
    digits = dataclasses.replace(experiment, model="lenet5", boundary_f1=True)
    spec = dataclasses.replace(dataset.spec, task="classification")
    with pytest.raises(SegzooError, match="boundary_f1 scores the outlines of a segmentation"):
        assembly.build_model(digits, spec, None)


def test_search_chooses_on_validation_images_and_is_found_again(run, monkeypatch):
    folder, experiment, dataset = run
    monkeypatch.setattr(assembly, "open_dataset", lambda experiment: dataset)
    seen = []
    original = dataset.source
    monkeypatch.setattr(dataset, "source", lambda split: (seen.append(split), original(split))[1])
    said = []
    record = refine.search(
        folder,
        images=100,
        ranges=((2.0, 2.0), (4.0, 8.0), (20.0, 20.0)),
        base=dataclasses.replace(CRF, smoothness_weight=0.5),
        say=said.append,
    )
    assert set(seen) == {experiment.val_split}
    best = max(candidate["miou"] for candidate in record["candidates"])
    assert record["miou"] == best
    assert len(said) >= 2
    assert json.loads((folder / "crf.json").read_text()) == record
    chosen = refine.settings(folder)
    assert chosen.smoothness_weight == 0.5
    assert chosen.appearance_weight == 2.0
    assert dataclasses.asdict(chosen) == record["config"]
    again = dataclasses.replace(CRF, **record["config"])
    found = evaluate.evaluate_checkpoint(*run, split="val", crf=again)
    assert (folder / "results-val-crf.json").exists()
    assert found["scores"]["miou"] == pytest.approx(best)
    (folder / "crf.json").unlink()


def test_settings(tmp_path):
    assert refine.settings(tmp_path) == DenseCRF()
    assert refine.settings(tmp_path / "x.safetensors", {"iterations": 3}).iterations == 3
    with pytest.raises(SegzooError, match="Did you mean 'appearance_width'"):
        refine.settings(tmp_path, {"apearance_width": 3})
    with pytest.raises(SegzooError, match="iterations is 'x'"):
        refine.settings(tmp_path, {"iterations": "x"})
    (tmp_path / "crf.json").write_text("{}")
    with pytest.raises(SegzooError, match=r"crf\.json cannot be read"):
        refine.settings(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--crf", "iterations"], "--crf takes pairs of NAME VALUE"),
        (["--crf", "itertions", "3"], "unknown parameter of the CRF"),
        (["--crf", "appearance_width", "-3"], "appearance_width"),
    ],
)
def test_mistakes_on_the_command_line(run, words, message, capsys):
    folder, *_ = run
    assert cli.main(["evaluate", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_mistakes_in_a_search(run, capsys):
    folder, *_ = run
    assert cli.main(["crf-search", str(folder), "--range", "width", "1", "2"]) == 2
    assert "unknown range 'width'" in capsys.readouterr().err
    assert cli.main(["crf-search", str(folder), "--range", "appearance_width", "9", "2"]) == 2
    assert "is 9.0 to 2.0" in capsys.readouterr().err
