"""The train step and the loop around it."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import assembly, parallel, tasks
from segzoo.data.augment import Augment
from segzoo.data.made import MadeSource
from segzoo.data.pipeline import train_batches
from segzoo.errors import SegzooError
from segzoo.losses import Loss, cross_entropy, mean
from segzoo.optim import Optimizer
from segzoo.runlog import read_rows
from segzoo.train import create_state, make_train_step, monitored, train

PROGRAM = Path(__file__).parent / "programs" / "tiny_step.py"
PLAIN = {"norm": False, "dropout": 0.0}


def parts(experiment, dataset, axis_name):
    """The initial state and the body of the step."""
    spec = dataset.spec
    model = assembly.build_model(experiment, spec, axis_name)
    optimizer = experiment.optimizer.build(experiment.steps)
    task = tasks.for_dataset(spec.task, spec.num_classes)
    shape = assembly.training_shape(experiment, dataset.source("train"))
    body = make_train_step(experiment, model, optimizer, task, spec, None, axis_name)
    return create_state(experiment, model, optimizer, shape), body


def batches_of(experiment, dataset, count):
    source = dataset.source("train")
    with train_batches(source, batch_size=experiment.batch_size, seed=experiment.seed) as stream:
        return [next(stream) for _ in range(count)]


def run(experiment, dataset, batches, backend="one"):
    """Steps through `batches`; returns the last state and every step's metrics.

    The backend "one" is plain jit on one device; the others are those of `data_parallel`.
    """
    axis_name = parallel.AXIS if backend in ("pmap", "shard_map") else None
    state, body = parts(experiment, dataset, axis_name)
    if backend == "one":
        step, put = jax.jit(body), lambda batch: batch
    else:
        state = parallel.replicate(state)
        step, put = parallel.data_parallel(body, backend=backend), parallel.shard_batch
    history = []
    for batch in batches:
        state, metrics = jax.block_until_ready(step(state, put(batch)))
        history.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), history


def assert_close(ours, theirs, rtol=1e-5, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


# --- the step -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_one_device(tiny):
    dataset = tiny.dataset()
    # Adam divides by the gradient's size: where that is all rounding, so is the direction.
    sgd = Optimizer(name="sgd", learning_rate=0.1, momentum=0.9)
    experiment = tiny.experiment(batch_size=8, optimizer=sgd)
    batches = batches_of(experiment, dataset, 4)
    return experiment, dataset, batches, run(experiment, dataset, batches)


@pytest.mark.parametrize("backend", ["jit", "pmap", "shard_map"])
def test_every_backend_takes_the_same_steps_as_one_device(on_one_device, backend):
    experiment, dataset, batches, (state, history) = on_one_device
    others, other_history = run(experiment, dataset, batches, backend)
    assert jax.device_count() == 4
    assert_close(other_history, history)
    assert_close(others.batch_stats, state.batch_stats)
    assert_close(others.params, state.params)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny):
    experiment = tiny.experiment(batch_size=8, model_args=PLAIN, optimizer=Optimizer(name="sgd"))
    dataset = tiny.dataset()
    batches = batches_of(experiment, dataset, 3)
    # Void pixels differ between the parts, so a mean of means would not do.
    for batch in batches:
        batch["label"][:3] = 255
    whole, history = run(experiment, dataset, batches)
    for parts_ in (2, 8):
        changed = dataclasses.replace(experiment, accumulate=parts_)
        state, other_history = run(changed, dataset, batches)
        assert_close(other_history, history)
        assert_close(state.params, whole.params, atol=1e-6)


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_void_pixels_may_fall_on_the_devices_as_they_like(tiny, backend):
    experiment = tiny.experiment(batch_size=8, model_args=PLAIN, optimizer=Optimizer(name="sgd"))
    dataset = tiny.dataset()
    batches = batches_of(experiment, dataset, 2)
    for batch in batches:
        batch["label"][:2] = 255  # nothing at all on the first of the four devices
        batch["label"][2:5, :, :9] = 255
    expected, history = run(experiment, dataset, batches)
    state, other_history = run(experiment, dataset, batches, backend)
    assert_close(other_history, history)
    assert_close(state.params, expected.params, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_an_all_void_batch_changes_nothing(tiny, name):
    experiment = tiny.experiment(model_args=PLAIN, optimizer=Optimizer(name=name), ema=0.5)
    dataset = tiny.dataset()
    (batch,) = batches_of(experiment, dataset, 1)
    batch["label"][:] = 255
    before, _ = parts(experiment, dataset, None)
    state, ((metrics),) = run(experiment, dataset, [batch])
    assert metrics == {"loss": 0.0, "grad_norm": 0.0}
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, before.params)


def test_the_running_average_is_the_one_of_its_definition(tiny):
    experiment, dataset = tiny.experiment(ema=0.75), tiny.dataset()
    batches = batches_of(experiment, dataset, 3)
    first, _ = parts(experiment, dataset, None)
    expected = first.params
    for count in (1, 2, 3):
        state, _ = run(experiment, dataset, batches[:count])
        expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, expected, state.params)
    assert_close(state.ema, expected, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, state.variables["params"], state.ema)
    without, _ = run(tiny.experiment(ema=0.0), dataset, batches[:1])
    assert without.ema is None
    assert without.variables["params"] is without.params


def test_bfloat16_computes_low_and_keeps_the_state_high(tiny):
    dataset = tiny.dataset()
    high, low = tiny.experiment(), tiny.experiment(dtype="bfloat16")
    batches = batches_of(high, dataset, 2)
    _, expected = run(high, dataset, batches)
    state, history = run(low, dataset, batches)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}
    losses = [[metrics["loss"] for metrics in both] for both in (history, expected)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.03)


def test_the_auxiliary_loss_reaches_the_head_it_is_for(tiny):
    dataset = tiny.dataset()
    experiment = tiny.experiment(
        model_args={**PLAIN, "head": True},
        loss=Loss(auxiliary=0.5),
        optimizer=Optimizer(name="sgd"),
        augment=Augment(),
    )
    without = dataclasses.replace(experiment, loss=Loss())
    batches = batches_of(experiment, dataset, 1)
    state, (with_head,) = run(experiment, dataset, batches)
    plain, (alone,) = run(without, dataset, batches)

    before, _ = parts(experiment, dataset, None)
    model = assembly.build_model(experiment, dataset.spec, None)
    image = assembly.normalise(batches[0]["image"], dataset.spec)
    _, sown = model.apply(before.variables, image, mutable=["aux_logits"])
    (early,) = sown["aux_logits"]["early"]
    extra = mean(*cross_entropy(early, batches[0]["label"]))
    np.testing.assert_allclose(with_head["loss"], alone["loss"] + 0.5 * extra, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, plain.params["head"], before.params["head"])
    assert np.any(state.params["head"]["kernel"] != before.params["head"]["kernel"])
    assert np.any(state.params["Conv_0"]["kernel"] != plain.params["Conv_0"]["kernel"])


def test_one_sum_over_the_devices_holds_the_gradient_and_nothing_more(tiny):
    experiment, dataset = tiny.experiment(batch_size=4, model_args=PLAIN), tiny.dataset()
    state, body = parts(experiment, dataset, parallel.AXIS)
    (batch,) = batches_of(experiment, dataset, 1)
    step = parallel.data_parallel(body)
    text = step.lower(parallel.replicate(state), parallel.shard_batch(batch)).compile().as_text()
    sums = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    shapes = re.findall(r"f32\[([\d,]*)\]", " ".join(sums))
    summed = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert summed == parameters + 2  # and the loss and the count of pixels
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)


# --- the loop -----------------------------------------------------------------------------------


def spoil(example):
    """Puts labels into an example that are no class."""
    example["label"][5:9] = 77


def test_a_loss_that_is_not_finite_names_step_folder_and_checkpoint(tiny, tmp_path):
    with pytest.raises(SegzooError) as caught:
        train(tiny.experiment(), tmp_path / "late", dataset=tiny.Trapped(1 + 4 * 6 + 2, spoil))
    assert str(caught.value) == (
        f"loss is not finite at step 7 in {tmp_path / 'late'}; the last good checkpoint is step 6."
    )
    with pytest.raises(SegzooError, match=r"at step 1 in .*; there is no checkpoint yet"):
        train(tiny.experiment(), tmp_path / "early", dataset=tiny.Trapped(2, spoil))
    # The example at fault mended, the run goes on.
    assert train(tiny.experiment(), tmp_path / "late", dataset=tiny.dataset()).step == 12


def test_a_loss_found_late_does_not_reach_a_checkpoint(tiny, tmp_path):
    """Rows of the log are rarer than checkpoints; no checkpoint may hold what is broken."""
    with pytest.raises(SegzooError, match=r"step 7 in .*checkpoint is step 6"):
        train(
            tiny.experiment(log_every=12),
            tmp_path / "run",
            dataset=tiny.Trapped(1 + 4 * 6 + 2, spoil),
        )
    assert not (tmp_path / "run" / "checkpoints" / "8").exists()


def test_patience_ends_a_run_that_no_longer_improves(tiny, tmp_path):
    still = tiny.experiment(
        optimizer=Optimizer(name="sgd", learning_rate=1e-12),
        model_args=PLAIN,
        eval_every=2,
        patience=2,
    )
    outcome = train(still, tmp_path / "run", dataset=tiny.dataset())
    assert (outcome.step, outcome.stopped_by) == (6, None)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = train(still, tmp_path / "run", dataset=tiny.dataset())
    assert (again.step, again.stopped_by) == (6, None)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == rows


def test_the_best_checkpoint_outlives_newer_ones(tiny, tmp_path):
    # A rate that ruins what the first steps may have learnt.
    wild = tiny.experiment(
        steps=10, eval_every=1, monitor="loss", optimizer=Optimizer(name="sgd", learning_rate=3.0)
    )
    train(wild, tmp_path / "run", dataset=tiny.dataset())
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    losses = {row["step"]: row["loss"] for row in rows if row["split"] == "val"}
    best = min(losses, key=losses.get)
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {best, 9, 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": "miuo"}, "unknown monitor 'miuo'. Did you mean 'miou'?"),
        ({"monitor": "definition"}, "unknown monitor 'definition'"),
        ({"val_split": "vall"}, "has no split 'vall'. Did you mean 'val'?"),
        ({"train_split": "train[10:]"}, "selects no example"),
        ({"batch_size": 6}, "batch_size is 6; expected a positive multiple of the 4 devices"),
        ({"accumulate": 2}, "accumulate is 2; expected a divisor of the 1 examples"),
        ({"loss": Loss(class_weights=(1.0, 2.0))}, "has 2 values; expected one for each of the 11"),
        ({"model": "tny"}, "unknown model 'tny'"),
        ({"model_args": {"widht": 2}}, "no override 'widht'. Did you mean 'width'?"),
        ({"image_size": (8,)}, "image_size"),
        ({"init_from": "nowhere"}, "nowhere does not exist"),
        ({"optimizer": Optimizer(warmup_steps=12)}, "warmup_steps is 12; expected fewer"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tiny, tmp_path, changes, message):
    with pytest.raises(SegzooError, match=re.escape(message)):
        train(tiny.experiment(**changes), tmp_path / "run", dataset=tiny.dataset())
    assert not (tmp_path / "run").exists()


def test_images_of_differing_sizes_need_an_image_size(tiny, tmp_path):
    class Mixed:
        spec, splits = tiny.dataset().spec, {"train": 8, "val": 4, "test": 4}

        def source(self, split):
            small, large = tiny.dataset().source(split), tiny.dataset((24, 16)).source(split)
            return [(small if i % 2 else large)[i] for i in range(4)]

    with pytest.raises(SegzooError, match=r"24x16.*set image_size"):
        train(tiny.experiment(), tmp_path / "run", dataset=Mixed())
    outcome = train(
        tiny.experiment(steps=1, image_size=(16, 16)), tmp_path / "fit", dataset=Mixed()
    )
    assert outcome.step == 1


def test_a_folder_of_something_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SegzooError, match=r"holds files but no config.json"):
        train(tiny.experiment(), tmp_path, dataset=tiny.dataset())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_of_another_run_is_left_alone_and_the_field_named(tiny, tmp_path):
    train(tiny.experiment(steps=1), tmp_path / "run", dataset=tiny.dataset())
    with pytest.raises(SegzooError, match=r"another run \(steps was 1 and is 2; seed was 0 and is"):
        train(tiny.experiment(steps=2, seed=5), tmp_path / "run", dataset=tiny.dataset())
    # How a run is run may change.
    train(tiny.experiment(steps=1, loader_threads=2), tmp_path / "run", dataset=tiny.dataset())
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(SegzooError, match=r"config.json: not valid JSON"):
        train(tiny.experiment(steps=1), tmp_path / "run", dataset=tiny.dataset())


def test_a_run_abandoned_while_it_began_can_begin_again(tiny, tmp_path):
    train(tiny.experiment(steps=1), tmp_path / "run", dataset=tiny.dataset())
    config = (tmp_path / "run" / "config.json").read_bytes()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.json").write_bytes(config)
    assert train(tiny.experiment(steps=1), tmp_path / "again", dataset=tiny.dataset()).step == 1
    assert (tmp_path / "again" / "model.json").exists()


def test_an_undefined_score_is_the_worst(tiny):
    assert monitored(tiny.experiment(), {"miou": None}) == -np.inf
    assert monitored(tiny.experiment(monitor="loss"), {"loss": float("nan")}) == np.inf
    assert monitored(tiny.experiment(monitor="loss"), {"loss": 0.5, "miou": 1}) == 0.5


def test_it_learns_eight_images_by_heart(tiny, tmp_path):
    """The whole chain at once: data, loss, gradient and optimizer must all be right for this."""
    experiment = tiny.experiment(
        steps=150,
        batch_size=8,
        train_split="train",
        val_split="train",
        model_args={"dropout": 0.0, "width": 16},
        optimizer=Optimizer(name="adam", learning_rate=0.03, schedule="cosine"),
        augment=Augment(),
        eval_every=150,
        checkpoint_every=150,
        log_every=50,
        ema=0.0,
    )

    class Eight:
        """Three classes by brightness, in blocks."""

        spec = dataclasses.replace(
            tiny.dataset().spec,
            class_names=("dark", "grey", "light"),
            palette=((0, 0, 0), (99, 99, 99), (200, 200, 200)),
        )

        def source(self, split):
            return MadeSource(self.spec, (32, 32), 8)

    train(experiment, tmp_path / "run", dataset=Eight())
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["split"] == "val"
    assert rows[-1]["miou"] > 0.9


def test_every_process_makes_the_same_program():
    # Else none would find on disk what another has compiled. Sets differ in order by the hash seed.
    programs = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        found = subprocess.run(
            [sys.executable, str(PROGRAM)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        programs.add(found.stdout)
    assert len(programs) == 1
