"""From an `Experiment` to the parts of a run: model, data, weights of the classes."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import segzoo
from segzoo import data, parallel, registry, weights
from segzoo import experiment as experiments
from segzoo.data.pipeline import Batches, eval_batches
from segzoo.data.spec import Dataset, DatasetSpec, Example, Source
from segzoo.data.statistics import median_frequency
from segzoo.data.transforms import BorderWeight, Fit, FitSides
from segzoo.errors import SegzooError
from segzoo.experiment import Experiment
from segzoo.losses import Loss
from segzoo.models import fcn
from segzoo.predict import trained_size
from segzoo.tasks import Task
from segzoo.weights import ModelInfo


def build_model(experiment: Experiment, spec: DatasetSpec, axis_name: str | None) -> nn.Module:
    """Builds the experiment's model for a dataset's classes.

    Raises:
        SegzooError: for an unknown model or override, or one that does not fit the dataset's task.
    """
    entry = registry.entry(experiment.model)
    if entry.task != spec.task:
        raise SegzooError(
            f"model {experiment.model!r} is for {entry.task}, but dataset {spec.name!r} is for "
            f"{spec.task}."
        )
    if spec.task == "instance" and (experiment.loss != Loss() or experiment.flip_test):
        raise SegzooError(
            f"the model {experiment.model!r} of objects has losses of its own and is scored "
            "without flips; expected neither loss nor flip_test."
        )
    if experiment.boundary_f1 and spec.task != "semantic":
        raise SegzooError(
            f"boundary_f1 scores the outlines of a segmentation, but dataset {spec.name!r} is for "
            f"{spec.task}."
        )
    overrides: dict[str, Any] = {
        "num_classes": spec.num_classes,
        "dtype": jnp.dtype(experiment.dtype),
        **experiment.model_args,
    }
    if "axis_name" in entry.overrides:
        overrides["axis_name"] = axis_name
    return registry.get(experiment.model, **overrides)


def model_info(experiment: Experiment, spec: DatasetSpec) -> ModelInfo:
    """Describes the experiment's model for whoever loads its weights."""
    return ModelInfo(
        model=experiment.model,
        model_args={"num_classes": spec.num_classes, **experiment.model_args},
        class_names=spec.class_names,
        palette=spec.palette,
        mean=spec.mean,
        std=spec.std,
        task=spec.task,
        in_channels=spec.channels,
        image_size=experiment.image_size,
        image_fit=experiment.image_fit,
        dataset=spec.name,
        segzoo_version=segzoo.__version__,
    )


def spatial_dims(experiment: Experiment) -> int:
    """Returns 2 for a model of pictures, 3 for one of volumes."""
    default = len(registry.entry(experiment.model).input_shape) - 1
    dims: Any = experiment.model_args.get("spatial_dims", default)
    return int(dims)


def training_shape(experiment: Experiment, source: Source) -> tuple[int, ...]:
    """Returns `(*S, C)` of the images the model sees in training."""
    image = host_transform(experiment, source)(source[0])["image"]
    size = experiment.augment.crop_size or image.shape[:-1]
    return (*size, image.shape[-1])


def pinned(experiment: Experiment, folder: Path) -> Experiment:
    """Returns the experiment with weights on the hub in `init_from` pinned to a commit.

    A run that was begun in `folder` goes on with the commit it began with; a new one takes the
    newest. So the folder's config.json repeats the run whatever becomes of the repository.

    Raises:
        SegzooError: when the hub has no such weights, or cannot be reached.
    """
    wanted = experiment.init_from
    if wanted is None:
        return experiment
    config = folder / "config.json"
    if config.exists():
        begun = experiments.load(config).init_from
        fixed = begun if weights.is_pin_of(begun, wanted) else wanted
    else:
        fixed = weights.pin(wanted)
    return dataclasses.replace(experiment, init_from=fixed)


def initial_variables(
    experiment: Experiment,
    variables: dict[str, Any],
    model: nn.Module,
    image_shape: tuple[int, ...],
) -> dict[str, Any]:
    """Returns freshly initialised `variables` with what `init_from` has for them, and says so.

    A finer FCN starts from a coarser one as in the paper; see `weights.start_from` for the rest.

    Args:
        experiment: `init_from` and `model` are read from it.
        variables: as `model.init` gives them.
        model: the experiment's.
        image_shape: `(*S, C)` of a training image.

    Raises:
        SegzooError: when the weights cannot be read or do not fit.
    """
    assert experiment.init_from is not None
    source = weights.read(experiment.init_from)
    coarser = source.info.model if source.info is not None else ""
    if {coarser, experiment.model} <= {"fcn32s", "fcn16s", "fcn8s"} and coarser != experiment.model:
        taken = weights.unflatten(source.tensors)
        return {
            **variables,
            **taken,
            "params": fcn.from_coarser(variables["params"], taken["params"]),
        }
    started, notes = weights.start_from(source, variables, model, image_shape)
    for note in notes:
        parallel.log(note)
    return started


