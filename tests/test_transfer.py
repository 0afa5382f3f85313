"""What is fixed stays as it is, costs no backward pass and runs as in inference."""

import collections
import dataclasses
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import (
    assembly,
    data,
    encoder,
    evaluate,
    list_models,
    parallel,
    registry,
    study,
    tasks,
    transfer,
)
from segzoo import experiment as experiments
from segzoo.checkpoint import restore_variables
from segzoo.data.augment import Augment
from segzoo.data.made import MadeDataset
from segzoo.data.pipeline import train_batches
from segzoo.errors import SegzooError
from segzoo.experiment import Experiment
from segzoo.layers import Dropout, Norm, Score
from segzoo.losses import Loss
from segzoo.optim import Optimizer
from segzoo.runlog import read_rows
from segzoo.train import create_state, make_train_step, train
from segzoo.transfer import Plan, Transfer

SIZE = (8, 8)
FIXED, FINE = Transfer("fixed"), Transfer("fine_tune")


class Block(nn.Module):
    """Halves the image; all that behaves differently in training is in here."""

    width: int
    axis_name: str | None
    dropout: float

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(self.width, (3, 3), strides=2, use_bias=False, name="conv")(x)
        x = nn.relu(Norm("batch", axis_name=self.axis_name, name="norm")(x, train=train))
        return Dropout(self.dropout, self.axis_name)(x, deterministic=not train)


class Encoder(nn.Module):
    """Three stages; the first also has a layer of its own."""

    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.5

    @property
    def reductions(self):
        return (2, 4, 8)

    @property
    def stages(self):
        return (("stem", "mix"), ("block2",), ("block3",))

    @nn.compact
    def __call__(self, image, *, train):
        x = Block(4, self.axis_name, self.dropout, name="stem")(image, train=train)
        features = [x := nn.Conv(4, (1, 1), name="mix")(x)]
        for number, width in ((2, 6), (3, 8)):
            x = Block(width, self.axis_name, self.dropout, name=f"block{number}")(x, train=train)
            features.append(x)
        return tuple(features)


class Coder(nn.Module):
    """Scores the last features, and as auxiliary scores the second; the first are not used."""

    num_classes: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    backbone: nn.Module = Encoder()

    @nn.compact
    def __call__(self, image, *, train=False):
        _, middle, last = self.backbone(image, train=train)
        aux = Score(self.num_classes, self.dtype, name="aux")(middle)
        if not self.is_initializing():
            self.sow("aux_logits", "early", jax.image.resize(aux, self._size(image), "nearest"))
        x = Norm("batch", axis_name=self.axis_name, name="norm")(last, train=train)
        x = Dropout(0.1, self.axis_name)(x, deterministic=not train)
        return jax.image.resize(
            Score(self.num_classes, self.dtype, name="head")(x), self._size(image), "nearest"
        )

    def _size(self, image):
        return (*image.shape[:3], self.num_classes)


@pytest.fixture(scope="module", autouse=True)
def coder(compilation_cache):
    @registry.register(task="semantic", paper="none", input_shape=(*SIZE, 3))
    def coder(*, num_classes=2, dtype=jnp.float32, axis_name=None, dropout=0.5):
        """Three halvings and a score."""
        return Coder(num_classes, dtype, axis_name, Encoder(dtype, axis_name, dropout))

    yield
    del registry._ENTRIES["coder"]


def make(**changes):
    fields = {
        "name": "made",
        "model": "coder",
        "dataset": "camvid",
        "steps": 6,
        "batch_size": 4,
        "optimizer": Optimizer(name="adamw", learning_rate=0.02, weight_decay=0.1, decay_all=True),
        "loss": Loss(auxiliary=0.4),
        "log_every": 1,
        "eval_every": 3,
        "checkpoint_every": 2,
        "pictures": 1,
        "loader_threads": 1,
    }
    return Experiment(**{**fields, **changes})


def dataset():
    return MadeDataset(data.get("camvid").spec, SIZE, {"train": 10, "val": 4, "test": 4})


def batches_of(experiment, count):
    source = dataset().source("train")
    with train_batches(source, batch_size=experiment.batch_size, seed=experiment.seed) as stream:
        return [next(stream) for _ in range(count)]


