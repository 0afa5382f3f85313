"""Training and evaluation of models of objects: the same loop, another task."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import segzoo
from segzoo import assembly, evaluate, registry, tasks
from segzoo.batch import predict_files
from segzoo.data.augment import Augment
from segzoo.data.pipeline import train_batches
from segzoo.errors import SegzooError
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.runlog import read_rows
from segzoo.train import create_state, make_train_step, train

PROGRAM = Path(__file__).parent / "programs" / "tiny_objects.py"
CLOCK = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def tiny_objects():
    spec = importlib.util.spec_from_file_location("tiny_objects", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_objects"] = module
    spec.loader.exec_module(module)
    yield module
    del registry._ENTRIES["tiny_objects"]


def test_what_has_no_meaning_for_objects_is_refused(tiny_objects):
    spec = tiny_objects.Shapes.spec
    for changes in ({"loss": Loss(dice=1.0)}, {"flip_test": True}):
        with pytest.raises(SegzooError, match="losses of its own and is scored without flips"):
            assembly.build_model(tiny_objects.experiment(**changes), spec, None)
    semantic = dataclasses.replace(spec, task="semantic")
    with pytest.raises(SegzooError, match="is for instance, but dataset"):
        assembly.build_model(tiny_objects.experiment(), semantic, None)


def test_an_image_is_black_beyond_its_size(tiny_objects):
    spec = tiny_objects.Shapes.spec
    image = np.full((2, 4, 6, 3), 200, np.uint8)
    sizes = np.asarray([[4, 6], [2, 3]], np.int32)
    plain = assembly.normalise(image, spec)
    cut = np.asarray(assembly.normalise(image, spec, sizes))
    np.testing.assert_array_equal(cut[0], plain[0])
    np.testing.assert_array_equal(cut[1, :2, :3], plain[1, :2, :3])
    assert not cut[1, 2:].any()
    assert not cut[1, :, 3:].any()


@pytest.fixture(scope="module")
def overfitted(tiny_objects, tmp_path_factory):
    """A run that has learned its eight pictures by heart."""
    folder = tmp_path_factory.mktemp("objects") / "run"
    experiment = tiny_objects.experiment(
        model_args={"width": 12},
        steps=120,
        batch_size=8,
        optimizer=Optimizer(learning_rate=3e-3, schedule="cosine", warmup_steps=10),
        log_every=20,
        eval_every=120,
        checkpoint_every=120,
    )
    train(experiment, folder, dataset=tiny_objects.Shapes())
    return experiment, folder


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart(overfitted):
    _, folder = overfitted
    (last,) = [row for row in read_rows(folder / "metrics.jsonl") if row["split"] == "val"]
    assert last["images"] == 8
    assert last["mask_ap"] > 0.9
    assert last["box_ap"] > 0.9
    assert last["pq"] > 0.9


@pytest.mark.slow
def test_a_run_is_scored_drawn_and_used(overfitted, tiny_objects, tmp_path):
    experiment, folder = overfitted
    record = evaluate.evaluate_checkpoint(folder, experiment, tiny_objects.Shapes(), split="val")
    assert record["scores"]["mask_ap"] > 0.9
    assert record["confusion"] is None
    assert "pycocotools" in record["protocol"]
    (panel,) = (folder / "predictions").glob("*.png")
    with Image.open(panel) as picture:
        assert picture.width > 3 * 480

    example = tiny_objects.Source(8)[3]
    Image.fromarray(example["image"]).save(tmp_path / "a.png")
    assert predict_files(folder, [str(tmp_path / "a.png")], tmp_path / "out", overlays=True) == []
    with Image.open(tmp_path / "out" / "a.png") as picture:
        ids = np.asarray(picture)
    listed = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (tmp_path / "out" / "a.overlay.png").exists()
    named = {entry["id"]: entry["class"] for entry in listed if entry["id"] is not None}
    assert set(np.unique(ids)) - {0} == set(named)
    for m, number in enumerate(example["classes"], start=1):
        pixels = ids[example["instances"] == m]
        most = np.bincount(pixels).argmax()
        assert named[int(most)] == tiny_objects.Shapes.spec.class_names[number]
    twice = segzoo.Predictor(*segzoo.load(folder))(
        np.kron(example["image"], np.ones((2, 2, 1), np.uint8))
    )
    assert twice.masks.shape[1:] == (128, 128)
    with pytest.raises(SegzooError, match="tile is given, but model 'tiny_objects' finds objects"):
        segzoo.Predictor(*segzoo.load(folder), tile=64)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tiny_objects, tmp_path):
    experiment = tiny_objects.experiment(
        steps=3, eval_every=3, checkpoint_every=1, augment=Augment(flip_horizontal=True)
    )
    dataset, straight, stopped = tiny_objects.Shapes(), tmp_path / "a", tmp_path / "b"
    train(experiment, straight, dataset=dataset)
    shutil.copytree(straight, stopped)
    shutil.rmtree(stopped / "checkpoints" / "3")
    train(experiment, stopped, dataset=dataset)
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(f / "metrics.jsonl")]
        for f in (straight, stopped)
    )
    assert ours[-1] == theirs[-1]
    assert [row for row in theirs if row["step"] == 3][-2] == ours[-2]


@pytest.mark.slow
def test_one_program_serves_every_batch_of_a_shape(tiny_objects):
    experiment, dataset = tiny_objects.experiment(), tiny_objects.Shapes()
    spec = dataset.spec
    model = assembly.build_model(experiment, spec, None)
    optimizer = experiment.optimizer.build(experiment.steps)
    task = tasks.for_dataset(spec.task, spec.num_classes)
    state = create_state(experiment, model, optimizer, (64, 64, 3))
    step = jax.jit(make_train_step(experiment, model, optimizer, task, spec, None, None))
    with train_batches(dataset.source("train"), batch_size=4, seed=0) as batches:
        state, _ = step(state, next(batches))
        state, _ = step(state, next(batches))
        empty = next(batches)
    empty = {**empty, "valid": np.zeros_like(empty["valid"]), "instances": 0 * empty["instances"]}
    state, metrics = step(state, empty)  # nothing to be found in any image
    assert step._cache_size() == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


@pytest.mark.slow
def test_four_devices_take_the_steps_of_one():
    said = []
    for devices in ("1", "4"):
        running = subprocess.Popen(
            [sys.executable, str(PROGRAM), devices],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = running.communicate(timeout=500)
        finally:
            running.kill()  # a stuck collective takes no milder signal
            running.wait()
        assert running.returncode == 0, errors
        said.append(json.loads(output.splitlines()[-1]))
    one, four = said
    assert one["images"] == four["images"] == 3  # three images on four devices, once each
    assert one["metrics"][0] == pytest.approx(four["metrics"][0], rel=1e-5)
    assert one["loss"] == pytest.approx(four["loss"], rel=1e-3)
