"""The training loop, top to bottom: a state, a step, and the loop that drives it.

The step is one pure function of (state, batch). Every random number in it is a function of the
experiment's seed and of an example's place in the stream of data, so a run is the same on any
number of devices and processes, and a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from segzoo import assembly, evaluate, features, optim, parallel, tasks, transfer
from segzoo import experiment as experiments
from segzoo.checkpoint import Checkpoints
from segzoo.data import augment
from segzoo.data.batching import Transform
from segzoo.data.pipeline import device_prefetch, train_batches
from segzoo.data.spec import Dataset, DatasetSpec
from segzoo.errors import SegzooError
from segzoo.experiment import Experiment
from segzoo.initializers import init
from segzoo.interrupt import StopRequest
from segzoo.runlog import RunLog
from segzoo.transfer import Plan
from segzoo.watch import Watch, monitored, patience_is_over
from segzoo.weights.info import FILE_NAME as MODEL_FILE

Step = Callable[["TrainState", dict[str, jax.Array]], tuple["TrainState", dict[str, jax.Array]]]


@flax.struct.dataclass
class TrainState:
    """All that a run needs to go on: arrays only, saved whole.

    Attributes:
        step: int32 `[]`, optimizer steps done; also the place in the data.
        params: the model's parameters, float32.
        batch_stats: BatchNorm's running statistics, `{}` without them.
        opt_state: optax's state, of the trained parameters joined by `optim.join`.
        ema: the running average of the trained parameters, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation uses: the running average where there is one."""
        params = self.params if self.ema is None else transfer.union(self.params, self.ema)
        return {"params": params, "batch_stats": self.batch_stats}


# --- state ---------------------------------------------------------------------------------------


def create_state(
    experiment: Experiment,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
) -> TrainState:
    """Initialises a state from the experiment's seed, and from `init_from` where given.

    Args:
        experiment: seed, `init_from`, `transfer` and `ema` are read from it.
        model: the module.
        optimizer: the optax transformation.
        image_shape: `(*S, C)` of a training image.

    Returns:
        A state at step 0, float32, in the parameters' natural shape.

    Raises:
        SegzooError: when the weights to start from do not fit.
    """

    plan = transfer.make_plan(experiment, model, image_shape)
    key = jax.random.key(experiment.seed)
    variables = init(model, {"params": key}, jnp.zeros((1, *image_shape)))
    if experiment.init_from is not None:
        variables = assembly.initial_variables(experiment, variables, model, image_shape)
    elif plan.fixed:
        parallel.log("no init_from: what is fixed of the encoder stays as it is drawn, random.")
    trained, _ = plan.split(variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(lambda trained: optimizer.init(optim.join(trained)))(trained),
        # A copy: the donated state must not hold the same buffer twice.
        ema=jax.tree.map(jnp.copy, trained) if experiment.ema else None,
    )


# --- step ----------------------------------------------------------------------------------------


def make_train_step(
    experiment: Experiment,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    task: tasks.Task,
    spec: DatasetSpec,
    class_weights: jax.Array | None,
    axis_name: str | None,
) -> Step:
    """Returns the body of a train step, to be compiled by `parallel.data_parallel`.

    Args:
        experiment: loss, augmentation, transfer, accumulation and averaging are read from it.
        model: built with the same `axis_name`.
        optimizer: the optax transformation `create_state` was given.
        task: what the model's answers mean.
        spec: mean and std of the images.
        class_weights: float32 `[K]`, or None.
        axis_name: the axis of the devices, or None for a single one.

    Returns:
        `(state, batch) -> (state, {"loss", "grad_norm"})`. The gradient is that of the mean over
        all valid pixels of the global batch, by the trained parameters: sums and counts add up over
        devices, divided once.
    """
    augment_key, dropout_key = jax.random.split(jax.random.key(experiment.seed))
    fill = jnp.asarray(spec.mean, jnp.float32)
    collections_ = ["batch_stats"] + (["aux_logits"] if experiment.loss.auxiliary else [])

    def prepare(batch: dict[str, jax.Array]) -> dict[str, Any]:
        def one(index: jax.Array, example: dict[str, jax.Array]) -> dict[str, jax.Array]:
            example = {**example, "image": example["image"].astype(jnp.float32)}
            key = jax.random.fold_in(augment_key, index)
            return augment.apply(experiment.augment, key, example, fill=fill)

        example = {name: batch[name] for name in task.arrays if name in batch}
        example = jax.vmap(one)(batch["index"], example)
        example["image"] = assembly.normalise(example["image"], spec, example.get("size"))
        return {**example, "features": features.of_batch(batch)}

    def gradients(
        plan: Plan, trained: Any, fixed: Any, batch_stats: Any, example: Any, key: jax.Array
    ) -> Any:
        def objective(trained: Any) -> tuple[jax.Array, Any]:
            answers, updates = plan.apply(
                model,
                {"params": transfer.union(fixed, trained), "batch_stats": batch_stats},
                example["image"],
                example["features"],
                train=True,
                mutable=collections_,
                rngs={"dropout": key},
                **task.inputs(example, learning=True),
            )
            total, count = task.loss(answers, example, experiment.loss, class_weights)
            for auxiliary in jax.tree.leaves(updates.get("aux_logits", {})):
                extra, _ = task.loss(auxiliary, example, experiment.loss, class_weights)
                total += experiment.loss.auxiliary * extra
            return total, (count, updates.get("batch_stats", {}))

        (total, (count, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        return (grads, total, count), batch_stats

    def accumulate(
        plan: Plan, trained: Any, fixed: Any, batch_stats: Any, example: Any, key: jax.Array
    ) -> Any:
        parts = experiment.accumulate
        if parts == 1:
            return gradients(plan, trained, fixed, batch_stats, example, key)
        example = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), example)

        def add(carry: Any, part: tuple[jax.Array, Any]) -> tuple[Any, None]:
            sums, batch_stats = carry
            part_key = jax.random.fold_in(key, part[0])
            more, batch_stats = gradients(plan, trained, fixed, batch_stats, part[1], part_key)
            return (jax.tree.map(jnp.add, sums, more), batch_stats), None

        zeros = (jax.tree.map(jnp.zeros_like, trained), jnp.zeros(()), jnp.zeros(()))
        carry, _ = jax.lax.scan(add, (zeros, batch_stats), (jnp.arange(parts), example))
        return carry

    def step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        example = prepare(batch)
        plan = transfer.make_plan(experiment, model, example["image"].shape[1:])
        trained, fixed = plan.split(state.params)
        key = jax.random.fold_in(dropout_key, state.step)
        sums, batch_stats = accumulate(plan, trained, fixed, state.batch_stats, example, key)
        grads, total, count = parallel.psum(sums, axis_name)
        count = jnp.maximum(count, 1.0)  # an all-void batch changes nothing
        joint = optim.join(grads)
        norm = optax.tree.norm(joint) / count
        # A product is computed again by all that read it, a quotient kept as an array.
        joint = jax.tree.map(lambda g: g * (1.0 / count), joint)
        updates, opt_state = optimizer.update(joint, state.opt_state, optim.join(trained))
        updates = plan.scale(optim.part(updates, trained))
        trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(trained, ema, 1.0 - experiment.ema)
        params = transfer.union(fixed, trained)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return new, {"loss": total / count, "grad_norm": norm}

    return step


# --- loop ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: the last optimizer step.
        stopped_by: the signal that asked for the end, or None when the run is complete.
    """

    step: int
    stopped_by: str | None


