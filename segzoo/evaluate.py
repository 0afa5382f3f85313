"""A split -> a summed tally -> scores -> `results.json` and pictures."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segzoo import assembly, checkpoint, instances, parallel, provenance, refine, tasks, visualize
from segzoo import boundary as boundaries
from segzoo import experiment as experiments
from segzoo.data.spec import Dataset, DatasetSpec
from segzoo.experiment import Experiment
from segzoo.files import write_atomically
from segzoo.metrics import predict_classes
from segzoo.object_pictures import object_panel
from segzoo.object_predict import ObjectPredictor
from segzoo.ops.dense_crf import DenseCRF, dense_crf, winners
from segzoo.predict import full_size_logits
from segzoo.runlog import read_rows

RESULTS = "results.json"


def make_eval_step(
    model: nn.Module,
    task: tasks.Task,
    experiment: Experiment,
    spec: DatasetSpec,
    weights: jax.Array | None,
    axis_name: str | None,
    *,
    flip: bool = False,
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Returns the body of an evaluation step, to be compiled by `parallel.data_parallel`.

    It maps (variables, batch) to `{"tally", "loss_sum", "loss_count"}`, those of all devices. With
    `flip` the probabilities are those of `both_ways`.
    """
    predict = both_ways if flip else full_size_logits

    def step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image = assembly.normalise(batch["image"], spec, batch.get("size"))

        def ask(learning: bool) -> Any:
            return predict(model, variables, image, **task.inputs(batch, learning=learning))

        answers = ask(learning=True)
        total, count = task.loss(answers, batch, experiment.loss, weights)
        # What the two answers share is computed once all the same: the compiler sees to it.
        tally = task.tally(ask(learning=False) if task.asks_twice else answers, batch)
        sums = parallel.psum({"loss_sum": total, "loss_count": count}, axis_name)
        return {**sums, "tally": task.gather(tally)}

    return step


def both_ways(model: nn.Module, variables: Any, image: jax.Array) -> jax.Array:
    """Returns logits of the probabilities averaged over an image and its mirror image.

    Args:
        model: a module.
        variables: its `params` and, where it has any, `batch_stats`.
        image: `[B, *S, C]`, normalised; the last spatial axis is mirrored.

    Returns:
        float32 `[B, *S, K]`, or `[B, K]` of a classifier.
    """
    logits = full_size_logits(model, variables, image)
    mirrored = full_size_logits(model, variables, jnp.flip(image, -2))
    if logits.ndim == image.ndim:
        mirrored = jnp.flip(mirrored, -2)
    if logits.shape[-1] == 1:
        one = (jax.nn.log_sigmoid(x) for x in (logits, mirrored))
        none = (jax.nn.log_sigmoid(-x) for x in (logits, mirrored))
        return jnp.logaddexp(*one) - jnp.logaddexp(*none)
    return jnp.logaddexp(jax.nn.log_softmax(logits), jax.nn.log_softmax(mirrored)) - np.log(2)


def evaluate_split(
    step: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    variables: Any,
    experiment: Experiment,
    dataset: Dataset,
    split: str,
    task: tasks.Task,
) -> tuple[Any, float]:
    """Runs a compiled evaluation step over a whole split, every example once.

    Args:
        step: the body of `make_eval_step` under `parallel.data_parallel`.
        variables: `{"params": ..., "batch_stats": ...}`.
        experiment: says how the examples are fitted and read.
        dataset: holds the split.
        split: its name.
        task: what is tallied.

    Returns:
        The split's tally, for `task.scores`, and the mean loss over its valid pixels.
    """
    tally = assembly.begin_tally(experiment, dataset, split, task)
    total = count = 0.0
    with assembly.split_batches(experiment, dataset, split) as batches:
        for batch in batches:
            inputs = {name: batch[name] for name in task.arrays if name in batch}
            sums = jax.device_get(step(variables, parallel.shard_batch(inputs)))
            tally = task.add(tally, sums["tally"])
            total += float(sums["loss_sum"])
            count += float(sums["loss_count"])
    return tally, total / max(count, 1.0)


