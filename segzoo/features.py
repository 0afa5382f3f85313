"""The features of a fixed encoder, computed once for every training image and kept in files.

The files lie in the run's folder, one for each map the rest of the model uses, the examples one
after the other in the order of the split. Training reads them beside image and label.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segzoo import assembly, encoder, parallel
from segzoo.data.batching import Transform
from segzoo.data.pipeline import eval_batches
from segzoo.data.spec import DatasetSpec, Example, Source
from segzoo.errors import SegzooError
from segzoo.experiment import Experiment

FOLDER = "features"
_KEY = "feature"


@dataclasses.dataclass(frozen=True)
class Map:
    """One map of features, of all examples in one file.

    Attributes:
        place: its position among the encoder's maps.
        path: the file.
        shape: `[*S, C]` of one example.
        dtype: its name, "float32" or "bfloat16".
    """

    place: int
    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """The size of one example."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def read(self, index: int) -> np.ndarray:
        """Returns the map of an example."""
        raw = np.fromfile(self.path, np.uint8, self.bytes, offset=index * self.bytes)
        return raw.view(jnp.dtype(self.dtype)).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class WithFeatures:
    """A source whose examples are transformed and carry their features; can be pickled.

    Attributes:
        source: the examples.
        transform: what is done to them on the host.
        maps: the features, one file each.
    """

    source: Source
    transform: Transform
    maps: tuple[Map, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        features = {f"{_KEY}{each.place}": each.read(index) for each in self.maps}
        return {**self.transform(self.source[index]), **features}

    def name(self, index: int) -> str:
        """Returns what the source calls an example."""
        name = getattr(self.source, "name", None)
        return str(name(index)) if name else f"{index}"


def of_batch(batch: dict[str, jax.Array]) -> dict[int, jax.Array]:
    """Returns a batch's features by their place among the encoder's; none without a cache."""
    names = (name for name in batch if name.startswith(_KEY))
    return {int(name.removeprefix(_KEY)): batch[name] for name in names}


def keep(
    experiment: Experiment,
    model: nn.Module,
    variables: Any,
    source: Source,
    spec: DatasetSpec,
    run_folder: Path,
    *,
    afresh: bool,
) -> WithFeatures:
    """Computes the features of all examples, unless they are there, and says how large they are.

    With several processes the main one computes for all; they share the run's folder.

    Args:
        experiment: what is done to the examples on the host.
        model: a module with a backbone.
        variables: on the local devices.
        source: the training examples.
        spec: mean and std of the images.
        run_folder: where to keep them.
        afresh: compute them even if they are there: the encoder may be another.

    Raises:
        SegzooError: when they are too large for the disk, or the images differ in size.
    """
    transform = assembly.host_transform(experiment, source)
    image_shape = assembly.training_shape(experiment, source)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda v, x: encoder.encode(model, v, x), variables, image)
    folder = run_folder / FOLDER
    maps = tuple(
        Map(place, folder / f"{place}.bin", shapes[place].shape[1:], str(shapes[place].dtype))
        for place in encoder.used_features(model, variables, image)
    )
    there = all(
        each.path.is_file() and each.path.stat().st_size == len(source) * each.bytes
        for each in maps
    )
    size = len(source) * sum(each.bytes for each in maps)
    if parallel.is_main_process() and (afresh or not there):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise SegzooError(
                f"the features of {len(source)} training images take {_size(size)}, but "
                f"{folder} has room for {_size(free)}; train without transfer.cache."
            )
        parallel.log(f"computing features of {len(source)} images: {_size(size)} in {folder}.")
        batches = eval_batches(
            source,
            batch_size=assembly.eval_batch_size(experiment),
            transform=transform,
            threads=experiment.loader_threads,
            workers=experiment.loader_workers,
        )
        _compute(model, variables, spec, maps, batches, image_shape, len(source))
    parallel.any_process(False)  # the others wait until that is done
    return WithFeatures(source, transform, maps)


def _compute(
    model: nn.Module,
    variables: Any,
    spec: DatasetSpec,
    maps: tuple[Map, ...],
    batches: Any,
    image_shape: tuple[int, ...],
    count: int,
) -> None:
    @jax.jit
    def run(variables: Any, image: jax.Array) -> list[jax.Array]:
        image = assembly.normalise(image.reshape(-1, *image.shape[2:]), spec)
        features = encoder.encode(model, variables, image)
        return [features[each.place] for each in maps]

    # Under other names until they are whole: a run may be killed in here.
    files = [each.path.with_suffix(".part").open("wb") for each in maps]
    try:
        with batches:
            for batch in batches:
                here = batch["index"] < count  # the last batch is filled up
                for size in batch["size"][here]:
                    if tuple(size) != image_shape[:-1]:
                        raise SegzooError(
                            f"transfer.cache needs images of one size, but they are "
                            f"{'x'.join(map(str, size))} and "
                            f"{'x'.join(map(str, image_shape[:-1]))}; set image_size."
                        )
                images = parallel.shard_batch({"image": batch["image"]})["image"]
                for file, array in zip(files, jax.device_get(run(variables, images)), strict=True):
                    file.write(array[here].tobytes())
    finally:
        for file in files:
            file.close()
    for each in maps:
        each.path.with_suffix(".part").replace(each.path)


def _size(count: int) -> str:
    """A number of bytes, for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
