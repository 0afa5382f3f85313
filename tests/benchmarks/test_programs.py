"""The commands themselves, ours alone, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ["--tiny", "--platform", "cpu", "--peers", "--rounds", "1", "--seconds", "0.01"]


def run(module, *words):
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_ours_alone():
    only = ["--only", "train_step", "primitives", "memory", "compile"]
    chosen = ["--workload", "unet32", "bilinear x2", "image sizes", "lenet5"]
    done = run("experiments.benchmarks", *only, *chosen, *QUICK)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    names = [row.split("`")[1] for row in rows]
    assert names == ["unet32", "bilinear x2", "unet32", "image sizes", "lenet5"]
    assert "| torch | " in rows[0]
    assert "| not run | " in rows[0]
    assert "9 programs for 100 sizes in 9 buckets" in rows[3]


@pytest.mark.parametrize("name", ["train_step", "inference", "primitives", "memory", "pipeline"])
def test_a_mistake_is_one_line_and_exit_code_2(name):
    done = run(f"experiments.benchmarks.{name}", "--workload", "nothing")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("segzoo: unknown workload 'nothing'.")