def train(
    experiment: Experiment,
    run_folder: Path | str,
    *,
    dataset: Dataset | None = None,
    backend: parallel.Backend = "pmap",
) -> Outcome:
    """Trains, or goes on training, in `run_folder`.

    Args:
        experiment: what to train.
        run_folder: made if missing. A run found there is resumed, bit for bit as if never stopped.
        dataset: in place of the experiment's own.
        backend: how the step is compiled (see `parallel.data_parallel`).

    Returns:
        The last step, and whether a signal ended the run early.

    Raises:
        SegzooError: when the folder holds another run, the data or the model do not fit, or the
            loss is no longer finite.
    """
    folder = Path(run_folder)
    experiment = assembly.pinned(experiment, folder)
    dataset = dataset or assembly.open_dataset(experiment)
    spec = dataset.spec
    local_batch = parallel.local_batch_size(experiment.batch_size) // jax.local_device_count()
    if local_batch % experiment.accumulate:
        raise SegzooError(
            f"accumulate is {experiment.accumulate}; expected a divisor of the {local_batch} "
            "examples each device gets."
        )
    axis_name = None if backend == "jit" else parallel.AXIS
    model = assembly.build_model(experiment, spec, axis_name)
    optimizer = experiment.optimizer.build(experiment.steps)
    task = tasks.for_dataset(spec.task, spec.num_classes, axis_name)
    weights = assembly.class_weights(experiment, dataset)

    # What would only show at the first evaluation, hours from now, shows here.
    nothing = assembly.begin_tally(experiment, dataset, experiment.val_split, task)
    monitored(experiment, {"loss": None, **task.scores(nothing, spec.class_names)})

    source = dataset.source(experiment.train_split)
    shape = assembly.training_shape(experiment, source)
    state = parallel.replicate(create_state(experiment, model, optimizer, shape))
    begin_folder(experiment, folder, spec)
    checkpoints = Checkpoints(folder, mode=experiment.mode)
    state = checkpoints.restore_latest(state) or state
    begin = int(state.step)

    arguments = (model, optimizer, task, spec, weights, axis_name)
    train_step = parallel.data_parallel(
        make_train_step(experiment, *arguments), backend=backend, donate_state=True
    )
    eval_step = parallel.data_parallel(
        evaluate.make_eval_step(model, task, experiment, spec, weights, axis_name), backend=backend
    )
    transform: Transform | None = assembly.host_transform(experiment, source)
    if experiment.transfer.cache:
        source = features.keep(
            experiment, model, state.variables, source, spec, folder, afresh=begin == 0
        )
        transform = None  # done by the source now
    batches = train_batches(
        source,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        start=begin,
        transform=transform,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=experiment.loader_threads,
        workers=experiment.loader_workers,
    )
    stream = device_prefetch(batches, parallel.shard_batch)
    log = RunLog(folder, step=begin, total=experiment.steps, title=experiment.label)
    watch = Watch(experiment, folder, log)
    try:
        with StopRequest() as stop:
            for step in range(begin + 1, experiment.steps + 1):
                if patience_is_over(experiment, log):
                    break
                state, metrics = train_step(state, next(stream))
                watch.add(step, metrics)
                last = step == experiment.steps
                if last or step % experiment.log_every == 0:
                    watch.flush(checkpoints.latest_step)
                    stopping = parallel.any_process(stop.signal_name is not None)
                else:
                    stopping = stop.signal_name is not None and jax.process_count() == 1
                if last or step % experiment.eval_every == 0:
                    watch.flush(checkpoints.latest_step)
                    scores = validate(experiment, eval_step, state, dataset, task)
                    log.write("val", step, scores)
                    watch.restart_clock()
                    checkpoints.save(step, state, monitored(experiment, scores))
                elif stopping or step % experiment.checkpoint_every == 0:
                    watch.flush(checkpoints.latest_step)
                    checkpoints.save(step, state)
                if stopping and not last:
                    break
            stopping = parallel.any_process(stop.signal_name is not None)
    finally:
        stream.close()
        batches.close()  # a stream that was never begun does not close them
        log.close()
        checkpoints.close()
    name = stop.signal_name or "a signal to another process"
    return Outcome(int(state.step), name if stopping else None)


def begin_folder(experiment: Experiment, folder: Path, spec: DatasetSpec) -> None:
    """Writes what the run is, or checks that the run found there is the same.

    Raises:
        SegzooError: when the folder holds another run, or files of something else.
    """
    info = assembly.model_info(experiment, spec)
    config = folder / "config.json"
    if config.exists():
        experiments.check_same(experiment, config)
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise SegzooError(f"{folder} holds files but no config.json; give an empty --run-dir.")
    elif parallel.is_main_process():
        # First of all files: with any other a folder abandoned here would look like someone else's.
        experiments.save(experiment, config)
    if parallel.is_main_process() and not (folder / MODEL_FILE).exists():
        info.write(folder)


def validate(
    experiment: Experiment, step: Any, state: TrainState, dataset: Dataset, task: tasks.Task
) -> dict[str, Any]:
    """Returns the loss and the scores of the validation split."""
    split = experiment.val_split
    scores, loss = evaluate.split_scores(step, state.variables, experiment, dataset, split, task)
    return {"loss": loss, **scores}
