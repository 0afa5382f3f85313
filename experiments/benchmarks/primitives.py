"""Single operations, forward and with their gradients, beside torch's and those of linen and lax.

python -m experiments.benchmarks.primitives [--workload "max-pool 2x2" ...] [--record]
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping

from experiments.benchmarks import command
from experiments.benchmarks.benchmark import Benchmark, Lines, Run
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.tables import share, sizes
from experiments.benchmarks.train_step import side_by_side
from experiments.benchmarks.workloads import DTYPES

TORCH = ("torch", "torch-channels-last")
DIRECTIONS = {"forward": 1, "with gradients": 3}  # and how many products each is


@dataclasses.dataclass(frozen=True)
class Primitive:
    """An operation and what it is applied to.

    Attributes:
        shape: `[B, *S, C]` by platform.
        weights: from C to the shapes of its weights, kernels as jax has them, `[*k, C, O]`.
        matrix: whether it is a product of matrices: a multiply-add for each pixel and weight.
        peers: what it is timed beside; "linen" where linen's or lax's own is something else.
    """

    shape: Mapping[str, tuple[int, ...]]
    weights: Callable[[int], tuple[tuple[int, ...], ...]] = lambda channels: ()
    matrix: bool = False
    peers: tuple[str, ...] = (*TORCH, "linen")


def _shapes(cpu: tuple[int, ...], gpu: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"cpu": cpu, "gpu": gpu}


_MAPS = _shapes((4, 128, 128, 64), (32, 128, 128, 128))
_COARSE = _shapes((4, 32, 32, 64), (32, 32, 32, 128))
_VOLUME = _shapes((1, 32, 32, 32, 32), (4, 64, 64, 64, 32))

PRIMITIVES: dict[str, Primitive] = {
    "convolution 3x3": Primitive(_MAPS, lambda c: ((3, 3, c, c),), matrix=True, peers=TORCH),
    "convolution 3x3, rate 2": Primitive(
        _MAPS, lambda c: ((3, 3, c, c),), matrix=True, peers=TORCH
    ),
    "convolution 3x3x3": Primitive(_VOLUME, lambda c: ((3, 3, 3, c, c),), matrix=True),
    "depthwise 3x3": Primitive(_MAPS, lambda c: ((3, 3, 1, c),)),
    "up-convolution 2x2": Primitive(_MAPS, lambda c: ((2, 2, c, c // 2),), matrix=True),
    "bilinear x2": Primitive(_MAPS),
    "bilinear x8": Primitive(_COARSE),
    "max-pool 2x2": Primitive(_MAPS),
    "max-pool 2x2 and unpool": Primitive(_MAPS),
    "batch norm": Primitive(_MAPS, lambda c: ((c,), (c,)), peers=TORCH),
}


def multiply_adds(primitive: Primitive, shape: tuple[int, ...]) -> int | None:
    """Returns those of a forward call; None where they are no product of matrices."""
    if not primitive.matrix:
        return None
    (kernel,) = primitive.weights(shape[-1])
    return math.prod(shape[:-1]) * math.prod(kernel)


def measure(name: str, run: Run) -> Facts:
    """Times one operation, forward and with its gradients."""
    primitive, dtype = PRIMITIVES[name], DTYPES[run.platform]
    shape = primitive.shape[run.platform]
    if run.settings.tiny:
        shape = (1, *(8 for _ in shape[1:-1]), 4)
    told = {"name": name, "shape": shape, "dtype": dtype}
    builds = {key: ("primitive", {**told, "backward": key != "forward"}) for key in DIRECTIONS}
    ceiling = run.ceiling
    return {
        **told,
        "macs": multiply_adds(primitive, shape),
        "ceiling": ceiling,
        "builds": run.contest(builds, primitive.peers),
    }


def lines(record: Facts) -> Lines:
    """Returns a line for each direction and peer."""
    found: Lines = []
    for key, build in record["builds"].items():
        seconds, macs = build["ours"]["seconds"], record["macs"]
        reached = "-"
        if macs is not None:
            reached = share(2 * DIRECTIONS[key] * macs / seconds, record["ceiling"])
        first = [f"{sizes(record['shape'])}, {record['dtype']}", key, reached]
        found += side_by_side(first, build, lambda seconds: 1000 * seconds)
    return found


HEAD = (
    "operation",
    "on",
    "input",
    "",
    "of the product",
    "beside",
    "ours, ms",
    "theirs",
    "times as fast",
    "pairs",
)
BENCHMARK = Benchmark(
    "primitives", lambda: list(PRIMITIVES), measure, HEAD, lines, numbers=(4, 6, 7, 8)
)

if __name__ == "__main__":
    sys.exit(command.run([BENCHMARK], doc=__doc__))
