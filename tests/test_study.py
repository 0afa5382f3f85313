import dataclasses
import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from segzoo import assembly, cli, study
from segzoo.errors import SegzooError
from segzoo.experiment import Experiment
from segzoo.study import Study, main
from segzoo.weights import load

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mine(tiny, monkeypatch, tmp_path):
    """A study of two rows over made-up data, run in an empty folder."""
    monkeypatch.setattr(assembly, "open_dataset", lambda experiment: tiny.dataset())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", os.environ["NPROC"])
    wide = tiny.experiment(name="mine")
    narrow = dataclasses.replace(wide, model_args={"width": 2, "dropout": 0.0})

    def short(full):
        return dataclasses.replace(
            full, steps=2, model_args={**full.model_args, "norm": False}, eval_every=2
        )

    return Study(
        "A lab note.", {"wide": wide, "narrow": narrow}, presets={"short": short}, first="short"
    )


@pytest.fixture
def chosen(mine, monkeypatch):
    """`chosen("--flag", ...)`: the rows that would be run, with their options."""

    def parse(*words):
        seen = []
        monkeypatch.setattr(study, "run", lambda _, rows, options: seen.append((rows, options)))
        main(mine, words)
        ((rows, options),) = seen
        return rows, options

    return parse


# --- the command line ---------------------------------------------------------------------------


def test_help_tells_every_field(mine, capsys):
    with pytest.raises(SystemExit) as done:
        main(mine, ["--help"])
    assert done.value.code == 0
    told = capsys.readouterr().out
    assert "A lab note." in told
    declared = {"name", "row", "published", "loss", "optimizer", "augment"}
    for field in dataclasses.fields(Experiment):
        if field.name not in declared:
            assert f"--{field.name.replace('_', '-')}" in told
    for flag in ("--loss.dice", "--optimizer.learning-rate", "--augment.flip-horizontal"):
        assert flag in told
    for flag in ("--smoke", "--record", "--only", "--run-dir", "--cpu-devices"):
        assert flag in told
    for flag in ("--name", "--row", "--published"):
        assert not re.search(rf"{flag}\b", told)


def test_without_flags_the_first_preset_of_every_row_runs(chosen, mine):
    rows, options = chosen()
    assert rows == [mine.row("wide", "short"), mine.row("narrow", "short")]
    assert [(row.row, row.preset, row.steps) for row in rows] == [
        ("wide", "short", 2),
        ("narrow", "short", 2),
    ]
    assert options == study.Options()


@pytest.mark.parametrize("words", [["--preset", "full"], ["--preset=full"]])
def test_a_preset_is_chosen_by_name(chosen, mine, words):
    rows, _ = chosen(*words, "--only", "narrow")
    assert rows == [mine.row("narrow", "full")]
    assert rows[0].preset == "full"


def test_flags_apply_to_every_row_and_make_it_custom(chosen):
    rows, _ = chosen("--steps", "7", "--loss.dice", "0.5", "--model-args", "width", "3")
    assert [(row.steps, row.loss.dice, row.preset) for row in rows] == [(7, 0.5, "custom")] * 2
    assert [row.model_args for row in rows] == [
        {"norm": False, "width": 3},
        {"norm": False, "width": 3, "dropout": 0.0},
    ]


def test_how_a_row_is_run_leaves_it_what_it_is(chosen):
    rows, _ = chosen("--data-dir", "there", "--loader-threads", "3", "--log-every", "5")
    assert {row.preset for row in rows} == {"short"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "shrt"], "unknown preset 'shrt'. Did you mean 'short'?"),
        (["--only", "wid"], "unknown row 'wid'. Did you mean 'wide'?"),
        (["--batch-size", "0"], "batch_size is 0; expected an integer of at least 1."),
        (["--loss.dice", "-1"], "loss.dice is -1.0; expected a number of at least 0."),
        (["--optimizer.learning-rate", "0"], "optimizer.learning_rate is 0.0; expected"),
        (["--steps", "3", "--record"], "--record takes a preset as it stands"),
        (["--smoke", "--record"], "--record takes a run on the real data"),
        (["--cpu-devices", "0"], "cpu_devices is 0; expected at least 1."),
        (["--model-args", "widht", "3"], "no override 'widht'. Did you mean 'width'?"),
        (["--monitor", "miuo"], "unknown monitor 'miuo'"),
        (["--test-split", "tset"], "has no split 'tset'"),
        (["--run-dir", "a_file"], "a_file/wide/config.json cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(mine, capsys, words, message):
    Path("a_file").write_text("")
    assert main(mine, words) == 2
    said = capsys.readouterr().err
    assert said.startswith("segzoo: ")
    assert message in said
    assert said.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--stepz", "3"], "--steps"), (["--steps", "abc"], "'abc'"), (["--dtype", "f16"], "'f16'")],
)
def test_a_flag_that_cannot_be_parsed_is_named(mine, capsys, words, message):
    with pytest.raises(SystemExit) as done:
        main(mine, words)
    assert done.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


