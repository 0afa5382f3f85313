"""The commands that make runs and use them: `train`, `evaluate`, `crf-search`, `predict`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segzoo.cli.command import Command, complain, console, pairs, tell, value
from segzoo.errors import SegzooError, check_name


def _data_at(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", help="where prepared datasets lie, if they moved")
    parser.add_argument("--manual-dir", help="where the dataset's own files lie, if they moved")


def _crf_flag(parser: argparse.ArgumentParser) -> None:
    text = "refine by a dense CRF: parameters that differ from crf-search's, or DeepLab's"
    parser.add_argument("--crf", nargs="*", metavar="NAME VALUE", help=text)


def _crf(folder: str | Path, words: list[str] | None) -> Any:
    """The CRF asked for by `--crf NAME VALUE ...`, if it is."""
    if words is None:
        return None
    from segzoo.refine import settings

    return settings(folder, pairs(words, "--crf"))


def _check_run_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise SegzooError(f"{folder} does not exist; expected a run folder.")
    if not (folder / "config.json").exists():
        raise SegzooError(f"{folder} is not a run folder: it has no config.json.")


# --- train ---------------------------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="a module in experiments/, or a path to a .py file")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, help="see `segzoo train EXPERIMENT --help`"
    )


def train(experiment: str, options: Sequence[str]) -> int:
    """Runs an experiment with its own options; returns the exit code."""
    from segzoo.study import main_for

    return main_for(experiment, options)


TRAIN = Command(
    "Train and evaluate an experiment.",
    _train_arguments,
    lambda arguments: train(arguments.experiment, arguments.options),
)


# --- evaluate ------------------------------------------------------------------------------------


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--split", help="default: the experiment's test split")
    _data_at(parser)
    parser.add_argument("--cpu-devices", type=int, help="split the CPU into that many devices")
    parser.add_argument("--boundary", action="store_true", help="also score boundary F1")
    _crf_flag(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    from segzoo import parallel
    from segzoo.compiler import compile_sooner

    parallel.initialize(cpu_devices=arguments.cpu_devices)
    compile_sooner()
    from segzoo.evaluate import evaluate_run
    from segzoo.scoreboard import print_table

    folder = Path(arguments.folder)
    _check_run_folder(folder)
    record = evaluate_run(
        folder,
        split=arguments.split,
        data_dir=arguments.data_dir,
        manual_dir=arguments.manual_dir,
        crf=_crf(folder, arguments.crf),
        boundary=arguments.boundary,
    )
    print_table([record])
    boundary_f1 = record["scores"].get("boundary_f1")
    if boundary_f1 is not None:
        console().print(f"boundary F1 {100 * boundary_f1:.2f}")
    return 0


EVALUATE = Command(
    "Score a run's best checkpoint; writes results.json.", _evaluate_arguments, _evaluate
)


# --- crf-search ----------------------------------------------------------------------------------


def _crf_search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder; crf.json is written there")
    parser.add_argument("--images", type=int, default=100, help="how many at most; default 100")
    parser.add_argument(
        "--range",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "LOW", "HIGH"),
        help="of appearance_weight, _width or _color; by default DeepLab's",
    )
    _data_at(parser)


def _crf_search(arguments: argparse.Namespace) -> int:
    from segzoo.compiler import compile_sooner
    from segzoo.refine import DEEPLAB_RANGES, SEARCHED, search

    compile_sooner()
    folder = Path(arguments.folder)
    _check_run_folder(folder)
    ranges = dict(zip(SEARCHED, DEEPLAB_RANGES, strict=True))
    for name, *ends in arguments.range:
        check_name("range", name, SEARCHED)
        low, high = (value(end) for end in ends)
        if not all(isinstance(end, int | float) for end in (low, high)):
            raise SegzooError(f"the range of {name} is {' '.join(ends)}; expected two numbers.")
        ranges[name] = float(low), float(high)
    search(
        folder,
        images=arguments.images,
        ranges=tuple(ranges.values()),
        data_dir=arguments.data_dir,
        manual_dir=arguments.manual_dir,
        say=tell,
    )
    return 0


CRF_SEARCH = Command(
    "Choose a dense CRF's parameters on validation data.", _crf_search_arguments, _crf_search
)


# --- predict -------------------------------------------------------------------------------------


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights", metavar="RUN", help="a run folder or weights, see docs/weights.md"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="made if missing")
    parser.add_argument("--overlay", action="store_true", help="also write NAME.overlay.png")
    parser.add_argument("--tile", type=int, help="side of the tiles large pictures are cut into")
    parser.add_argument("--overlap", type=int, help="pixels neighbouring tiles share")
    _crf_flag(parser)


def _predict(arguments: argparse.Namespace) -> int:
    from segzoo.batch import predict_files
    from segzoo.compiler import compile_sooner

    compile_sooner()
    failures = predict_files(
        arguments.weights,
        arguments.images,
        arguments.output,
        overlays=arguments.overlay,
        tile=arguments.tile,
        overlap=arguments.overlap,
        crf=_crf(arguments.weights, arguments.crf),
        say=tell,
    )
    for failure in failures:
        complain(failure)
    return 2 if failures else 0


PREDICT = Command("Write the class ids of pictures as PNG files.", _predict_arguments, _predict)
