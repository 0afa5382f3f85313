import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segzoo.runlog import RunLog, read_rows


def open_log(folder, step=0):
    return RunLog(folder, step=step, total=10, title="run")


def test_rows_are_appended_and_read_back(tmp_path, capsys):
    log = open_log(tmp_path)
    log.write("train", 1, {"loss": 0.5})
    log.write("val", 1, {"miou": None, "iou": {"road": 0.25}})
    log.show(1, "loss 0.5")
    log.close()
    expected = [
        {"step": 1, "split": "train", "loss": 0.5},
        {"step": 1, "split": "val", "miou": None, "iou": {"road": 0.25}},
    ]
    assert read_rows(tmp_path / "metrics.jsonl") == log.rows == expected
    assert log.of_split("val") == expected[1:]
    assert "run 1/10 loss 0.5" in capsys.readouterr().err


def test_scalars_reach_tensorboard(tmp_path):
    log = open_log(tmp_path)
    log.write("train", 1, {"loss": 0.5})
    log.write("train", 2, {"loss": 0.25, "name": "no number"})
    log.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "spl')
    assert [row["step"] for row in read_rows(path)] == [1]


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "split": "train", "loss": 1.0}) for step in range(1, 6)]
    path.write_text("\n".join(lines) + '\n{"step": 6')
    log = open_log(tmp_path, step=3)
    log.write("train", 4, {"loss": 2.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_rows(path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
    ]
