"""The dense CRF after a model: its parameters in a run folder, its scores, its search.

`segzoo crf-search RUN` chooses the appearance kernel on the validation split, as DeepLab does, and
writes `crf.json` into the run folder; `segzoo predict --crf` and `segzoo evaluate --crf` take it
from there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segzoo import assembly, checkpoint, provenance
from segzoo import boundary as boundaries
from segzoo import experiment as experiments
from segzoo.boundary import BoundaryTally
from segzoo.data.spec import Dataset
from segzoo.errors import SegzooError, check_name, check_positive_int
from segzoo.experiment import Experiment
from segzoo.files import write_atomically
from segzoo.metrics import predict_classes, scores
from segzoo.ops.dense_crf import DenseCRF, dense_crf, infer, kernels, winners
from segzoo.predict import full_size_logits

FILE = "crf.json"
SEARCHED = ("appearance_weight", "appearance_width", "appearance_color")
DEEPLAB_RANGES = ((3.0, 6.0), (30.0, 100.0), (3.0, 6.0))
"""Where arXiv:1412.7062 searches w1, sigma_alpha and sigma_beta, in the order of `SEARCHED`."""

Example = tuple[np.ndarray, np.ndarray, np.ndarray]


def settings(folder: Path | str, changes: Mapping[str, Any] | None = None) -> DenseCRF:
    """Returns the parameters for a run: those found for it, else DeepLab's, with changes.

    Args:
        folder: a run folder, whose `crf.json` counts if there is one; any other path has none.
        changes: fields of `DenseCRF` by name.

    Raises:
        SegzooError: for an unknown name, an impossible value or a damaged file.
    """
    names = [field.name for field in dataclasses.fields(DenseCRF)]
    path = Path(folder) / FILE
    config = DenseCRF()
    if path.is_file():
        try:
            config = DenseCRF(**json.loads(path.read_text(encoding="utf-8"))["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise SegzooError(f"{path} cannot be read: {error}.") from error
    for name in changes or {}:
        check_name("parameter of the CRF", name, names)
    return dataclasses.replace(config, **(changes or {}))


# --- scores --------------------------------------------------------------------------------------


def score(
    folder: Path, experiment: Experiment, dataset: Dataset, split: str, crf: DenseCRF | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores a run's best checkpoint image by image, with boundary F1, refined or not.

    Several processes do all of it each.

    Args:
        folder: the run.
        experiment: its description.
        dataset: its data; of a semantic task.
        split: the split to score.
        crf: refine the logits; None scores the model alone.

    Returns:
        The confusion matrix, int64 `[K, K]`, and the scores of `metrics.scores` with `boundary_f1`
        and `boundary_definition`.

    Raises:
        SegzooError: for a task without classes per pixel, or an empty split.
    """
    spec = dataset.spec
    total = np.zeros((max(spec.num_classes, 2),) * 2, np.int64)
    tally = BoundaryTally(spec.num_classes)
    for image, label, logits in predictions(folder, experiment, dataset, split):
        if crf is None:
            ids = _ids(logits)
        else:
            ids = winners(np.asarray(dense_crf(logits[None], image[None], crf))[0])
        total += confusion(ids, label, len(total))
        tally.add(ids, label)
    return total, {
        **scores(total, spec.class_names),
        "boundary_f1": tally.score(),
        "boundary_definition": boundaries.DEFINITION,
    }


def predictions(
    folder: Path, experiment: Experiment, dataset: Dataset, split: str, limit: int | None = None
) -> Iterator[Example]:
    """Yields image, label and logits of a split's examples, at the size of evaluation.

    Args:
        folder: the run, whose best checkpoint predicts.
        experiment: its description.
        dataset: its data.
        split: the split.
        limit: of a longer split, that many examples, spread evenly.

    Yields:
        uint8 `[*S, C]`, uint8 `[*S]` and float32 `[*S, K]`; of a model with `padding="VALID"` too.
    """
    spec = dataset.spec
    if spec.task != "semantic":
        raise SegzooError(
            f"dataset {spec.name!r} is for {spec.task}; only semantic models give a class to "
            "every pixel."
        )
    source = dataset.source(split)
    if not len(source):
        raise SegzooError(f"the split {split!r} is empty.")
    transform = assembly.host_transform(experiment, source)
    variables, _ = checkpoint.restore_variables(folder, mode=experiment.mode)
    model = assembly.build_model(experiment, spec, None)

    @jax.jit
    def run(variables: Any, image: jax.Array) -> jax.Array:
        return full_size_logits(model, variables, assembly.normalise(image, spec))

    count = min(limit or len(source), len(source))
    for index in np.linspace(0, len(source) - 1, count).astype(int).tolist():
        example = transform(source[index])
        logits = np.asarray(run(variables, jnp.asarray(example["image"])[None]))[0]
        yield example["image"], example["label"], logits


def _ids(logits: np.ndarray) -> np.ndarray:
    return np.asarray(predict_classes(jnp.asarray(logits)))