def split_scores(
    step: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    variables: Any,
    experiment: Experiment,
    dataset: Dataset,
    split: str,
    task: tasks.Task,
) -> tuple[dict[str, Any], float]:
    """Returns the scores of a split, without the words that define them, and its mean loss.

    The arguments are those of `evaluate_split`.
    """
    tally, loss = evaluate_split(step, variables, experiment, dataset, split, task)
    scores = task.scores(tally, dataset.spec.class_names)
    del scores["definition"]
    return scores, loss


def evaluate_run(
    run_folder: Path | str,
    *,
    split: str | None = None,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    crf: DenseCRF | None = None,
    boundary: bool = False,
) -> dict[str, Any]:
    """Scores a run's best checkpoint and writes `results.json`, pictures and the curves.

    Args:
        run_folder: the run.
        split: the split to score; the experiment's test split by default. Another split is written
            to `results-<split>.json`, so that it cannot pass for the test score.
        data_dir: where the prepared data lies, if not where it was in training.
        manual_dir: where the dataset's own files lie, likewise.
        crf: refine the logits by a dense CRF; written to `results-crf.json` (with the split between
            them where it is another), pictures to `predictions-crf`.
        boundary: also score `boundary_f1` (see `segzoo.boundary`); with a CRF, and where the
            experiment asks for it, it always is.

    Returns:
        The record, as written.

    Raises:
        SegzooError: when the folder is not a run, or has no checkpoint.
    """
    folder = Path(run_folder)
    experiment = experiments.load(folder / "config.json")
    experiment = experiments.moved(experiment, data_dir=data_dir, manual_dir=manual_dir)
    dataset = assembly.open_dataset(experiment)
    return evaluate_checkpoint(folder, experiment, dataset, split=split, crf=crf, boundary=boundary)


def evaluate_checkpoint(
    folder: Path,
    experiment: Experiment,
    dataset: Dataset,
    *,
    split: str | None = None,
    crf: DenseCRF | None = None,
    boundary: bool = False,
) -> dict[str, Any]:
    """Does the work of `evaluate_run` for an experiment and a dataset at hand."""
    split = split or experiment.test_split
    spec = dataset.spec
    variables, best_step = checkpoint.restore_variables(folder, mode=experiment.mode)
    model = assembly.build_model(experiment, spec, parallel.AXIS)
    task = tasks.for_dataset(spec.task, spec.num_classes, parallel.AXIS)
    weights = assembly.class_weights(experiment, dataset)
    body = make_eval_step(model, task, experiment, spec, weights, parallel.AXIS)
    step = parallel.data_parallel(body)

    began = time.perf_counter()
    scores: dict[str, Any] = {}
    if crf is None:
        placed = parallel.replicate(variables)
        tally, loss = evaluate_split(step, placed, experiment, dataset, split, task)
        scores = {**task.scores(tally, spec.class_names), "loss": loss}
        if experiment.flip_test:
            body = make_eval_step(model, task, experiment, spec, None, parallel.AXIS, flip=True)
            step = parallel.data_parallel(body)
            scores["flip"], _ = split_scores(step, placed, experiment, dataset, split, task)
    boundary = boundary or experiment.boundary_f1 or crf is not None
    if boundary:
        tally, found = refine.score(folder, experiment, dataset, split, crf)
        scores = {**scores, **found}
    seconds = time.perf_counter() - began

    history = read_rows(folder / "metrics.jsonl")
    trained = [row for row in history if row["split"] == "train"]
    record = {
        "experiment": experiment.name,
        "row": experiment.row or experiment.model,
        "preset": experiment.preset,
        "model": experiment.model,
        "model_args": experiment.model_args,
        "dataset": experiment.dataset,
        "split": split,
        "task": spec.task,
        "scores": scores,
        "confusion": tally.tolist() if isinstance(tally, np.ndarray) else None,
        "protocol": protocol(experiment, task, split, crf, boundary=boundary),
        "published": None if experiment.published is None else {**vars(experiment.published)},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "steps": trained[-1]["step"] if trained else 0,
        "best_step": best_step,
        "batch_size": experiment.batch_size,
        "image_size": experiment.image_size,
        "seed": experiment.seed,
        "train_seconds": round(trained[-1]["seconds"], 1) if trained else 0.0,
        "evaluate_seconds": round(seconds, 1),
        **provenance.describe(),
        "notes": "",
    }
    if crf is not None:
        record["crf"] = dataclasses.asdict(crf)
    if parallel.is_main_process():
        # Only what the experiment itself asks for is called results.json.
        parts = [] if split == experiment.test_split else [_safe(split)]
        parts += [] if crf is None else ["crf"]
        name = "-".join(["results", *parts]) + ".json"
        write_atomically(folder / name, (json.dumps(record, indent=2) + "\n").encode())
        pictures = folder / ("predictions" if crf is None else "predictions-crf")
        if spec.task == "semantic":
            draw(pictures, experiment, dataset, split, model, variables, crf)
        elif spec.task == "instance":
            draw_detections(pictures, experiment, dataset, split, model, variables)
        if history:
            visualize.curves(folder / "metrics.jsonl").save(folder / "curves.png")
    return record