def open_dataset(experiment: Experiment) -> Dataset:
    """Opens the experiment's dataset."""
    return data.get(
        experiment.dataset, data_dir=experiment.data_dir, manual_dir=experiment.manual_dir
    )


@dataclasses.dataclass(frozen=True)
class Chain:
    """Host transforms one after the other; can be pickled."""

    steps: tuple[Fit | FitSides | BorderWeight, ...]

    def __call__(self, example: Example) -> Example:
        """Returns the example after every step."""
        for step in self.steps:
            example = step(example)
        return example

    @property
    def canvases(self) -> tuple[tuple[int, ...], ...]:
        """What batches of images of several sizes are padded to, smallest first."""
        sizes = [step.canvases for step in self.steps if isinstance(step, FitSides)]
        return sizes[-1] if sizes else ()

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of an image that came in with `shape` `(*S, C)`."""
        for step in self.steps:
            shape = step.output_shape(shape)
        return shape


def host_transform(experiment: Experiment, source: Source) -> Chain:
    """Returns what is done to every example on the host: its size, and the border map."""
    steps: list[Fit | FitSides | BorderWeight] = []
    if experiment.image_size is not None:
        if experiment.image_fit == "sides":
            steps.append(FitSides(experiment.image_size))
        else:
            steps.append(Fit(experiment.image_size, experiment.image_fit))
    if experiment.border_weight:
        facts = getattr(source, "facts", None)
        steps.append(BorderWeight(cache_dir=facts and facts / "border_weight"))
    return Chain(tuple(steps))


def class_weights(experiment: Experiment, dataset: Dataset) -> jax.Array | None:
    """Returns the loss's weight per class, float32 `[K]`, or None."""
    wanted = experiment.loss.class_weights
    if wanted == "none":
        return None
    if wanted == "median_frequency":
        source = dataset.source(experiment.train_split)
        return jnp.asarray(median_frequency(source, dataset.spec.num_classes))
    if len(wanted) != dataset.spec.num_classes:
        raise SegzooError(
            f"loss.class_weights has {len(wanted)} values; expected one for each of the "
            f"{dataset.spec.num_classes} classes of {dataset.spec.name!r}."
        )
    return jnp.asarray(wanted, jnp.float32)


def normalise(
    image: jax.Array, spec: DatasetSpec | ModelInfo, size: jax.Array | None = None
) -> jax.Array:
    """Brings images of 0..255 to zero mean and unit variance, by the dataset's own figures.

    Args:
        image: `[..., *S, C]`.
        spec: its mean and std.
        size: int `[..., len(S)]`: what lies beyond is padding, and becomes 0, the mean colour.
    """
    mean, std = jnp.asarray(spec.mean, jnp.float32), jnp.asarray(spec.std, jnp.float32)
    normal = (image.astype(jnp.float32) - mean) / std
    if size is None:
        return normal
    space = image.shape[-1 - size.shape[-1] : -1]
    for axis, length in enumerate(space):
        within = jnp.arange(length) < size[..., axis, None]
        ones = [1] * len(space)
        ones[axis] = length
        normal = jnp.where(within.reshape(*size.shape[:-1], *ones, 1), normal, 0.0)
    return normal


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A source after a host transform."""

    source: Source
    transform: Chain

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.transform(self.source[index])


def scored_source(experiment: Experiment, source: Source) -> Source:
    """Returns the examples as they are scored where that is at the images' own size.

    They are those of the source, unless the images are cut, where only what the model sees counts.
    """
    if experiment.image_size is None or experiment.image_fit != "crop":
        return source
    return Fitted(source, host_transform(experiment, source))


def begin_tally(experiment: Experiment, dataset: Dataset, split: str, task: Task) -> Any:
    """Returns the tally of a split before its first batch."""
    source = scored_source(experiment, dataset.source(split))
    info = model_info(experiment, dataset.spec)
    return task.begin(source, functools.partial(trained_size, info=info))


def eval_batch_size(experiment: Experiment) -> int:
    """The training batch, rounded up to fill every device."""
    devices = jax.device_count()
    return math.ceil(experiment.batch_size / devices) * devices


def split_batches(experiment: Experiment, dataset: Dataset, split: str) -> Batches:
    """Returns this process's share of a split's evaluation batches."""
    source = dataset.source(split)
    return eval_batches(
        source,
        batch_size=eval_batch_size(experiment),
        transform=host_transform(experiment, source),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=experiment.loader_threads,
        workers=experiment.loader_workers,
    )
