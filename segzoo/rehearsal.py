"""One real step of a row at full size, on any machine: that it runs, and what it takes.

A row that needs hours of a GPU must not fail there on a shape. Its rehearsal trains one step on
real images, scores a validation image, saves, and keeps the figures.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segzoo.data.spec import Dataset, Example, Source
from segzoo.errors import SegzooError
from segzoo.experiment import Experiment, shortened

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Few:
    """The first examples of a source; can be pickled."""

    source: Source
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source[index]

    def __getattr__(self, name: str) -> Any:
        if name != "objects":  # how many an example has, where examples have objects
            raise AttributeError(name)
        return self.source.objects  # type: ignore[attr-defined]


class FewOfEach(Dataset):
    """A dataset with the first examples of every split.

    Args:
        dataset: the whole one.
        counts: how many of each split, by the split as an experiment names it.
    """

    def __init__(self, dataset: Dataset, counts: Mapping[str, int]):
        self.spec = dataset.spec
        self._dataset = dataset
        self._counts = dict(counts)

    @property
    def splits(self) -> Mapping[str, int]:
        """The number of examples of each split."""
        return {name: len(self.source(name)) for name in self._counts}

    def source(self, split: str) -> Source:
        """Returns the first examples of a split."""
        return Few(self._dataset.source(split), self._counts.get(split, 1))


def rehearse(experiment: Experiment, dataset: Dataset, folder: Path) -> Facts:
    """Trains one step of a row at its own size, scores a validation image and saves.

    Args:
        experiment: the row; it starts from random weights whatever it would start from.
        dataset: its dataset.
        folder: for the run; made if missing.

    Returns:
        What is known of the row afterwards: its sizes, the multiply-adds of a training and of a
        test image, `step_seconds` of the step with its compilation, `peak_bytes` of this process,
        and where and when.

    Raises:
        SegzooError: when the row cannot be trained.
    """
    from segzoo import assembly, cost, provenance
    from segzoo.runlog import read_rows
    from segzoo.train import train

    splits = (experiment.train_split, experiment.val_split, experiment.test_split)
    sources = [dataset.source(split) for split in splits]
    few = FewOfEach(dataset, {splits[1]: 1, splits[2]: 1, splits[0]: experiment.batch_size})
    train(shortened(experiment, steps=1), folder, dataset=few)
    peak = peak_bytes()
    (seconds,) = (
        r["seconds"] for r in read_rows(folder / "metrics.jsonl") if r["split"] == "train"
    )

    model = assembly.build_model(experiment, dataset.spec, None)
    test_image = assembly.host_transform(experiment, sources[2])(sources[2][0])["image"]
    train_shape = assembly.training_shape(experiment, sources[0])
    costs = [cost.measure(model, s[:-1], s[-1]) for s in (train_shape, test_image.shape)]
    return {
        "model": experiment.model,
        "dataset": experiment.dataset,
        "parameters": costs[0].parameters,
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "eval_every": experiment.eval_every,
        "dtype": experiment.dtype,
        "train_shape": list(train_shape),
        "test_shape": list(test_image.shape),
        "train_macs": costs[0].macs,
        "test_macs": costs[1].macs,
        "val_images": len(sources[1]),
        "test_images": len(sources[2]),
        "step_seconds": round(seconds, 1),
        "peak_bytes": peak,
        **provenance.describe(),
    }


def peak_bytes() -> int:
    """Returns the most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def in_common(experiment: Experiment) -> str:
    """Returns what decides a row's shapes and cost: rows that share it share a rehearsal."""
    rest = dataclasses.replace(
        experiment,
        row="",
        seed=0,
        published=None,
        init_from=None,
        init_row=None,
        loss=dataclasses.replace(experiment.loss, class_weights="none"),
    )
    return json.dumps(dataclasses.asdict(rest), sort_keys=True)


def in_processes(
    rows: Sequence[Experiment], say: Callable[[str], None]
) -> Iterator[tuple[Experiment, Facts | None]]:
    """Rehearses rows, each in a process of its own; rows with all `in_common` once.

    An error of one row, or its want of memory, leaves the others alone.

    Args:
        rows: of studies in `experiments/`, by their `name` and `row`, with their data's place.
        say: told of every row.

    Yields:
        Each row with its facts, as soon as they are there; None where it failed.
    """
    done: dict[str, Facts | None] = {}
    for row in rows:
        shared = in_common(row)
        if shared not in done:
            say(f"{row.label} ...")
            done[shared] = _in_process(row, say)
        yield row, done[shared]


def _in_process(row: Experiment, say: Callable[[str], None]) -> Facts | None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "facts.json"
        words = [row.name, row.row, row.preset, row.data_dir or "", row.manual_dir or ""]
        command = [sys.executable, "-m", "segzoo.rehearsal", str(place), *words]
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if code or not place.exists():
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            say(f"{row.label} failed: its process {how}.")
            return None
        facts: Facts = json.loads(place.read_text())
    seconds, gigabytes = facts["step_seconds"], facts["peak_bytes"] / 2**30
    say(f"{row.label}: {seconds} s to compile and step, {gigabytes:.1f} GiB at the peak")
    return facts


def _main(place: str, name: str, row: str, preset: str, data_dir: str, manual_dir: str) -> int:
    from segzoo import assembly, study

    try:
        experiment = study.find(name).row(row, preset)
        experiment = dataclasses.replace(
            experiment, data_dir=data_dir or None, manual_dir=manual_dir or None
        )
        with tempfile.TemporaryDirectory() as scratch:
            facts = rehearse(experiment, assembly.open_dataset(experiment), Path(scratch) / "run")
    except SegzooError as error:
        sys.stderr.write(f"segzoo: {error}\n")
        return 2
    Path(place).write_text(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
