"""The command line of the house: `segzoo COMMAND`.

Parsing imports nothing heavy; each command imports what it needs. A user's mistake is one line on
stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from segzoo import __version__
from segzoo.errors import SegzooError, check_name, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console


COMMANDS = (
    "list",
    "info",
    "train",
    "pending",
    "rehearse",
    "evaluate",
    "crf-search",
    "predict",
    "convert",
    "report",
    "check-data",
    "doctor",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `segzoo`; by default those of the process.

    Returns:
        The exit code: 0; 1 where a check found something; 2 for a mistake; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except SegzooError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted.")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except SystemExit as done:  # argparse after --help, tyro after its own errors
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 2


def _fail(message: str) -> int:
    sys.stderr.write(f"segzoo: {message}\n")
    return 2


def _run(words: list[str]) -> int:
    # Everything after the name of an experiment belongs to the experiment's own command line.
    if words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-"):
        from segzoo.study import main_for

        return main_for(words[1], words[2:])
    if words and not words[0].startswith("-"):
        check_name("command", words[0], COMMANDS)
    arguments = _parser().parse_args(words)
    run: Any = arguments.run
    return run(arguments)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise SegzooError(f"{message}; see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="segzoo", description="The segmentation model zoo for JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"segzoo {__version__}")

    # A bare `segzoo` shows what there is.
    def usage(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=usage)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    add = command("list", _list, "List the models.")
    add.add_argument("pattern", nargs="?", default="*", help="a shell pattern, e.g. '*unet*'")
    add.add_argument("--task", help="semantic, instance or classification")

    add = command("info", _info, "Show a model's overrides, size, cost and receptive field.")
    add.add_argument("name", help="a model of `segzoo list`")
    add.add_argument("--input-size", type=int, nargs="+", metavar="N", help="H W, or D H W")
    add.add_argument("--channels", type=int, help="channels of the input")
    add.add_argument("--batch-size", type=int, default=1, help="default 1")
    add.add_argument(
        "--override",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME VALUE",
        help="overrides of the model, e.g. --override num_classes 11 padding VALID",
    )

    add = command("train", _train, "Train and evaluate an experiment.")
    add.add_argument("experiment", help="a module in experiments/, or a path to a .py file")
    add.add_argument(
        "options", nargs=argparse.REMAINDER, help="see `segzoo train EXPERIMENT --help`"
    )

    add = command("pending", _pending, "List the full-size rows of the tables, or run what lacks.")
    add.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="these alone")
    add.add_argument(
        "--run", dest="go", action="store_true", help="run what is not recorded, cheapest first"
    )
    _datasets_at(add)

    add = command("rehearse", _rehearse, "Train one step of each full-size row, for its cost.")
    add.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="these alone")
    add.add_argument("--again", action="store_true", help="also rows that were rehearsed before")
    _datasets_at(add)

    add = command("evaluate", _evaluate, "Score a run's best checkpoint; writes results.json.")
    add.add_argument("folder", metavar="RUN", help="a run folder")
    add.add_argument("--split", help="default: the experiment's test split")
    _data_at(add)
    add.add_argument("--cpu-devices", type=int, help="split the CPU into that many devices")
    add.add_argument("--boundary", action="store_true", help="also score boundary F1")
    _crf_flag(add)

    add = command("crf-search", _crf_search, "Choose a dense CRF's parameters on validation data.")
    add.add_argument("folder", metavar="RUN", help="a run folder; crf.json is written there")
    add.add_argument("--images", type=int, default=100, help="how many at most; default 100")
    add.add_argument(
        "--range",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "LOW", "HIGH"),
        help="of appearance_weight, _width or _color; by default DeepLab's",
    )
    _data_at(add)

    add = command("predict", _predict, "Write the class ids of pictures as PNG files.")
    add.add_argument("weights", metavar="RUN", help="a run folder or weights, see docs/weights.md")
    add.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    add.add_argument("-o", "--output", required=True, metavar="DIR", help="made if missing")
    add.add_argument("--overlay", action="store_true", help="also write NAME.overlay.png")
    add.add_argument("--tile", type=int, help="side of the tiles large pictures are cut into")
    add.add_argument("--overlap", type=int, help="pixels neighbouring tiles share")
    _crf_flag(add)

    add = command("convert", _convert, "Write weights as a .safetensors file.")
    add.add_argument(
        "source", metavar="IN", help="a run folder, a file (.safetensors, .pth), or hf:owner/name"
    )
    add.add_argument("output", metavar="OUT", help="the .safetensors file to write")
    add.add_argument("--model", help="the model another library's file is for")
    add.add_argument("--in-channels", type=int, help="adapt the first convolution")
    add.add_argument("--override", nargs="+", action="extend", default=[], metavar="NAME VALUE")
    add.add_argument("--layout", help="another library's names: torchvision, timm, ...")

    add = command("report", _report, "Write the generated tables of the documentation.")
    add.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    add.add_argument(
        "--count", action="store_true", help="count every model again, not only the new ones"
    )

    add = command("check-data", _check_data, "Check a folder of images and masks.")
    add.add_argument("folder", metavar="DIR", help="the folder; see docs/own-data.md")
    add.add_argument("--data-dir", help="where the result is kept")

    command("doctor", _doctor, "Check the installation, devices and folders.")
    return parser


def _data_at(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", help="where prepared datasets lie, if they moved")
    parser.add_argument("--manual-dir", help="where the dataset's own files lie, if they moved")


def _datasets_at(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", help="where prepared datasets lie")
    text = "holds a folder of original files for each dataset, by its name"
    parser.add_argument("--manual-dir", type=Path, metavar="DIR", help=text)


def _crf_flag(parser: argparse.ArgumentParser) -> None:
    text = "refine by a dense CRF: parameters that differ from crf-search's, or DeepLab's"
    parser.add_argument("--crf", nargs="*", metavar="NAME VALUE", help=text)


def _console() -> Console:
    from rich.console import Console

    # Into a pipe or a file nothing is cut to a terminal's width.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _list(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from segzoo.registry import entry, list_models

    names = list_models(arguments.pattern, task=arguments.task)
    if not names:
        near = did_you_mean(arguments.pattern, list_models(task=arguments.task))
        raise SegzooError(f"no model matches {arguments.pattern!r}.{near}")
    table = Table(box=None, pad_edge=False)
    for column in ("name", "task", "paper", "what it is"):
        table.add_column(column, no_wrap=column != "what it is")
    for name in names:
        found = entry(name)
        table.add_row(name, found.task, found.paper, found.summary)
    _console().print(table)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from segzoo.errors import check_positive_int
    from segzoo.registry import entry, get

    found = entry(arguments.name)
    overrides = _overrides(arguments.override)
    model = get(arguments.name, **overrides)
    size = tuple(arguments.input_size or _typical_size(found.input_shape[:-1], model))
    for length in (*size, arguments.batch_size):
        check_positive_int("--input-size or --batch-size", length)
    channels = arguments.channels or found.input_shape[-1]

    from segzoo import cost

    counted = cost.measure(model, size, channels, arguments.batch_size)
    usual = not overrides and arguments.batch_size == 1
    parameters = found.parameters if not overrides else None
    gmacs = found.gmacs if usual and (*size, channels) == found.input_shape else None
    shown = ", ".join(f"{k}={v!r}" for k, v in found.overrides.items() if k != "dtype")
    _say("model", f"{found.name}: {found.summary}")
    _say("task", found.task)
    _say("paper", found.paper)
    _say("overrides", shown)
    _say("input", str(list(counted.input_shape)))
    _say("output", _shapes(counted.output_shape))
    _say("parameters", f"{counted.parameters:,}" + _published(parameters, ","))
    _say("batch statistics", f"{counted.state:,}")
    _say("multiply-adds", f"{counted.macs / 1e9:,.3f} G" + _published(gmacs, ""))
    _say("receptive field", _fields(model, channels, found.task))
    # The compiler takes its time; what could be told without it stands on the screen meanwhile.
    program = cost.compile_for(model, size, channels, arguments.batch_size)
    flops, peak = program.flops, program.peak_bytes
    _say("operations", "unknown" if flops is None else f"{flops / 1e9:,.2f} GFLOP")
    memory = "unknown" if peak is None else f"{peak / 2**20:,.1f} MiB"
    _say("memory", f"{memory} (forward pass on {program.platform})")
    return 0


def _say(name: str, text: str) -> None:
    _console().print(f"{name:<17} {text}", markup=False, soft_wrap=True)


def _shapes(output: Any) -> str:
    """The shape of the logits, or of each answer of an instance model."""
    if not isinstance(output, dict):
        return str(list(output))
    return ", ".join(f"{name} {list(shape)}" for name, shape in output.items())


def _published(value: float | None, form: str) -> str:
    return "" if value is None else f" (published: {value:{form}})"


def _fields(model: Any, channels: int, task: str) -> str:
    """The receptive field of each map, in input pixels."""
    from segzoo.receptive_field import describe, model_fields

    try:
        fields = model_fields(model, channels, logits=task == "semantic")
    except SegzooError as error:
        return f"unknown: {error}"
    return ", ".join(f"{name} {describe(field)}" for name, field in fields.items())


def _typical_size(size: tuple[int, ...], model: Any) -> tuple[int, ...]:
    dims = getattr(model, "spatial_dims", len(size))
    return size if dims == len(size) else (64,) * dims


def _overrides(words: list[str], flag: str = "--override") -> dict[str, Any]:
    """`["width", "8", "padding", "VALID"]` -> `{"width": 8, "padding": "VALID"}`."""
    if len(words) % 2:
        raise SegzooError(f"{flag} takes pairs of NAME VALUE; {words[-1]!r} has no value.")
    return {name: _value(text) for name, text in zip(words[::2], words[1::2], strict=True)}


def _value(text: str) -> Any:
    named = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _train(arguments: argparse.Namespace) -> int:
    from segzoo.study import main_for

    return main_for(arguments.experiment, arguments.options)


def _pending(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from segzoo import pending

    chosen = pending.items(only=arguments.experiments)
    lacking = pending.in_order([i for i in chosen if i.state != "recorded"], chosen)
    if arguments.go:
        _check_manual_dir(arguments.manual_dir)
        failed = pending.run(lacking, arguments.manual_dir, arguments.data_dir, _tell)
        return 0 if failed <= 0 else 1
    table = Table(box=None, pad_edge=False)
    for column in ("experiment", "row", "state", "steps", "GPU hours, reckoned"):
        table.add_column(column, justify="right" if column[:3] in ("ste", "GPU") else "left")
    for item in chosen:
        seconds = item.gpu_seconds
        hours = "not rehearsed" if seconds is None else f"{seconds / 3600:.1f}"
        row = item.experiment
        table.add_row(row.name, row.row, item.state, f"{row.steps:,}", hours)
    _console().print(table)
    known = [item.gpu_seconds for item in lacking if item.gpu_seconds is not None]
    _tell(
        f"{len(lacking)} of {len(chosen)} rows to run; about {sum(known) / 3600:.0f} GPU hours for "
        f"the {len(known)} rehearsed."
    )
    return 0


def _rehearse(arguments: argparse.Namespace) -> int:
    from segzoo import pending

    _check_manual_dir(arguments.manual_dir)
    chosen = pending.items(only=arguments.experiments)
    lacking = [item for item in chosen if arguments.again or item.facts is None]
    failed = pending.rehearse(lacking, Path(), arguments.manual_dir, arguments.data_dir, _tell)
    return 1 if failed else 0


def _check_manual_dir(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise SegzooError(f"{folder} does not exist; expected a folder with one for each dataset.")


def _tell(line: str) -> None:
    _console().print(line, markup=False, soft_wrap=True)
    sys.stdout.flush()


def _evaluate(arguments: argparse.Namespace) -> int:
    from segzoo import parallel

    parallel.initialize(cpu_devices=arguments.cpu_devices)
    from segzoo.evaluate import evaluate_run
    from segzoo.study import print_table

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
        _console().print(f"boundary F1 {100 * boundary_f1:.2f}")
    return 0


def _crf(folder: str | Path, words: list[str] | None) -> Any:
    """The CRF asked for by `--crf NAME VALUE ...`, if it is."""
    if words is None:
        return None
    from segzoo.refine import settings

    return settings(folder, _overrides(words, "--crf"))


def _crf_search(arguments: argparse.Namespace) -> int:
    from segzoo.refine import DEEPLAB_RANGES, SEARCHED, search

    folder = Path(arguments.folder)
    _check_run_folder(folder)
    ranges = dict(zip(SEARCHED, DEEPLAB_RANGES, strict=True))
    for name, *ends in arguments.range:
        check_name("range", name, SEARCHED)
        low, high = (_value(end) for end in ends)
        if not all(isinstance(end, int | float) for end in (low, high)):
            raise SegzooError(f"the range of {name} is {' '.join(ends)}; expected two numbers.")
        ranges[name] = float(low), float(high)
    search(
        folder,
        images=arguments.images,
        ranges=tuple(ranges.values()),
        data_dir=arguments.data_dir,
        manual_dir=arguments.manual_dir,
        say=_tell,
    )
    return 0


def _check_run_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise SegzooError(f"{folder} does not exist; expected a run folder.")
    if not (folder / "config.json").exists():
        raise SegzooError(f"{folder} is not a run folder: it has no config.json.")


def _predict(arguments: argparse.Namespace) -> int:
    from segzoo.batch import predict_files

    failures = predict_files(
        arguments.weights,
        arguments.images,
        arguments.output,
        overlays=arguments.overlay,
        tile=arguments.tile,
        overlap=arguments.overlap,
        crf=_crf(arguments.weights, arguments.crf),
        say=_tell,
    )
    for failure in failures:
        _fail(failure)
    return 2 if failures else 0


def _convert(arguments: argparse.Namespace) -> int:
    from segzoo import weights

    _, variables, info = weights.load(
        arguments.source,
        arguments.model,
        in_channels=arguments.in_channels,
        **_overrides(arguments.override),
    )
    if arguments.layout is None:
        weights.save(arguments.output, variables, info)
    else:
        weights.export(arguments.output, variables, info, arguments.layout)
    _console().print(f"{info.model}: {arguments.output}", markup=False, soft_wrap=True)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    import dataclasses

    from segzoo import pending, registry, report, study, zoo
    from segzoo.records import Row

    rows = [
        Row(
            experiment=declared.name,
            preset=declared.preset,
            model=declared.model,
            dataset=declared.dataset,
            published=None
            if declared.published is None
            else dataclasses.asdict(declared.published),
            row=declared.row,
            task=registry.entry(declared.model).task,
        )
        for declared in study.declared()
    ]
    root, check = Path(), arguments.check
    changed = zoo.update(root, anew=arguments.count, check=check)
    changed += report.update(
        root, rows, tables=[*zoo.tables(root), *pending.tables(root)], check=check
    )
    stale = [str(path) for path in changed]
    if arguments.check and stale:
        sys.stderr.write(f"segzoo: out of date: {', '.join(stale)}; run `segzoo report`.\n")
        return 1
    text = f"wrote {', '.join(stale)}" if stale else "the tables are up to date"
    _console().print(text, markup=False, soft_wrap=True)
    return 0


def _check_data(arguments: argparse.Namespace) -> int:
    from segzoo.data.folder import check_folder

    result = check_folder(arguments.folder, arguments.data_dir)
    _console().print(str(result), markup=False, soft_wrap=True)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from segzoo.doctor import examine

    console = _console()
    findings = examine()
    for finding in findings:
        console.print(f"{finding.state:<7} {finding.text}", markup=False, soft_wrap=True)
    broken = sum(finding.state == "broken" for finding in findings)
    if broken:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