def parts(experiment, axis_name=None):
    """The initial state, its encoder's statistics made uneven, and the body of the step."""
    spec = dataset().spec
    model = assembly.build_model(experiment, spec, axis_name)
    optimizer = experiment.optimizer.build(experiment.steps)
    task = tasks.for_dataset(spec.task, spec.num_classes)
    state = create_state(experiment, model, optimizer, (*SIZE, 3))
    noise = np.random.default_rng(0)
    uneven = jax.tree.map(
        lambda x: x + noise.uniform(0, 0.5, x.shape).astype(np.float32), state.batch_stats
    )
    body = make_train_step(experiment, model, optimizer, task, spec, None, axis_name)
    return state.replace(batch_stats=uneven), body


def run(experiment, count=2):
    """Takes steps on one device; returns the states before and after, and the last metrics."""
    before, body = parts(experiment)
    state, step = before, jax.jit(body)
    for batch in batches_of(experiment, count):
        state, metrics = step(state, batch)
    return jax.device_get(before), jax.device_get(state), jax.device_get(metrics)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in leaves}


def changed(before, after):
    """The paths of the arrays that are not bit for bit the same."""
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {path for path in before if not np.array_equal(before[path], after[path])}


def parameters(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- the plan -----------------------------------------------------------------------------------


def plan_of(**changes):
    experiment = make(transfer=Transfer(**changes))
    model = assembly.build_model(experiment, dataset().spec, None)
    return transfer.make_plan(experiment, model, (*SIZE, 3))


def test_a_scenario_says_how_fast_each_stage_is_trained():
    assert plan_of() == plan_of(scenario="scratch") == plan_of(scenario="fine_tune") == Plan()
    assert plan_of(scenario="fixed").rates == {"stem": 0, "mix": 0, "block2": 0, "block3": 0}
    later = plan_of(scenario="fine_tune", from_stage=1)
    assert later.rates == {"stem": 0, "mix": 0, "block2": 1, "block3": 1}
    assert later.fixed == {"stem", "mix"}
    slow = plan_of(scenario="fine_tune", backbone_rate=0.5, stage_decay=0.1, from_stage=0)
    assert slow.rates == pytest.approx({"stem": 5e-3, "mix": 5e-3, "block2": 0.05, "block3": 0.5})
    both = plan_of(scenario="fine_tune", backbone_rate=0.5, stage_decay=0.1, from_stage=2)
    assert both.rates == {"stem": 0, "mix": 0, "block2": 0, "block3": 0.5}


def test_the_parts_of_a_tree_are_the_tree():
    params = parts(make())[0].params
    for plan in (Plan(), plan_of(scenario="fixed"), plan_of(scenario="fine_tune", from_stage=2)):
        trained, fixed = plan.split(params)
        assert not changed(transfer.union(fixed, trained), params)
        assert parameters(trained) + parameters(fixed) == parameters(params)
        assert set(fixed.get("backbone", {})) == plan.fixed
    assert "backbone" not in plan_of(scenario="fixed").split(params)[0]
    assert Plan().split(params)[0] is params


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scenario": "frozen"}, "transfer.scenario is 'frozen'; expected one of None, 'scratch'"),
        ({"scenario": "fine_tune", "from_stage": -1}, "from_stage is -1"),
        ({"scenario": "fine_tune", "backbone_rate": 0.0}, "backbone_rate is 0.0; expected a numb"),
        ({"scenario": "fine_tune", "backbone_rate": float("nan")}, "backbone_rate is nan"),
        ({"scenario": "fine_tune", "stage_decay": 2.6}, "stage_decay is 2.6; .* at most 1"),
        ({"scenario": "fixed", "from_stage": 1}, "from_stage is 1, .* 'fixed'; .* 'fine_tune'"),
        ({"backbone_rate": 0.1}, "backbone_rate is 0.1, but transfer.scenario is None"),
        ({"scenario": "fine_tune", "cache": True}, "cache is True, .*; it is for 'fixed' alone"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(SegzooError, match=message):
        Transfer(**fields)


def test_what_contradicts_the_rest_of_the_experiment_is_refused():
    for source in ({"init_from": "a.safetensors"}, {"init_row": "before"}):
        with pytest.raises(SegzooError, match=r"'scratch', but the run would start from '\w+"):
            make(transfer=Transfer("scratch"), **source)
        make(**source)
    with pytest.raises(SegzooError, match=r"cache keeps the features .* no augmentation"):
        make(transfer=Transfer("fixed", cache=True), augment=Augment(flip_horizontal=True))


def test_a_model_must_have_what_is_to_be_fixed(tmp_path):
    with pytest.raises(SegzooError, match=r"'unet' has no encoder of its own"):
        train(make(model="unet", transfer=FIXED), tmp_path / "run", dataset=dataset())
    many = dataclasses.replace(FINE, from_stage=3)
    with pytest.raises(SegzooError, match=r"from_stage is 3; expected 0 to 2, as .* 'coder' has 3"):
        train(make(transfer=many), tmp_path / "run", dataset=dataset())
    assert not (tmp_path / "run").exists()


def test_an_encoder_whose_stages_lack_a_layer_is_refused():
    class Forgetful(Encoder):
        @property
        def stages(self):
            return (("stem",), ("block2",), ("block3",))

    with pytest.raises(SegzooError, match=r"of 'Coder' has parameters outside its stages: mix"):
        encoder.encoder_stages(Coder(2, backbone=Forgetful()), (*SIZE, 3))


def test_a_layer_that_cannot_be_told_to_infer_is_refused():
    class Deaf(Encoder):
        @nn.compact
        def __call__(self, image, *, train):
            x = nn.Conv(4, (1, 1), name="stem")(image)
            return x, x, nn.BatchNorm(not train, name="mix")(x)

    model, plan = Coder(2, backbone=Deaf()), Plan({"stem": 0, "mix": 0, "block2": 1, "block3": 1})
    image = jnp.zeros((1, *SIZE, 3))
    variables = model.init(jax.random.key(0), image)
    with pytest.raises(SegzooError, match=r"backbone/mix was made to train"):
        plan.apply(model, variables, image, train=True, mutable=["batch_stats"])


def test_the_settings_are_saved_and_given_on_the_command_line(tmp_path, monkeypatch):
    slow = make(transfer=Transfer("fine_tune", 1, 0.1, 0.5), init_from="there")
    experiments.save(slow, tmp_path / "config.json")
    assert experiments.load(tmp_path / "config.json") == slow
    rows = {"coder": dataclasses.replace(slow, transfer=Transfer(), init_from=None)}
    flags = ["--transfer.scenario", "fine_tune", "--transfer.from-stage", "1"]
    flags += ["--transfer.backbone-rate", "0.1", "--transfer.stage-decay", "0.5"]
    monkeypatch.chdir(tmp_path)
    _, parsed = study._parse(study.Study("", rows), "coder", "full", flags, None)
    assert (parsed.transfer, parsed.preset) == (slow.transfer, "custom")


# --- the step -----------------------------------------------------------------------------------

LATER = dataclasses.replace(FINE, from_stage=1)
OF_STEM = {"backbone/stem", "backbone/mix"}
OF_ENCODER = OF_STEM | {"backbone/block2", "backbone/block3"}


@pytest.mark.parametrize(("scenario", "frozen"), [(FIXED, OF_ENCODER), (LATER, OF_STEM)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_fixed_stays_as_it_is_and_all_else_is_trained(scenario, frozen, accumulate):
    experiment = make(transfer=scenario, ema=0.5, accumulate=accumulate)
    before, after, _ = run(experiment)
    for tree in ("params", "batch_stats"):
        paths = flat(getattr(before, tree))
        expected = {path for path in paths if not path.startswith(tuple(frozen))}
        assert changed(getattr(before, tree), getattr(after, tree)) == expected
    # Neither the average nor the optimizer's moments hold what is fixed.
    trained = {path for path in flat(before.params) if not path.startswith(tuple(frozen))}
    assert flat(after.ema).keys() == trained
    for moment in ("mu/", "nu/"):
        parts = {path.partition(moment)[2]: leaf for path, leaf in flat(after.opt_state).items()}
        arrays = [flat(before.params)[path] for path in trained]
        vectors = sum(array.size for array in arrays if array.ndim == 1)
        kernels = sum(array.size for array in arrays if array.ndim > 1)
        assert {path: leaf.shape for path, leaf in parts.items() if path} == {
            "vectors": (vectors,),
            "kernels": (1, kernels),
        }
    assert not changed(transfer.union(after.params, after.ema), after.variables["params"])


def test_the_average_is_that_of_the_trained_parameters():
    experiment = make(transfer=LATER, ema=0.75)
    before, one, _ = run(experiment, 1)
    expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, before.params, one.params)
    for path, value in flat(one.variables["params"]).items():
        np.testing.assert_allclose(value, flat(expected)[path], rtol=1e-6)


def convolutions(experiment):
    """How many convolutions a train step computes, before the compiler sees it."""
    state, body = parts(experiment)
    text = str(jax.make_jaxpr(body)(state, batches_of(experiment, 1)[0]))
    return len(re.findall(r"\bconv_general_dilated\[", text))


def test_what_is_fixed_has_no_backward_pass():
    # Forward: stem, mix, block2 and block3. Backward: one for each kernel that is trained, and one
    # for each input that depends on one. The scores are no convolutions but matrix products.
    assert convolutions(make(transfer=FINE)) == 4 + 4 + 3
    assert convolutions(make(transfer=LATER)) == 4 + 2 + 1
    assert convolutions(make(transfer=dataclasses.replace(FINE, from_stage=2))) == 4 + 1 + 0
    assert convolutions(make(transfer=FIXED)) == 4


def test_devices_exchange_gradients_of_what_is_trained_alone():
    experiment = make(transfer=FIXED)
    state, body = parts(experiment, parallel.AXIS)
    (batch,) = batches_of(experiment, 1)
    step = parallel.data_parallel(body)
    text = step.lower(parallel.replicate(state), parallel.shard_batch(batch)).compile().as_text()
    sums = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    sizes = re.findall(r"f32\[([\d,]*)\]", " ".join(sums))
    summed = sum(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)
    trained = {name: tree for name, tree in state.params.items() if name != "backbone"}
    # And the loss, the count, and two moments of the head's batch norm.
    assert summed == parameters(trained) + 2 + 2 * state.params["norm"]["scale"].size


@pytest.mark.parametrize("scenario", [FIXED, LATER])
def test_devices_do_not_change_what_is_trained(scenario):
    experiment = make(transfer=scenario, optimizer=Optimizer(name="sgd", learning_rate=0.1))
    _, expected, metrics = run(experiment)
    state, body = parts(experiment, parallel.AXIS)
    state, step = parallel.replicate(state), parallel.data_parallel(body)
    for batch in batches_of(experiment, 2):
        state, found = jax.block_until_ready(step(state, parallel.shard_batch(batch)))
    assert jax.device_count() == 4
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-4)
    for path, value in flat(state.params).items():
        np.testing.assert_allclose(value, flat(expected.params)[path], atol=1e-5, err_msg=path)


def test_the_gradient_is_that_of_the_whole_net_where_the_fixed_part_infers():
    """Against the plain gradient by all parameters, of a net whose encoder is called to infer."""
    experiment = make(transfer=FIXED, optimizer=Optimizer(name="sgd", learning_rate=1.0))
    before, after, metrics = run(experiment, 1)
    (batch,) = batches_of(experiment, 1)
    spec = dataset().spec
    model = assembly.build_model(experiment, spec, None)
    task = tasks.for_dataset(spec.task, spec.num_classes)
    image = assembly.normalise(batch["image"], spec)
    _, dropout = jax.random.split(jax.random.key(experiment.seed))

    def infer(call, args, kwargs, context):
        is_encoder = context.module.scope is not None and context.module.path == ("backbone",)
        return call(*args, **({**kwargs, "train": False} if is_encoder else kwargs))

    def objective(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        with nn.intercept_methods(infer):
            logits, updates = model.apply(
                variables,
                image,
                train=True,
                mutable=["batch_stats", "aux_logits"],
                rngs={"dropout": jax.random.fold_in(dropout, 0)},
            )
        example = {"label": jnp.asarray(batch["label"])}
        total, count = task.loss(logits, example, experiment.loss, None)
        (early,) = updates["aux_logits"]["early"]
        return (total + 0.4 * task.loss(early, example, experiment.loss, None)[0]) / count

    loss, grads = jax.jit(jax.value_and_grad(objective))(before.params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    del grads["backbone"]
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    for path, grad in flat(grads).items():
        moved = flat(before.params)[path] - flat(after.params)[path]
        np.testing.assert_allclose(moved, grad, atol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(name="adamw", learning_rate=0.1, weight_decay=0.5),
        Optimizer(name="sgd", learning_rate=0.1, weight_decay=0.5, schedule="cosine"),
    ],
    ids=["adamw", "sgd"],
)
def test_rates_scale_the_whole_step_of_a_stage(optimizer):
    plain = make(optimizer=optimizer, transfer=FINE, init_from=None)
    slow = dataclasses.replace(
        plain, transfer=Transfer("fine_tune", backbone_rate=0.5, stage_decay=0.25)
    )
    before, after, _ = run(plain, 1)
    _, slower, _ = run(slow, 1)
    assert jax.tree.structure(slower) == jax.tree.structure(after)  # no state of its own
    factors = {"stem": 1 / 32, "mix": 1 / 32, "block2": 1 / 8, "block3": 1 / 2}
    for path, value in flat(before.params).items():
        factor = factors.get(path.split("/")[1], 1.0) if path.startswith("backbone") else 1.0
        step, slow_step = flat(after.params)[path] - value, flat(slower.params)[path] - value
        assert np.any(step != 0), path
        np.testing.assert_allclose(slow_step, factor * step, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def pretrained(coder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    train(make(steps=3), folder, dataset=dataset())
    return folder


def distinct_encoders():
    """One registered model for each kind of encoder."""
    models: dict[type, str] = {}
    for name in list_models():
        models.setdefault(type(getattr(segzoo.get(name), "backbone", None)), name)
    return sorted(name for kind, name in models.items() if kind is not type(None))


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct_encoders())
def test_every_encoder_of_the_zoo_can_be_fixed(name):
    """Statistics of what is fixed come out of the program as they went in; all others do not."""
    entry = registry.entry(name)
    with_norm = {"norm": "batch"} if "norm" in entry.overrides else {}
    model, image = segzoo.get(name, **with_norm), jnp.zeros((1, *entry.input_shape))
    stages = encoder.encoder_stages(model, entry.input_shape)
    last = Plan({part: float(parts is stages[-1]) for parts in stages for part in parts})
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert last.split(shapes["params"])[1]["backbone"].keys() <= last.fixed

    def statistics(before, params, image, key):
        variables = {"params": params, "batch_stats": before}
        options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        _, updates = last.apply(model, variables, image, **options)
        return updates.get("batch_stats", {})

    before = shapes.get("batch_stats", {})
    program = jax.make_jaxpr(statistics)(before, shapes["params"], image, jax.random.key(0)).jaxpr
    after = dict(zip(flat(before), program.outvars, strict=True))
    kept = {
        path
        for path, into in zip(flat(before), program.invars, strict=False)
        if after[path] is into
    }
    prefixes = tuple(f"backbone/{part}/" for part in last.fixed)
    assert kept == {path for path in flat(before) if path.startswith(prefixes)}


# --- features -----------------------------------------------------------------------------------


def test_a_model_goes_on_from_its_encoders_features_exactly():
    state, _ = parts(make())
    model = assembly.build_model(make(), dataset().spec, None)
    image = jax.random.normal(jax.random.key(0), (2, *SIZE, 3))
    features = encoder.encode(model, state.variables, image)
    assert [f.shape for f in features] == [(2, 4, 4, 4), (2, 2, 2, 6), (2, 1, 1, 8)]
    options = {
        "train": True,
        "mutable": ["batch_stats", "aux_logits"],
        "rngs": {"dropout": jax.random.key(1)},
    }
    plan = plan_of(scenario="fixed")
    plain = plan.apply(model, state.variables, image, **options)
    for given in (features, dict(enumerate(features)), {1: features[1], 2: features[2]}):
        again = encoder.apply_with_features(model, state.variables, image, given, **options)
        assert not changed(again, plain)
    assert not changed(plain[1]["batch_stats"]["backbone"], state.batch_stats["backbone"])
    other = [2 * f for f in features]
    assert changed(
        encoder.apply_with_features(model, state.variables, image, other, **options), plain
    )


def test_the_features_a_model_uses_are_found():
    state, _ = parts(make())
    model = assembly.build_model(make(), dataset().spec, parallel.AXIS)
    image = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    assert encoder.used_features(model, state.variables, image) == (1, 2)


def test_a_model_without_an_encoder_has_no_features():
    model, image = nn.Conv(2, (1, 1)), jnp.zeros((1, *SIZE, 3))
    variables = model.init(jax.random.key(0), image)
    with pytest.raises(SegzooError, match=r"'Conv' calls its encoder 0 times"):
        encoder.encode(model, variables, image)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "ema": 0.5}])
def test_training_from_kept_features_is_training(pretrained, tmp_path, capsys, changes):
    plain = make(transfer=FIXED, init_from=str(pretrained), batch_size=8, **changes)
    cached = dataclasses.replace(plain, transfer=Transfer("fixed", cache=True))
    train(plain, tmp_path / "plain", dataset=dataset())
    capsys.readouterr()
    train(cached, tmp_path / "cached", dataset=dataset())
    assert "computing features of 10 images: 1.28 kB in" in capsys.readouterr().err
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "cached" / "features").iterdir()}
    assert sizes == {"1.bin": 10 * 4 * 2 * 2 * 6, "2.bin": 10 * 4 * 8}
    ours, theirs = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("cached", "plain"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-4)
    ours, theirs = (restore_variables(tmp_path / name, "latest")[0] for name in ("cached", "plain"))
    assert not changed(ours["params"]["backbone"], theirs["params"]["backbone"])
    assert not changed(ours["batch_stats"]["backbone"], theirs["batch_stats"]["backbone"])


