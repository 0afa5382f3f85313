"""A study: the experiments behind a table, run by name from the command line.

An experiments module declares `STUDY = Study(...)` and ends with

    if __name__ == "__main__":
        sys.exit(main(STUDY))
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from segzoo import experiment as experiments
from segzoo.data.spec import Dataset
from segzoo.errors import SegzooError, check_name, did_you_mean
from segzoo.experiment import Experiment
from segzoo.scoreboard import print_picture, print_table

Change = Callable[[Experiment], Experiment]
T = TypeVar("T")
RECORDS = Path("docs/results")


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows of a table and the sizes they can be run at.

    Attributes:
        doc: the module's lab note, shown by `--help`.
        rows: full-size experiments by row name; all belong to the same module.
        presets: cheaper sizes by name, as functions of the full-size experiment.
        first: the preset that runs when none is named.
        in_table: whether the rows belong into the tables of results.
    """

    doc: str
    rows: Mapping[str, Experiment]
    presets: Mapping[str, Change] = dataclasses.field(default_factory=dict)
    first: str = "full"
    in_table: bool = True

    def row(self, name: str, preset: str) -> Experiment:
        """Returns a row at a preset's size.

        Raises:
            SegzooError: for an unknown row or preset.
        """
        check_name("row", name, self.rows)
        check_name("preset", preset, ("full", *self.presets))
        experiment = dataclasses.replace(self.rows[name], row=name, preset=preset)
        return experiment if preset == "full" else self.presets[preset](experiment)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, beside what to run."""

    only: tuple[str, ...] = ()
    """Run these rows only."""
    run_dir: Path | None = None
    """The run's folder (with several rows, one folder in it for each); default runs/NAME.PRESET."""
    smoke: bool = False
    """Two steps on made-up data, to see that everything works; needs no dataset."""
    record: bool = False
    """Copy each results.json into docs/results, for `segzoo report`."""
    cpu_devices: int | None = None
    """Split the CPU into that many devices."""
    coordinator_address: str | None = None
    """host:port of process 0, to train over several hosts."""
    num_processes: int | None = None
    """How many processes take part."""
    process_id: int | None = None
    """The number of this process, from 0."""


