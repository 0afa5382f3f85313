import json

import pytest

from experiments.benchmarks import command, compile, contestants, page, pipeline, primitives
from experiments.benchmarks.page import BENCHMARKS
from experiments.benchmarks.records import RECORDS, record_path
from experiments.benchmarks.workloads import WORKLOADS
from segzoo import SegzooError, report

from . import fakes

NAMES = [benchmark.name for benchmark in BENCHMARKS]


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contestants, "start", fakes.start)
    (tmp_path / "docs").mkdir()
    marks = [f"<!-- benchmarks:{n}:begin -->\n<!-- benchmarks:{n}:end -->\n" for n in NAMES]
    (tmp_path / page.PAGE).write_text("# Benchmarks\n\n" + "\n".join(marks))
    return tmp_path


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| `") or line.startswith("|  ")]


def test_a_row_without_a_record_says_so(house):
    for benchmark, table in zip(BENCHMARKS, page.tables(house), strict=True):
        assert table.name == f"benchmarks:{benchmark.name}"
        assert len(rows(table.text)) == len(benchmark.subjects())
        assert all("| not run |" in row for row in rows(table.text))
        widths = {line.count(" | ") for line in table.text.splitlines() if line}
        assert len(widths) == 1


def test_records_in_page_out(house):
    command.run(BENCHMARKS, ["--only", "train_step", "inference", "memory", "primitives"])
    assert not (house / "docs/benchmarks").exists()
    chosen = ["--workload", "unet_keras", "max-pool 2x2", "--record"]
    command.run(BENCHMARKS, ["--only", "train_step", "inference", "memory", "primitives", *chosen])
    assert report.update(house, tables=page.tables(house), check=True)
    report.update(house, tables=page.tables(house))
    assert report.update(house, tables=page.tables(house), check=True) == []
    text = (house / page.PAGE).read_text()
    parts = {n: text.partition(f"benchmarks:{n}:begin")[2].partition(":end")[0] for n in NAMES}

    train = rows(parts["train_step"])
    assert len(train) == len(WORKLOADS) + 1  # two peers
    (first,) = [i for i, row in enumerate(train) if row.startswith("| `unet_keras`")]
    assert "expected the same network" in train[first]
    assert train[first + 1].endswith("| keras | 16 | not installed: keras |  |  |")
    # 2 * 2048^3 operations in half a second, and in a whole one.
    source = "\n2026-01-01, `012345678`, 1 x CPU (2 cores, Fast(R) One): jax 0"
    reached = "; products of matrices, GFLOP/s: ours 34.4, torch 17.2.\n"
    assert source + reached in parts["train_step"]
    assert source + ", fake 1.0.\n" in parts["memory"]

    assert [row.split(" | ")[2] for row in rows(parts["inference"]) if "float32" in row] == [
        "1 of 128x128, float32",
        "8 of 128x128, float32",
    ]
    memory = [row for row in rows(parts["memory"]) if "not run" not in row]
    assert "| ours | 0 | 1 | 1.00 | 0.1 |" in memory[0]
    assert "| ours, remat | 0 | 1 | 1.00 | 0.1 |" in memory[1]
    assert len(memory) == 3
    pool = [row for row in rows(parts["primitives"]) if "not run" not in row]
    assert "| forward | - | torch | 500 | 1,000 | 2.00 | 2.00..2.00 |" in pool[0]


def test_every_device_has_its_lines(house):
    command.run(BENCHMARKS, ["--only", "train_step", "--workload", "unet64", "--record"])
    record = json.loads(record_path("train_step", fakes.DEVICE).read_text())
    others = "1 x GPU", "2 x GPU", "1 x CPU (2 cores, Slow(R) One)"
    for device in others:
        record["unet64"]["device"] = device
        path = record_path("train_step", device)
        path.parent.mkdir()
        path.write_text(json.dumps(record))
    text = page.tables(house)[0].text
    for device in (fakes.DEVICE, *others):
        assert text.count(f"| `unet64` | {device.removeprefix('1 x ')} |") == 1
        assert f"`012345678`, {device}: jax 0, fake 1.0; products" in text


def test_a_damaged_record_is_named(house):
    path = record_path("memory", "1 x GPU", house / RECORDS)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(SegzooError, match=r"gpu/memory\.json cannot be read as JSON"):
        page.tables(house)


def test_lines_of_compilation_and_of_the_pipeline():
    told = {"batch": 2, "size": [96, 96]}
    found = {"state": 3.0, "seconds": 20.0}
    record = {"workload": told, "first": found, "second": {"state": 1.0, "seconds": 2.0}}
    assert compile.lines(record) == [["2 of 96x96", "3.0", "20.0", "1.0", "2.0", ""]]
    counted = {"programs": 9, "sizes": 40, "buckets": 9}
    assert compile.lines(counted)[0][-1] == "9 programs for 40 sizes in 9 buckets"

    rate = {"workers": 0, "threads": 2, "rate": 300.0}
    record = {"batch": 16, "size": [128, 128], "decode_rate": 200.0, "rates": [rate]}
    assert pipeline.lines(record)[1] == ["", "0", "2", "300", "1.50"]


def test_heads_are_as_long_as_lines():
    record = {"workload": {"batch": 2, "size": [96, 96]}}
    record |= {name: {"state": 3.0, "seconds": 20.0} for name in ("first", "second")}
    assert len(compile.HEAD) == 2 + len(compile.lines(record)[0])
    record = {"batch": 16, "size": [8, 8], "decode_rate": 1.0, "rates": []}
    assert len(pipeline.HEAD) == 2 + len(pipeline.lines(record)[0])


def test_multiply_adds_of_the_operations():
    found = {
        name: primitives.multiply_adds(primitive, (2, *primitive.shape["cpu"][1:]))
        for name, primitive in primitives.PRIMITIVES.items()
        if primitive.matrix
    }
    assert found == {
        "convolution 3x3": 2 * 128 * 128 * 64 * 64 * 9,
        "convolution 3x3, rate 2": 2 * 128 * 128 * 64 * 64 * 9,
        "convolution 3x3x3": 2 * 32**3 * 32 * 32 * 27,
        "up-convolution 2x2": 2 * 128 * 128 * 64 * 32 * 4,
    }