def confusion(ids: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Counts on the host what `metrics.confusion_matrix` counts on the device: int64 `[K, K]`."""
    counted = label < classes
    pairs = label[counted].astype(np.int64) * classes + ids[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


# --- search --------------------------------------------------------------------------------------


def search(
    folder: Path | str,
    *,
    images: int = 100,
    ranges: Sequence[tuple[float, float]] = DEEPLAB_RANGES,
    base: DenseCRF | None = None,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Chooses the appearance kernel by mean IoU on validation images, coarse to fine.

    As in arXiv:1412.7062, section 5.1: the smoothness kernel stays; first both ends and the middle
    of each range are tried in every combination, then the points half-way around the best. The test
    split is never seen. Writes `crf.json` into the run folder.

    Args:
        folder: the run.
        images: the most images of the validation split, spread evenly.
        ranges: of w1, sigma_alpha and sigma_beta.
        base: all other parameters; by default DeepLab's.
        data_dir: where the prepared data lies, if not where it was in training.
        manual_dir: where the dataset's own files lie, likewise.
        say: is given a line per stage.

    Returns:
        What is written: the `config` chosen, its `miou` and that of the model alone
        (`miou_without`), and every candidate.

    Raises:
        SegzooError: for impossible ranges, and where the folder is not a run.
    """
    if jax.process_count() > 1:
        raise SegzooError("the search runs in one process; several are running.")
    folder, base = Path(folder), base or DenseCRF()
    check_positive_int("images", images)
    for name, (low, high) in zip(SEARCHED, ranges, strict=True):
        if not 0 < low <= high:
            raise SegzooError(f"the range of {name} is {low} to {high}; expected 0 < low <= high.")
    experiment = experiments.load(folder / "config.json")
    experiment = experiments.moved(experiment, data_dir=data_dir, manual_dir=manual_dir)
    dataset = assembly.open_dataset(experiment)
    split = experiment.val_split
    tried: dict[tuple[float, ...], float] = {}
    alone = np.nan

    def attempt(points: list[tuple[float, ...]]) -> None:
        nonlocal alone
        examples = predictions(folder, experiment, dataset, split, images)
        configs = [_at(base, point) for point in points]
        found, alone = _mean_ious(examples, configs, dataset.spec.num_classes)
        tried.update(zip(points, found, strict=True))

    grids = [sorted({low, (low + high) / 2, high}) for low, high in ranges]
    attempt(list(itertools.product(*grids)))
    best = max(tried, key=lambda point: tried[point])
    say(f"coarse: {_named(best)}: mIoU {tried[best]:.4f}; without CRF {alone:.4f}")
    grids = [
        sorted({min(max(center + sign * (high - low) / 4, low), high) for sign in (-1, 0, 1)})
        for center, (low, high) in zip(best, ranges, strict=True)
    ]
    attempt([point for point in itertools.product(*grids) if point not in tried])
    best = max(tried, key=lambda point: tried[point])
    say(f"fine: {_named(best)}: mIoU {tried[best]:.4f}; without CRF {alone:.4f}")
    if tried[best] <= alone:
        say("no setting is better than the model alone.")
    chosen = _at(base, best)
    record = {
        "config": dataclasses.asdict(chosen),
        "miou": tried[best],
        "miou_without": alone,
        "split": split,
        "images": min(images, len(dataset.source(split))),
        "ranges": {name: list(ends) for name, ends in zip(SEARCHED, ranges, strict=True)},
        "candidates": [
            {**dict(zip(SEARCHED, point, strict=True)), "miou": miou}
            for point, miou in sorted(tried.items())
        ],
        **provenance.describe(),
    }
    write_atomically(folder / FILE, (json.dumps(record, indent=2) + "\n").encode())
    return record


def _at(base: DenseCRF, point: tuple[float, ...]) -> DenseCRF:
    weight, width, color = point
    return dataclasses.replace(
        base, appearance_weight=weight, appearance_width=width, appearance_color=color
    )


def _named(point: tuple[float, ...]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(SEARCHED, point, strict=True))


def _mean_ious(
    examples: Iterator[Example], configs: list[DenseCRF], num_classes: int
) -> tuple[list[float], float]:
    """Returns the mean IoU of every config, and of the logits as they are."""
    classes = max(num_classes, 2)
    names = [str(k) for k in range(classes)]
    totals = np.zeros((len(configs) + 1, classes, classes), np.int64)
    by_kernel: dict[tuple[float, float], list[int]] = {}
    for i, config in enumerate(configs):
        key = config.appearance_width, config.appearance_color
        by_kernel.setdefault(key, []).append(i)
    for image, label, logits in examples:
        totals[-1] += confusion(_ids(logits), label, classes)
        if logits.shape[-1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
        for members in by_kernel.values():
            # Configs that differ in weights alone share the lattice.
            found = kernels(image, configs[members[0]])
            for i in members:
                ids = winners(infer(logits, found, configs[i]))
                totals[i] += confusion(ids, label, classes)
    found_scores = [scores(total, names)["miou"] or 0.0 for total in totals]
    return found_scores[:-1], found_scores[-1]
