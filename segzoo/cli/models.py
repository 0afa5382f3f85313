"""The commands about models: `list`, `info`, `convert`."""

from __future__ import annotations

import argparse
from typing import Any

from segzoo.cli.command import Command, console, pairs, tell
from segzoo.errors import SegzooError, did_you_mean

# --- list ----------------------------------------------------------------------------------------


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="a shell pattern, e.g. '*unet*'")
    parser.add_argument("--task", help="semantic, instance or classification")


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
    console().print(table)
    return 0


LIST = Command("List the models.", _list_arguments, _list)


# --- info ----------------------------------------------------------------------------------------


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a model of `segzoo list`")
    parser.add_argument("--input-size", type=int, nargs="+", metavar="N", help="H W, or D H W")
    parser.add_argument("--channels", type=int, help="channels of the input")
    parser.add_argument("--batch-size", type=int, default=1, help="default 1")
    parser.add_argument(
        "--override",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME VALUE",
        help="overrides of the model, e.g. --override num_classes 11 padding VALID",
    )


def _info(arguments: argparse.Namespace) -> int:
    from segzoo.errors import check_positive_int
    from segzoo.registry import entry, get

    found = entry(arguments.name)
    overrides = pairs(arguments.override)
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
    tell(f"{name:<17} {text}")


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


INFO = Command("Show a model's overrides, size, cost and receptive field.", _info_arguments, _info)


# --- convert -------------------------------------------------------------------------------------


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="IN", help="a run folder, a file (.safetensors, .pth), or hf:owner/name"
    )
    parser.add_argument("output", metavar="OUT", help="the .safetensors file to write")
    parser.add_argument("--model", help="the model another library's file is for")
    parser.add_argument("--in-channels", type=int, help="adapt the first convolution")
    parser.add_argument("--override", nargs="+", action="extend", default=[], metavar="NAME VALUE")
    parser.add_argument("--layout", help="another library's names: torchvision, timm, ...")


def _convert(arguments: argparse.Namespace) -> int:
    from segzoo import weights

    _, variables, info = weights.load(
        arguments.source,
        arguments.model,
        in_channels=arguments.in_channels,
        **pairs(arguments.override),
    )
    if arguments.layout is None:
        weights.save(arguments.output, variables, info)
    else:
        weights.export(arguments.output, variables, info, arguments.layout)
    tell(f"{info.model}: {arguments.output}")
    return 0


CONVERT = Command("Write weights as a .safetensors file.", _convert_arguments, _convert)