def _safe(split: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in split)


def protocol(
    experiment: Experiment,
    task: tasks.Task,
    split: str,
    crf: DenseCRF | None = None,
    *,
    boundary: bool = False,
) -> str:
    """Returns in a sentence or two how the scores came about."""
    size = "the images' own size"
    if experiment.image_size is not None:
        size = "x".join(map(str, experiment.image_size)) + f" ({experiment.image_fit})"
    by_image = experiment.model_args.get("test_statistics") == "image"
    return (
        f"{split!r} split at {size}, single scale, "
        + ("without flips, and with (flip)" if experiment.flip_test else "no flips")
        + "; checkpoint picked by "
        + f"{experiment.monitor} on {experiment.val_split!r}"
        + ("" if crf is None else "; refined by a dense CRF at that size")
        + ("; batch norm by each image's own statistics" if by_image else "")
        + f". {task.definition}"
        + (f"; {boundaries.DEFINITION}" if boundary else "")
    )


def draw(
    folder: Path,
    experiment: Experiment,
    dataset: Dataset,
    split: str,
    model: nn.Module,
    variables: Any,
    crf: DenseCRF | None = None,
) -> None:
    """Writes image, truth, prediction and errors of the first examples of a split as PNG files."""
    spec, source = dataset.spec, dataset.source(split)
    transform = assembly.host_transform(experiment, source)

    @jax.jit
    def predict(variables: Any, image: jax.Array) -> jax.Array:
        logits = full_size_logits(model, variables, assembly.normalise(image, spec))
        return predict_classes(logits) if crf is None else logits

    folder.mkdir(parents=True, exist_ok=True)
    for index in _spread(experiment.pictures, len(source)):
        example = transform(source[index])
        if example["image"].ndim != 3:
            return  # volumes have no one picture
        prediction = np.asarray(predict(variables, jnp.asarray(example["image"])[None]))
        if crf is not None:
            prediction = winners(np.asarray(dense_crf(prediction, example["image"][None], crf)))
        prediction = prediction[0]
        panel = visualize.panel(
            example["image"],
            example["label"],
            prediction,
            spec.class_names,
            spec.palette,
            title=f"{experiment.row or experiment.model}: {split} {index}",
        )
        panel.save(folder / f"{_safe(split)}-{index:04d}.png")


def draw_detections(
    folder: Path,
    experiment: Experiment,
    dataset: Dataset,
    split: str,
    model: nn.Module,
    variables: Any,
) -> None:
    """Writes image, truth and detections of the first examples of a split as PNG files."""
    spec, source = dataset.spec, assembly.scored_source(experiment, dataset.source(split))
    predictor = ObjectPredictor(model, variables, assembly.model_info(experiment, spec))
    folder.mkdir(parents=True, exist_ok=True)
    for index in _spread(experiment.pictures, len(source)):
        example = source[index]
        panel = object_panel(
            example["image"],
            instances.truth(example),
            predictor(example["image"]),
            spec.class_names,
            title=f"{experiment.row or experiment.model}: {split} {index}",
        )
        panel.save(folder / f"{_safe(split)}-{index:04d}.png")


def _spread(count: int, length: int) -> list[int]:
    """Places spread over a split: neighbours in one are often frames of one scene."""
    places: list[int] = np.linspace(0, length - 1, min(count, length)).astype(int).tolist()
    return places
