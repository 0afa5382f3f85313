import dataclasses
import json

import pytest

from segzoo import experiment as experiments
from segzoo.data.augment import Augment
from segzoo.errors import SegzooError
from segzoo.experiment import Experiment, Published
from segzoo.losses import Loss
from segzoo.optim import Optimizer


def make(**changes):
    fields = {"name": "mine", "model": "unet", "dataset": "shapes", "steps": 10, "batch_size": 4}
    return Experiment(**{**fields, **changes})


FULL = make(
    model_args={"width": 8, "norm": "batch", "dropout": 0.1},
    row="wide",
    preset="small",
    image_size=(64, 48),
    loss=Loss(cross_entropy=0.5, dice=1.0, class_weights=(1.0, 2.0, 0.5)),
    optimizer=Optimizer(name="sgd", momentum=0.9, schedule="cosine", clip_norm=1.0),
    augment=Augment(flip_horizontal=True, scale=(0.5, 2.0), crop_size=(32, 32)),
    patience=3,
    published=Published("miou", 0.5, "a paper", others={"boundary_f1": 0.25}),
    boundary_f1=True,
)


def test_tuples_among_the_models_overrides_come_back_as_tuples(tmp_path):
    made = make(model_args={"anchor_sizes": (4, 8.5), "width": 8})
    experiments.save(made, tmp_path / "config.json")
    assert experiments.load(tmp_path / "config.json") == made


def test_what_is_saved_is_loaded(tmp_path):
    for experiment in (make(), FULL):
        experiments.save(experiment, tmp_path / "config.json")
        assert experiments.load(tmp_path / "config.json") == experiment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; expected an integer of at least 1"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"accumulate": 3}, "accumulate is 3; expected a divisor of batch_size"),
        ({"seed": -1}, "seed is -1"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of 'float32', 'bfloat16'"),
        ({"patience": 0}, "patience is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(SegzooError, match=message):
        make(**changes)


def test_of_losses_and_errors_less_is_better():
    assert [make(monitor=name).mode for name in ("miou", "accuracy", "loss", "error")] == [
        "max",
        "max",
        "min",
        "min",
    ]


def test_the_label_names_module_row_and_preset():
    assert FULL.label == "mine.wide.small"
    assert make().label == "mine.unet.full"


def test_moving_the_data_changes_no_run():
    moved = experiments.moved(FULL, data_dir="there", manual_dir="elsewhere")
    assert (moved.data_dir, moved.manual_dir) == ("there", "elsewhere")
    assert experiments.differences(FULL, moved) == []
    assert experiments.moved(moved).data_dir == "there"
    assert experiments.differences(FULL, dataclasses.replace(FULL, seed=1)) == ["seed"]


def test_shortened_it_takes_the_first_steps_alone():
    slow = dataclasses.replace(FULL.optimizer, learning_rate=0.5, warmup_steps=4)
    full = dataclasses.replace(FULL, optimizer=slow, init_row="narrow")
    short = experiments.shortened(full, steps=2)
    assert (short.steps, short.eval_every, short.checkpoint_every) == (2, 2, 2)
    assert (short.log_every, short.patience, short.init_row) == (1, None, None)
    assert short.optimizer.learning_rate_at(2)(0) == slow.learning_rate_at(full.steps)(0)
    assert (short.model_args, short.batch_size) == (full.model_args, full.batch_size)
    assert short.optimizer.clip_norm == 1
    clipped = dataclasses.replace(full, optimizer=dataclasses.replace(slow, clip_norm=10.0))
    assert experiments.shortened(clipped, steps=2).optimizer.clip_norm == 10


def test_a_run_begun_without_boundary_f1_goes_on_with_it(tmp_path):
    path = tmp_path / "config.json"
    begun = dataclasses.replace(
        FULL, boundary_f1=False, published=Published("miou", 0.5, "a paper")
    )
    experiments.save(begun, path)
    values = json.loads(path.read_text())
    del values["boundary_f1"], values["published"]["others"]  # as an older version wrote it
    path.write_text(json.dumps(values))
    assert experiments.load(path) == begun
    experiments.check_same(dataclasses.replace(begun, boundary_f1=True), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "not an experiment of this version"),
        ("{}", "not an experiment of this version"),
        ('{"steps": 3, "colour": "red"}', "not an experiment of this version .*colour"),
    ],
)
def test_a_file_that_is_no_experiment_is_said(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(SegzooError, match=message) as caught:
        experiments.load(path)
    assert str(path) in str(caught.value)


def test_impossible_values_of_a_file_are_said(tmp_path):
    path = tmp_path / "config.json"
    experiments.save(make(), path)
    values = json.loads(path.read_text())
    for name, value in {"steps": "many", "loss": {"dice": -1.0}, "optimizer": 3}.items():
        path.write_text(json.dumps({**values, name: value}))
        with pytest.raises(SegzooError, match=name):
            experiments.load(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(SegzooError, match=r"config.json does not exist; expected"):
        experiments.load(tmp_path / "config.json")
