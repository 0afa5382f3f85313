"""The table of before and after."""

import json

import pytest

from experiments.benchmarks import command, contestants, progress, train_step
from experiments.benchmarks.records import RECORDS, record_path
from segzoo import SegzooError

from . import fakes


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A record of now, and one of before that says that ours took twice as long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contestants, "start", lambda name, *a, **k: faster(name))
    chosen = ["--workload", "segnet", "unet64", "--record", "--peers", "torch", "linen"]
    command.run([train_step.BENCHMARK], chosen)
    now = record_path("train_step", fakes.DEVICE)
    records = json.loads(now.read_text())
    for record in records.values():
        entry = record["builds"]["train_step"]["peers"]["torch"]
        entry["ours_rates"] = [rate / 2 for rate in entry["ours_rates"]]
        entry["ratio"] /= 2
        record["commit"] = "f" * 40
    before = record_path("train_step", fakes.DEVICE, progress.BEFORE)
    before.parent.mkdir(parents=True)
    before.write_text(json.dumps(records))
    return tmp_path


def faster(name):
    return fakes.Fake(1.5) if name == "torch" else fakes.FAKES[name]()


def rows(root):
    return [line for line in progress.tables(root)[0].text.splitlines() if line.startswith("| ")]


def test_ours_before_and_now_beside_the_same_peer(house):
    (head, _, first, second), text = rows(house), progress.tables(house)[0].text
    assert "ours before, ms" in head
    # 1 s then and 0.5 s now, the peer 1.5 s both times; peers that failed have no line.
    named = "| `unet64` | CPU (2 cores, Fast(R) One) | train step | torch |"
    assert f"{named} 1,000 | 500 | 1,500 | 1,500 | 1.50 | 3.00 |" in (first, second)
    assert "Before: 2026-01-01, `fffffffff`" in text
    assert "Now: 2026-01-01, `012345678`" in text


def test_what_was_not_measured_again_says_so(house):
    now = record_path("train_step", fakes.DEVICE)
    records = json.loads(now.read_text())
    del records["segnet"]
    now.write_text(json.dumps(records))
    assert any(row.startswith("| `segnet` |  | not run |") for row in rows(house))


def test_every_device_beside_its_own_run_of_before_or_else_another(house):
    now, before = (
        record_path("train_step", fakes.DEVICE, folder) for folder in (RECORDS, progress.BEFORE)
    )
    records = json.loads(now.read_text())
    for record in records.values():
        record["device"] = "1 x GPU"
    elsewhere = record_path("train_step", "1 x GPU")
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps(records))
    named = "| `unet64` | GPU | train step | torch |"
    assert any(row.startswith(f"{named} 1,000 | 500 |") for row in rows(house))

    records = json.loads(before.read_text())
    for record in records.values():
        record["device"] = "1 x GPU"
        entry = record["builds"]["train_step"]["peers"]["torch"]
        entry["ours_rates"] = [rate / 2 for rate in entry["ours_rates"]]
    elsewhere = record_path("train_step", "1 x GPU", progress.BEFORE)
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps(records))
    assert any(row.startswith(f"{named} 2,000 | 500 |") for row in rows(house))
    named = "| `unet64` | CPU (2 cores, Fast(R) One) | train step | torch |"
    assert any(row.startswith(f"{named} 1,000 | 500 |") for row in rows(house))


def test_nothing_before_nothing_shown(house):
    assert progress.tables(house)[1].text.count("\n") == 2  # the head alone


def test_a_damaged_record(house):
    record_path("train_step", fakes.DEVICE, progress.BEFORE).write_text("[1]")
    with pytest.raises(SegzooError, match=r"before/cpu-2-cores-fast-one/train_step.json"):
        progress.tables(house)
