import json

import pytest

from experiments.benchmarks import command, contestants, train_step
from experiments.benchmarks.page import BENCHMARKS
from experiments.benchmarks.worker import Failed
from experiments.benchmarks.workloads import WORKLOADS

from . import fakes

TRAIN = train_step.BENCHMARK
RECORDS = "docs/benchmarks/cpu-2-cores-fast-one/train_step.json"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty place, and contestants that take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contestants, "start", fakes.start)
    return tmp_path


def run(*words, benchmarks=(TRAIN,)):
    return command.run(benchmarks, words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workload", "unet46"], "unknown workload 'unet46'. Did you mean 'unet64'"),
        (["--peers", "pytorch"], "unknown peer 'pytorch'"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many'"),
        (["--seconds", "-1"], "--seconds is -1.0; expected a number above 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--budget-minutes", "0"], "--budget-minutes is 0.0"),
        (["--record", "--tiny"], "--record takes the workloads as they are"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_mistake_is_one_line(words, told, capsys):
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segzoo: ")
    assert told in line


def test_an_unknown_benchmark(capsys):
    assert run("--only", "train_stop", benchmarks=BENCHMARKS) == 2
    assert "unknown benchmark 'train_stop'. Did you mean 'train_step'" in capsys.readouterr().err


def test_the_table_is_printed_and_nothing_written_unasked(here, capsys):
    assert run("--workload", "unet64", "--peers", "torch", "keras") == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("| `unet64`")]
    # A batch of 8 takes 0.5 s, and three passes of 1e9 multiply-adds.
    assert "| CPU (2 cores, Fast(R) One) | 8 of 128x128, float32 | 10 | 0.125 | 12 |" in line
    assert "| torch | 16 | 8 | 2.00 | 2.00..2.00 |" in line
    assert list(here.iterdir()) == []


def test_what_has_a_record_is_not_measured_again(here, monkeypatch, capsys):
    words = ["--workload", "unet64", "segnet", "--record"]
    assert run(*words) == 1  # the fakes have a peer of other parameters
    kept = json.loads((here / RECORDS).read_text())
    assert list(kept) == ["unet64", "segnet"]
    assert kept["unet64"]["commit"] == "0123456789abcdef"
    assert kept["unet64"]["settings"] == {"rounds": 5, "block_seconds": 1.0}
    assert kept["unet64"]["workload"]["model"] == "unet"
    capsys.readouterr()

    monkeypatch.setitem(fakes.FAKES, "ours", lambda: fakes.Fake(0.25))
    assert run(*words) == 0
    assert capsys.readouterr().err.count("recorded already") == 2
    assert json.loads((here / RECORDS).read_text()) == kept
    assert run(*words, "--again") == 1
    again = json.loads((here / RECORDS).read_text())
    assert again["unet64"]["builds"]["train_step"]["ours"]["seconds"] == pytest.approx(0.25)


def test_peers_left_out_are_recorded_as_not_run(here):
    assert run("--workload", "unet64", "--record", "--peers", "torch", "keras") == 0
    (record,) = json.loads((here / RECORDS).read_text()).values()
    peers = record["builds"]["train_step"]["peers"]
    assert list(peers) == list(WORKLOADS["unet64"].peers)
    assert peers["torch"]["state"] == "measured"
    assert {peers[name]["state"] for name in peers if name != "torch"} == {"not run"}


def test_what_fails_is_said_and_the_next_follows(here, monkeypatch, capsys):
    def measure(name, run):
        if name == "unet64":
            raise Failed("its process was ended by signal 9")
        return TRAIN.measure(name, run)

    failing = command.dataclasses.replace(TRAIN, measure=measure)
    assert run("--workload", "unet64", "unet32", "--record", benchmarks=[failing]) == 1
    said = capsys.readouterr().err
    assert "train_step unet64: failed (its process was ended by signal 9)" in said
    assert list(json.loads((here / RECORDS).read_text())) == ["unet32"]


def test_a_budget_leaves_the_rest_for_another_time(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 90))
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    assert run("--budget-minutes", "2", "--peers") == 0
    said = capsys.readouterr().err
    assert f"{len(WORKLOADS) - 1} left for want of time" in said


def test_a_damaged_record_is_refused(here, capsys):
    (here / RECORDS).parent.mkdir(parents=True)
    (here / RECORDS).write_text("[1, 2]")
    assert run("--workload", "unet64", "--record") == 2
    assert "is not an object of records" in capsys.readouterr().err


def test_without_ours_there_is_nothing_to_measure(monkeypatch, capsys):
    dead = fakes.Fake(1.0, error=Failed("exit code 1"), error_in="provenance")
    monkeypatch.setitem(fakes.FAKES, "ours", lambda: dead)
    assert run("--record") == 1
    assert capsys.readouterr().err == ("segzoo: nothing can be measured: failed (exit code 1).\n")


def test_ctrl_c_is_one_line_and_what_was_measured_is_shown(monkeypatch, capsys):
    def interrupt(name, run):
        if name != "unet64":
            raise KeyboardInterrupt
        return TRAIN.measure(name, run)

    assert run(benchmarks=[command.dataclasses.replace(TRAIN, measure=interrupt)]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("segzoo: interrupted")
    assert "| `unet64` | CPU (2 cores, Fast(R) One) |" in printed.out