# --- running ------------------------------------------------------------------------------------


def test_rows_run_one_after_the_other_and_end_in_a_table(mine, capsys):
    assert main(mine, ["--record"]) == 0
    said = capsys.readouterr().out
    for row in ("wide", "narrow"):
        folder = Path("runs/mine.short") / row
        assert (folder / "results.json").read_bytes() == (
            Path("docs/results") / f"mine.{row}.short.json"
        ).read_bytes()
        assert f"{folder}: results.json" in said
    assert "mIoU" in said
    assert Path("runs/mine.short/comparison.png").exists()


def test_smoke_leaves_nothing_behind(mine, tmp_path, capsys):
    assert main(mine, ["--smoke", "--only", "narrow"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "narrow" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", [22, 46], ids=["midway", "in the last step"])
def test_a_signal_ends_the_study_and_the_same_command_goes_on(
    mine, tiny, monkeypatch, capsys, number, when
):
    def stop(example):
        os.kill(os.getpid(), number)

    trap = tiny.Trapped(when, stop)
    monkeypatch.setattr(assembly, "open_dataset", lambda experiment: trap)
    words = ["--preset", "full", "--steps", "12"]
    assert main(mine, words) == 0
    said = capsys.readouterr().err
    name = signal.Signals(number).name
    assert re.search(rf"segzoo: {name}: stopped at step \d+ of 12, saved in runs/mine.full/", said)
    assert "the same command goes on from there" in said
    assert not Path("runs/mine.full/narrow").exists()
    monkeypatch.setattr(assembly, "open_dataset", lambda experiment: tiny.dataset())
    assert main(mine, words) == 0
    assert Path("runs/mine.full/narrow/results.json").exists()


def test_ctrl_c_outside_the_steps_is_code_130(mine, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run", interrupted)
    assert main(mine, []) == 130
    assert capsys.readouterr().err == "segzoo: interrupted.\n"


def test_a_loss_that_is_not_finite_is_code_2(mine, tiny, monkeypatch, capsys):
    def spoil(example):
        example["label"][5:9] = 77

    trap = tiny.Trapped(7, spoil)
    monkeypatch.setattr(assembly, "open_dataset", lambda experiment: trap)
    assert main(mine, ["--run-dir", "here"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("segzoo: loss is not finite at step 2 in here/wide; ")


@pytest.mark.slow
def test_a_row_can_start_from_another_row(mine, tiny, capsys):
    fcn = tiny.experiment(
        name="mine", model="fcn32s", model_args={"width": 2}, steps=1, batch_size=4
    )
    finer = dataclasses.replace(fcn, model="fcn16s", init_row="fcn32s")
    chain = Study("", {"fcn32s": fcn, "fcn16s": finer})
    assert main(chain, ["--only", "fcn16s"]) == 2
    assert "runs/mine.full/fcn32s does not exist" in capsys.readouterr().err
    assert main(chain, ["--optimizer.learning-rate", "1e-12", "--ema", "0"]) == 0
    (_, coarse, _), (_, fine, _) = (
        load(Path("runs/mine.custom") / row) for row in ("fcn32s", "fcn16s")
    )
    backbones = [variables["params"]["backbone"] for variables in (coarse, fine)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *backbones)


# --- the studies of the house -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        # Minutes of compiling; `shapes_mask_rcnn` and others do as much with smaller networks.
        pytest.param(path.stem, marks=pytest.mark.exhaustive)
        if path.stem in ("camvid_fc_densenet", "coco_mask_rcnn", "nuclei_mask_rcnn")
        else path.stem
        for path in (ROOT / "experiments").glob("[a-z]*.py")
    ],
)
def test_every_study_of_the_house_passes_its_smoke_run(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NPROC", os.environ["NPROC"])
    found = study.find(name)
    cheap, last = next(iter(found.presets), "full"), list(found.rows)[-1]
    row = {"camvid_fc_densenet": "fc_densenet56"}.get(name, last)  # seconds instead of minutes
    assert name in study.names()
    assert cli.main(["train", name, "--smoke", "--preset", cheap, "--only", row]) == 0
    score = {"mnist_lenet5": "accuracy"}.get(name, "mask AP" if "mask_rcnn" in name else "mIoU")
    assert score in capsys.readouterr().out


def test_every_row_is_declared_once_at_every_preset(monkeypatch):
    monkeypatch.chdir(ROOT)
    labels = [row.label for row in study.declared()]
    assert len(set(labels)) == len(labels) > 0


def test_a_study_is_found_by_name_or_file(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SegzooError, match=r"unknown experiment 'shape'\. Did you mean 'shapes'"):
        study.find("shape")
    with pytest.raises(SegzooError, match=r"none\.py does not exist"):
        study.find(str(tmp_path / "none.py"))
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(SegzooError, match="declares no STUDY"):
        study.find(str(empty))
    own = tmp_path / "own.py"
    own.write_text("from segzoo.study import Study\nSTUDY = Study('mine', {})\n")
    assert study.find(str(own)).doc == "mine"
