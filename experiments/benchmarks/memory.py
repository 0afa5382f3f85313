"""The peak of memory of a train step, ours and the peers', each in a fresh process.

    python -m experiments.benchmarks.memory [--workload unet64 ...] [--record]

On a CPU the peak is the growth of the process over what loading the library took; on a GPU it is
the allocator's. The first step is told apart: it holds what compiling takes. Where a network can
compute values again instead of keeping them (`remat`), it is measured with and without. Peers that
differ in the order of axes alone are left out.
"""

from __future__ import annotations

import sys

from experiments.benchmarks import command
from experiments.benchmarks.benchmark import Benchmark, Lines, Run, every
from experiments.benchmarks.contest import check_same
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.tables import because, short, sizes
from experiments.benchmarks.train_step import workload
from experiments.benchmarks.worker import NoResult
from experiments.benchmarks.workloads import WORKLOADS, as_arguments
from segzoo import registry


def measure(name: str, run: Run) -> Facts:
    """Measures one workload, everyone in a process of its own."""
    chosen = workload(name, run)
    told = as_arguments(chosen, run.platform, run.settings.batch_size)
    with run.start("ours") as worker:
        ours = worker.call("memory", workload=told)
    run.say(f"  ours: {_mib(ours['peak'])} MiB")
    peers: dict[str, Facts] = {}
    if "remat" in registry.entry(chosen.model).overrides:
        again = {**told, "model_args": {**told["model_args"], "remat": True}}
        peers["ours, remat"] = _other(run, "ours", again, ours)
    wanted = [name for name in chosen.peers if not name.endswith("channels-last")]
    peers |= every(wanted, {peer: _other(run, peer, told, ours) for peer in run.peers(wanted)})
    return {"workload": told, **ours, "peers": peers}


def _other(run: Run, name: str, told: Facts, ours: Facts) -> Facts:
    try:
        with run.start(name) as worker:
            versions = worker.call("describe")["versions"]
            theirs = worker.call("memory", workload=told)
            check_same(ours, theirs, name)
    except NoResult as error:
        run.say(f"  {name}: {error.state} ({error})")
        return dict(error.entry)
    run.say(f"  {name}: {_mib(theirs['peak'])} MiB")
    return {"state": "measured", **theirs, "versions": versions}


def lines(record: Facts) -> Lines:
    """Returns a line for each contestant."""
    told = record["workload"]
    what = f"{told['batch']} of {sizes(told['size'])}, {told['dtype']}"
    found = []
    for name, entry in {"ours": {"state": "measured", **record}, **record["peers"]}.items():
        if entry["state"] == "measured":
            ratio = f"{record['peak'] / entry['peak']:.2f}" if entry["peak"] > 0 else "-"
            cells = [_mib(entry["peak"]), _mib(entry["first"]), ratio, short(entry["seconds"])]
        else:
            cells = [because(entry), "", "", ""]
        found.append([what, name, *cells])
        what = ""
    return found


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


HEAD = (
    "workload",
    "on",
    "images of a step",
    "whose",
    "peak, MiB",
    "first step, MiB",
    "ours / theirs",
    "a step, s",
)
BENCHMARK = Benchmark("memory", lambda: list(WORKLOADS), measure, HEAD, lines, numbers=(4, 5, 6, 7))

if __name__ == "__main__":
    sys.exit(command.run([BENCHMARK], doc=__doc__))
