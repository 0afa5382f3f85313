import dataclasses
import os
import signal
import sys
import threading
import time

import pytest

from segzoo import SegzooError, pending
from segzoo.experiment import Experiment
from segzoo.pending import Item

FACTS = {
    "train_macs": 10**10,
    "test_macs": 2 * 10**10,
    "batch_size": 4,
    "steps": 1000,
    "eval_every": 100,
    "dtype": "bfloat16",
    "val_images": 50,
    "test_images": 100,
}


def row(name, steps=1000, **fields):
    return Experiment("table", "unet", "camvid", steps, 4, row=name, **fields)


def item(name, macs=10**10, **fields):
    facts = None if macs is None else {**FACTS, "train_macs": macs}
    return Item(row(name, **fields), "not run", facts)


def names(items):
    return [i.experiment.row for i in items]


def test_the_time_is_reckoned_from_multiply_adds():
    # Three forward passes of four images a step; eleven passes over images to score.
    training = 1000 * max(0.015, 6 * 4e10 / 1e14)
    scoring = 600 * max(0.015 / 4, 4e10 / 1e14)
    assert pending.gpu_seconds(FACTS) == pytest.approx(training + scoring)
    large = {**FACTS, "train_macs": 10**13}
    assert pending.gpu_seconds(large) == pytest.approx(1000 * 6 * 4e13 / 1e14 + scoring)
    slower = {**large, "dtype": "float32"}
    assert pending.gpu_seconds(slower) > 2 * pending.gpu_seconds(large)
    assert item("a", macs=None).gpu_seconds is None


class TestOrder:
    @pytest.fixture(autouse=True)
    def folders(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pending, "folder_of", lambda row: tmp_path / row.row)
        self.folder = tmp_path

    def test_the_cheapest_first_and_the_unknown_last(self):
        items = [item("dear", 10**12), item("unknown", None), item("cheap")]
        assert names(pending.in_order(items, items)) == ["cheap", "dear", "unknown"]

    def test_after_what_it_starts_from(self):
        items = [item("end", 10**9, init_row="begin"), item("other"), item("begin", 10**13)]
        assert names(pending.in_order(items, items)) == ["begin", "end", "other"]

    def test_a_recorded_row_comes_along_where_its_run_is_not_at_hand(self):
        begin = dataclasses.replace(item("begin"), state="recorded")
        end = item("end", init_row="begin")
        assert names(pending.in_order([end], [begin, end])) == ["begin", "end"]
        (self.folder / "begin").mkdir()
        (self.folder / "begin" / "results.json").write_text("{}")
        assert names(pending.in_order([end], [begin, end])) == ["end"]


def test_rows_of_the_tables():
    items = pending.items()
    assert {i.experiment.preset for i in items} == {"full"}
    assert {"camvid_unet", "shapes"} <= {i.experiment.name for i in items}
    assert len({i.experiment.label for i in items}) == len(items)
    recorded = next(i for i in items if i.experiment.name == "shapes")
    assert recorded.state == "recorded"
    assert {i.experiment.name for i in pending.items(only=["isbi_unet"])} == {"isbi_unet"}
    with pytest.raises(SegzooError, match="unknown experiment of the tables 'camvid_unit'"):
        pending.items(only=["camvid_unit"])


def test_every_row_stands_in_the_table():
    (table,) = pending.tables()
    for found in pending.items():
        assert f"| `{found.experiment.name}` `{found.experiment.row}` |" in table.text


def test_damaged_figures(tmp_path):
    assert pending.read(tmp_path) == {}
    (tmp_path / "docs").mkdir()
    for text in ("{", "[]", '{"a": 1}'):
        (tmp_path / pending.FACTS).write_text(text)
        with pytest.raises(SegzooError, match=r"rehearsals\.json"):
            pending.read(tmp_path)


def test_a_run_is_recorded_or_its_failure_told(monkeypatch, tmp_path):
    commands, lines = [], []
    (tmp_path / "camvid").mkdir()
    codes = iter([2, 0])
    monkeypatch.setattr(pending, "_run", lambda c: (commands.append(c), (next(codes), False))[1])
    assert pending.run([item("a"), item("b")], tmp_path, "data", lines.append) == 1
    assert "table.a.full failed with exit code 2" in lines[1]
    words = commands[1][3:]
    assert words[:4] == ["train", "table", "--preset", "full"]
    assert words[4:7] == ["--only", "b", "--record"]
    assert words[7:] == ["--manual-dir", str(tmp_path / "camvid"), "--data-dir", "data"]


def test_a_signal_is_passed_on_and_ends_it(monkeypatch, tmp_path):
    ready = tmp_path / "ready"
    program = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""

    def interrupt():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    real = pending._run
    monkeypatch.setattr(pending, "_run", lambda _: real([sys.executable, "-c", program]))
    thread = threading.Thread(target=interrupt)
    thread.start()
    lines = []
    assert pending.run([item("a"), item("b")], None, None, lines.append) == -1
    thread.join()
    assert lines == ["1 of 2: table.a.full", "stopped at table.a.full; the same command goes on "
                     "from there."]  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) is before