def test_features_are_computed_again_unless_a_run_goes_on(pretrained, tmp_path, capsys):
    cached = make(transfer=Transfer("fixed", cache=True), init_from=str(pretrained))
    train(cached, tmp_path / "straight", dataset=dataset())
    folder = tmp_path / "stopped"
    folder.mkdir()
    shutil.copy(tmp_path / "straight" / "config.json", folder)  # killed before the first step
    (folder / "features").mkdir()
    for name, size in (("1.bin", 960), ("2.bin", 320)):
        (folder / "features" / name).write_bytes(bytes(size))
    train(cached, folder, dataset=dataset())
    for name in ("1.bin", "2.bin"):
        kept = (folder / "features" / name).read_bytes()
        assert kept == (tmp_path / "straight" / "features" / name).read_bytes()
    shutil.rmtree(folder / "checkpoints" / "6")
    capsys.readouterr()
    train(cached, folder, dataset=dataset())
    assert "computing" not in capsys.readouterr().err
    ours, theirs = (restore_variables(p, "latest")[0] for p in (folder, tmp_path / "straight"))
    assert not changed(ours, theirs)


def test_features_too_large_for_the_disk_are_said(pretrained, tmp_path, monkeypatch):
    cached = make(transfer=Transfer("fixed", cache=True), init_from=str(pretrained))
    usage = collections.namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(SegzooError, match=r"take 1.28 kB, but .* has room for 1 kB"):
        train(cached, tmp_path / "run", dataset=dataset())


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_bit_for_bit(pretrained, tmp_path):
    scenario = Transfer("fine_tune", from_stage=1, backbone_rate=0.1, stage_decay=0.5)
    experiment = make(transfer=scenario, init_from=str(pretrained), ema=0.9)
    train(experiment, tmp_path / "straight", dataset=dataset())

    class Broken(MadeDataset):
        """Cannot be read any more in the fifth step; the last checkpoint is that of the fourth."""

        reads = 0

        def source(self, split):
            source = super().source(split)
            return BrokenSource(source[i] for i in range(10)) if split == "train" else source

    class BrokenSource(list):
        def __getitem__(self, index):
            Broken.reads += 1
            if Broken.reads > 1 + 4 * 4:
                raise SegzooError("broken")
            return super().__getitem__(index)

    broken = Broken(dataset().spec, SIZE, {"train": 10, "val": 4, "test": 4})
    with pytest.raises(SegzooError, match="broken"):
        train(experiment, tmp_path / "stopped", dataset=broken)
    assert {"2", "4"} & {path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()}
    assert train(experiment, tmp_path / "stopped", dataset=dataset()).step == 6
    ours, ours_step = restore_variables(tmp_path / "stopped", "latest")
    theirs, theirs_step = restore_variables(tmp_path / "straight", "latest")
    assert ours_step == theirs_step == 6
    assert not changed(ours, theirs)


def test_a_run_takes_the_encoder_with_its_statistics_and_leaves_it(pretrained, tmp_path):
    experiment = make(transfer=FIXED, init_from=str(pretrained), ema=0.5)
    train(experiment, tmp_path / "run", dataset=dataset())
    before, _ = restore_variables(pretrained)
    after, _ = restore_variables(tmp_path / "run")
    assert not changed(before["params"]["backbone"], after["params"]["backbone"])
    assert not changed(before["batch_stats"]["backbone"], after["batch_stats"]["backbone"])
    assert changed(before["params"]["head"], after["params"]["head"]) == {"kernel", "bias"}
    record = evaluate.evaluate_checkpoint(tmp_path / "run", experiment, dataset())
    assert record["parameters"] == parameters(before["params"])


def test_a_fixed_encoder_of_random_weights_is_said(tmp_path, capsys):
    train(make(steps=1, transfer=FIXED), tmp_path / "fixed", dataset=dataset())
    assert "no init_from: what is fixed of the encoder stays" in capsys.readouterr().err
    train(make(steps=1), tmp_path / "scratch", dataset=dataset())
    assert "init_from" not in capsys.readouterr().err
