import dataclasses

import pytest

import segzoo
from segzoo import data, rehearsal, study
from segzoo.cost import measure
from segzoo.rehearsal import FewOfEach


@pytest.fixture
def shapes_row():
    row = study.find("shapes").row("unet_precision", "quick")
    args = {**row.model_args, "width": 4}
    return dataclasses.replace(row, model_args=args, image_size=(32, 32), batch_size=4)


def test_the_first_of_every_split():
    whole = data.get("shapes")
    few = FewOfEach(whole, {"train": 3})
    assert len(few.source("train")) == 3
    assert len(few.source("val")) == 1
    assert (few.source("train")[2]["image"] == whole.source("train")[2]["image"]).all()
    with pytest.raises(IndexError):
        few.source("train")[3]
    assert len(FewOfEach(whole, {"val": 10**6}).source("val")) == len(whole.source("val"))


@pytest.mark.slow
def test_one_step_and_what_it_takes(shapes_row, tmp_path):
    whole = data.get("shapes")
    facts = rehearsal.rehearse(shapes_row, whole, tmp_path / "run")
    assert facts["steps"] == shapes_row.steps
    assert facts["train_shape"] == facts["test_shape"] == [32, 32, 3]
    assert facts["val_images"] == len(whole.source("val"))
    model = segzoo.get("unet_precision", num_classes=3, **shapes_row.model_args)
    assert facts["train_macs"] == measure(model, (32, 32), 3).macs
    assert facts["step_seconds"] > 0
    assert facts["peak_bytes"] > 2**27


def test_rows_that_share_a_rehearsal(shapes_row):
    def again(**changes):
        return rehearsal.in_common(dataclasses.replace(shapes_row, **changes))

    loss = dataclasses.replace(shapes_row.loss, class_weights="median_frequency")
    assert again(loss=loss, row="other", seed=3) == again()
    for changes in ({"model": "unet"}, {"batch_size": 8}, {"image_size": (40, 40)}):
        assert again(**changes) != again()


@pytest.mark.slow
def test_each_row_in_a_process_of_its_own(monkeypatch):
    row = study.find("shapes").row("unet_precision", "quick")
    missing = dataclasses.replace(row, name="camvid_unet", row="unet", data_dir="/nowhere")
    lines = []
    again = dataclasses.replace(row, row="other")
    (one, facts), (two, same), (three, nothing) = rehearsal.in_processes(
        [row, again, missing], lines.append
    )
    assert (one, two, three) == (row, again, missing)
    assert facts == same
    assert facts["model"] == "unet_precision"
    assert nothing is None
    assert lines[0] == f"{row.label} ..."
    assert any("failed: its process ended with exit code 2" in line for line in lines)
