"""A run that was stopped, however it was stopped, ends like one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from segzoo import evaluate
from segzoo.checkpoint import Checkpoints
from segzoo.errors import SegzooError
from segzoo.runlog import read_rows
from segzoo.train import train

PROGRAMS = Path(__file__).parent / "programs"
CLOCK = ("seconds", "images_per_second")


def state(folder, experiment):
    """The newest checkpoint of a run, as numpy arrays in a flat dictionary."""
    newest = folder.absolute() / "checkpoints" / str(experiment.steps) / "default"
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.restore(
        newest,
        args=ocp.args.PyTreeRestore(
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(handler.metadata(newest))
            )
        ),
    )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def rows(folder):
    """The log without what a clock says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in CLOCK}
        for line in lines
    ]


def assert_same_run(folder, other, experiment):
    ours, theirs = state(folder, experiment), state(other, experiment)
    assert ours.keys() == theirs.keys()
    assert any("opt_state" in key for key in ours)
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    assert rows(folder) == rows(other)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "straight"
    assert train(tiny.experiment(), folder, dataset=tiny.dataset()).stopped_by is None
    return folder


@pytest.fixture
def straight(undisturbed, tmp_path):
    """A copy of a run that was never stopped."""
    return shutil.copytree(undisturbed, tmp_path / "straight")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(tiny, tmp_path, straight, number):
    def stop(example):
        os.kill(os.getpid(), number)

    experiment, folder = tiny.experiment(), tmp_path / "stopped"
    first = train(experiment, folder, dataset=tiny.Trapped(22, stop))
    assert first.stopped_by == signal.Signals(number).name
    assert 0 < first.step < experiment.steps
    assert Checkpoints(folder).latest_step == first.step
    second = train(experiment, folder, dataset=tiny.dataset())
    assert (second.step, second.stopped_by) == (experiment.steps, None)
    assert_same_run(folder, straight, experiment)
    results = [
        evaluate.evaluate_checkpoint(place, experiment, tiny.dataset())
        for place in (folder, straight)
    ]
    for result in results:
        for key in ("train_seconds", "evaluate_seconds"):
            del result[key]
    assert results[0] == results[1]


def test_a_finished_run_trains_no_more(tiny, straight):
    before = {path: path.stat().st_mtime_ns for path in (straight / "checkpoints").rglob("*")}
    outcome = train(tiny.experiment(), straight, dataset=tiny.dataset())
    assert (outcome.step, outcome.stopped_by) == (12, None)
    after = {path: path.stat().st_mtime_ns for path in (straight / "checkpoints").rglob("*")}
    assert before == after


def test_rows_after_the_last_checkpoint_are_dropped_and_written_again(tiny, tmp_path, straight):
    folder = tmp_path / "cut"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints" / "12")  # as if killed before the last save
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 13, "split": "tra')  # ... in the middle of a line
    train(tiny.experiment(), folder, dataset=tiny.dataset())
    assert_same_run(folder, straight, tiny.experiment())


def damage(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny, tmp_path, straight, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(straight, folder)
    damage(folder / "checkpoints" / "12")
    train(tiny.experiment(), folder, dataset=tiny.dataset())
    assert "checkpoints/12 cannot be read; trying the one before it" in capsys.readouterr().err
    assert_same_run(folder, straight, tiny.experiment())


def test_nothing_but_damaged_checkpoints_is_said_and_nothing_is_removed(tiny, tmp_path, straight):
    for step in (straight / "checkpoints").iterdir():
        damage(step)
    kept = sorted(path.name for path in (straight / "checkpoints").iterdir())
    with pytest.raises(SegzooError, match=r"checkpoints: no checkpoint can be read \(step 12: "):
        train(tiny.experiment(), straight, dataset=tiny.dataset())
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == kept
    with pytest.raises(SegzooError, match="cannot be read"):
        evaluate.evaluate_checkpoint(straight, tiny.experiment(), tiny.dataset())


def reached(folder):
    """How far a run came, in words: its last row and its checkpoints, whole or half written."""
    log, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    written = read_rows(log)
    names = sorted(path.name for path in checkpoints.iterdir()) if checkpoints.is_dir() else []
    return f"{written[-1]['step'] if written else 0}: {' '.join(names)}"


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    """SIGKILL at random moments, saves included; the run still ends the same, bit for bit."""
    sys.path.insert(0, str(PROGRAMS))
    try:
        import tiny_run
    finally:
        sys.path.pop(0)
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(folder):
        command = [sys.executable, str(PROGRAMS / "tiny_run.py"), str(folder)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def finish(process):
        try:
            _, said = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, said

    finish(start(tmp_path / "straight"))  # fills the cache, too

    folder, draw, hits = tmp_path / "killed", random.Random(0), []
    while len(hits) < 20:
        process = start(folder)
        before = reached(folder)
        if len(hits) % 4 == 3:  # some blows while it starts and reads its checkpoint
            time.sleep(draw.uniform(0.5, 3.0))
        else:  # most while it steps and saves
            while process.poll() is None and reached(folder) == before:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.5))
        process.kill()
        _, said = process.communicate()
        if process.returncode == 0:  # it was quicker than the blow: the next ones hit a new run
            assert_same_run(folder, tmp_path / "straight", tiny_run.EXPERIMENT)
            folder = folder.with_name(folder.name + "+")
            continue
        assert process.returncode == -signal.SIGKILL, said
        hits.append(reached(folder))
    print("steps begun, then checkpoints found, after each kill:", *hits, sep="\n")
    finish(start(folder))
    assert_same_run(folder, tmp_path / "straight", tiny_run.EXPERIMENT)