@dataclasses.dataclass(frozen=True)
class _Arguments:
    options: Annotated[Options, tyro.conf.arg(name="")]
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(study: Study, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs a study from the command line; returns the exit code.

    Every field of `Options` and `Experiment` is a flag; a flag given applies to every row run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(study, arguments, prog)
    except SegzooError as error:
        sys.stderr.write(f"segzoo: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("segzoo: interrupted.\n")
        return 130


def _main(study: Study, argv: list[str], prog: str | None) -> int:
    preset = _preset(argv) or study.first
    check_name("preset", preset, ("full", *study.presets))
    rows = [_parse(study, name, preset, argv, prog) for name in study.rows]
    options = rows[0][0]
    for name in options.only:
        check_name("row", name, study.rows)
    chosen = [row for _, row in rows if not options.only or row.row in options.only]
    if options.record and options.smoke:
        raise SegzooError("--record takes a run on the real data, not --smoke.")
    if options.record and any(row.preset == "custom" for row in chosen):
        raise SegzooError("--record takes a preset as it stands, not a changed one.")
    _initialize(options)
    return run(study, chosen, options)


def _preset(argv: list[str]) -> str | None:
    """The value of --preset, wanted before the other flags can be given their defaults."""
    for position, word in enumerate(argv):
        if word.startswith("--preset="):
            return word.partition("=")[2]
        if word == "--preset" and position + 1 < len(argv):
            return argv[position + 1]
    return None


def _parse(
    study: Study, name: str, preset: str, argv: list[str], prog: str | None
) -> tuple[Options, Experiment]:
    declared = study.row(name, preset)
    parsed = _one_line_errors(
        tyro.cli,
        _Arguments,
        prog=prog,
        args=argv,
        # An empty default: tyro would offer the preset's overrides alone, each as a flag.
        default=_Arguments(Options(), dataclasses.replace(declared, model_args={})),
        description=study.doc,
    )
    experiment = dataclasses.replace(
        parsed.experiment, model_args={**declared.model_args, **parsed.experiment.model_args}
    )
    if experiments.differences(declared, experiment):
        experiment = dataclasses.replace(experiment, preset="custom")
    return parsed.options, experiment


def _one_line_errors(parse: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Calls tyro's parser; a `SegzooError` of a nested dataclass comes out bare, not in a box."""
    held = io.StringIO()
    try:
        with contextlib.redirect_stderr(held):
            return parse(*arguments, **options)
    except SystemExit as stopped:
        cause: BaseException | None = stopped
        while cause is not None and not isinstance(cause, SegzooError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(held.getvalue())
        raise


def _initialize(options: Options) -> None:
    from segzoo import parallel
    from segzoo.allocator import keep_freed_memory
    from segzoo.compiler import compile_sooner

    keep_freed_memory()
    parallel.initialize(
        cpu_devices=options.cpu_devices,
        coordinator_address=options.coordinator_address,
        num_processes=options.num_processes,
        process_id=options.process_id,
    )
    compile_sooner()


def run(study: Study, rows: Sequence[Experiment], options: Options) -> int:
    """Trains and evaluates rows one after the other, then prints their table."""
    from segzoo import assembly, evaluate, parallel
    from segzoo.train import train

    records = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) if options.smoke else Path("runs")
        folders = [run_folder(study, row, options.run_dir, base) for row in rows]
        for experiment, folder in zip(rows, folders, strict=True):
            if experiment.init_row is not None:
                experiment = dataclasses.replace(
                    experiment, init_from=str(folder.parent / experiment.init_row)
                )
            if options.smoke:
                experiment, dataset = smoke(experiment)
            else:
                dataset = assembly.open_dataset(experiment)
            dataset.source(experiment.test_split)  # rather fail now than after the training
            outcome = train(experiment, folder, dataset=dataset)
            if outcome.stopped_by is not None:
                parallel.log(
                    f"{outcome.stopped_by}: stopped at step {outcome.step} of {experiment.steps}, "
                    f"saved in {folder}; the same command goes on from there."
                )
                return 0
            records.append(evaluate.evaluate_checkpoint(folder, experiment, dataset))
            if options.record and parallel.is_main_process():
                RECORDS.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / evaluate.RESULTS, RECORDS / f"{experiment.label}.json")
        if parallel.is_main_process():
            print_table(records)
            if not options.smoke:
                for folder in folders:
                    sys.stdout.write(f"{folder}: results.json, predictions/, curves.png\n")
                print_picture(folders)
    return 0


def run_folder(study: Study, experiment: Experiment, wanted: Path | None, base: Path) -> Path:
    """Returns a row's run folder."""
    folder = wanted or base / f"{experiment.name}.{experiment.preset}"
    return folder if len(study.rows) == 1 else folder / experiment.row


def smoke(experiment: Experiment) -> tuple[Experiment, Dataset]:
    """Returns the experiment cut down to two steps, and made-up data for it."""
    import jax

    from segzoo import assembly, data
    from segzoo.data.made import MadeDataset

    name = "shapes" if experiment.dataset == "folder" else experiment.dataset
    count = jax.device_count() * experiment.accumulate
    valid = experiment.model_args.get("padding") == "VALID"
    augment = experiment.augment
    if not valid:  # a VALID network needs its own size; the others take any
        augment = dataclasses.replace(augment, crop_size=None)
    experiment = dataclasses.replace(
        experiments.shortened(experiment, steps=2),
        batch_size=count,
        image_size=None,
        augment=augment,
        train_split="train",
        val_split="val",
        test_split="test",
        pictures=1,
    )
    spec = data.get(name, data_dir=experiment.data_dir, manual_dir=experiment.manual_dir).spec
    size = (64,) * assembly.spatial_dims(experiment)
    splits = {"train": 2 * count, "val": 2, "test": 2}
    return experiment, MadeDataset(spec, size, splits)


# --- finding studies -----------------------------------------------------------------------------


def names() -> list[str]:
    """Returns the experiments modules that can be imported from here."""
    folder = Path("experiments")
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def find(name: str) -> Study:
    """Returns the study of an experiments module, or of a Python file of the user's.

    Args:
        name: a module of the folder `experiments` in the current folder, or a path ending in `.py`.

    Raises:
        SegzooError: when there is no such module, or it declares no `STUDY`.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise SegzooError(f"{path} does not exist; expected a Python file that declares STUDY.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        if name not in names():
            raise SegzooError(f"unknown experiment {name!r}.{did_you_mean(name, names())}")
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        module = importlib.import_module(f"experiments.{name}")
    if not isinstance(getattr(module, "STUDY", None), Study):
        raise SegzooError(f"{name} declares no STUDY; see the modules in experiments/.")
    return module.STUDY


def main_for(name: str, argv: Sequence[str]) -> int:
    """Runs the study `name` with command-line arguments; returns the exit code."""
    return main(find(name), argv, prog=f"segzoo train {name}")


def declared() -> list[Experiment]:
    """Returns every row of every study at every preset, for the report's "not run" lines."""
    studies = [find(name) for name in names()]
    return [
        study.row(row, preset)
        for study in studies
        if study.in_table
        for preset in ("full", *study.presets)
        for row in study.rows
    ]
