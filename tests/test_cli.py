import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import segzoo
from segzoo import SegzooError, batch, doctor, weights
from segzoo.cli import COMMANDS, main
from segzoo.weights import ModelInfo

PALETTE = ((0, 0, 0), (200, 0, 0), (0, 200, 0))


@pytest.fixture
def net(tmp_path):
    info = ModelInfo(
        model="unet",
        model_args={"num_classes": 3, "width": 4, "depth": 1},
        class_names=("background", "cell", "edge"),
        palette=PALETTE,
        mean=(120.0,) * 3,
        std=(60.0,) * 3,
    )
    rng = np.random.default_rng(0)
    shapes = weights.variable_shapes(info.build(), info)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)
    path = tmp_path / "net.safetensors"
    weights.save(path, variables, info)
    return path


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for name in names:
        array = rng.integers(0, 256, (32, 40, 3)).astype(np.uint8)
        Image.fromarray(array).save(folder / name)
    return folder


def fails(capsys, *words):
    """The one line a mistake leaves on stderr."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("segzoo: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


# --- parsing -------------------------------------------------------------------------------------


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"segzoo {segzoo.__version__}"


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_names_every_command(capsys, words):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    assert main([command, "--help"]) == 0
    assert f"segzoo {command}" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from segzoo.cli import main; main(['--help']); "
        "heavy = {'jax', 'flax', 'numpy', 'PIL', 'tyro', 'rich'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_one_line(capsys):
    assert "unknown command 'lits'. Did you mean 'list'?" in fails(capsys, "lits")
    assert "RUN" in fails(capsys, "predict")
    assert "-o/--output" in fails(capsys, "predict", "run", "a.png")
    assert "unrecognized arguments: --foo" in fails(capsys, "list", "--foo")
    assert "--tile" in fails(capsys, "predict", "run", "a.png", "-o", "x", "--tile", "big")
    assert "Did you mean 'unet'" in fails(capsys, "info", "unett")
    assert "unknown task 'x'" in fails(capsys, "list", "--task", "x")
    assert "no model matches 'unett'" in fails(capsys, "list", "unett")


def test_ctrl_c_leaves_no_traceback(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("segzoo.registry.list_models", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "segzoo: interrupted.\n"


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "segzoo.cli", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert done.stderr == b""


# --- list and info -------------------------------------------------------------------------------


def test_list_follows_pattern_and_task(capsys):
    assert main(["list", "unet*", "--task", "semantic"]) == 0
    shown = capsys.readouterr().out
    assert "1505.04597" in shown
    names = [line.split()[0] for line in shown.splitlines()[1:]]
    assert names == segzoo.list_models("unet*", task="semantic")


def test_info_counts_without_allocating(capsys):
    words = ["info", "unet", "--input-size", "572", "572", "--channels", "1"]
    assert main([*words, "--override", "num_classes", "2"]) == 0
    shown = capsys.readouterr().out
    # Channels 1, 64, 128, 256, 512, 1024 and back, 2x2 up-convolutions, a 1x1 score: all biased.
    assert "31,030,658" in shown
    assert "[1, 572, 572, 2]" in shown
    assert "receptive field   logits 204" in shown
    assert "GFLOP" in shown
    assert "MiB" in shown


def test_info_compares_with_what_was_published(capsys):
    assert main(["info", "lenet5"]) == 0
    shown = capsys.readouterr().out
    assert "parameters        60,000 (published: 60,000)" in shown
    assert "receptive field   1/1 5, 1/2 14, 1/4 32" in shown
    assert main(["info", "lenet5", "--override", "variant", "modern"]) == 0
    assert "(published" not in capsys.readouterr().out


def test_info_overrides(capsys):
    words = ["info", "unet", "--override", "spatial_dims", "3", "width", "2", "depth", "1"]
    assert main([*words, "--input-size", "8", "8", "8"]) == 0
    assert "[1, 8, 8, 8, 2]" in capsys.readouterr().out
    assert "'width' has no value" in fails(capsys, "info", "unet", "--override", "width")
    assert "no override 'widht'" in fails(capsys, "info", "unet", "--override", "widht", "2")
    assert "expected an integer of at least 1" in fails(
        capsys, "info", "unet", "--input-size", "0", "8"
    )


# --- predict -------------------------------------------------------------------------------------


def test_predict_writes_palette_indices(capsys, net, tmp_path):
    images = put(tmp_path / "images", "a.png", "b.jpg")
    out = tmp_path / "out"
    assert main(["predict", str(net), str(images), "-o", str(out), "--overlay"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "a.overlay.png",
        "a.png",
        "b.overlay.png",
        "b.png",
    ]
    with Image.open(out / "a.png") as written:
        assert written.mode == "P"
        assert written.size == (40, 32)
        assert written.getpalette()[:9] == [value for color in PALETTE for value in color]
        model, variables, info = segzoo.load(net)
        expected = segzoo.Predictor(model, variables, info)(images / "a.png")
        np.testing.assert_array_equal(np.asarray(written), expected)
    with Image.open(out / "a.overlay.png") as written:
        assert written.mode == "RGB"
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_predict_goes_on_past_a_damaged_file(capsys, net, tmp_path):
    images = put(tmp_path / "images", "a.png", "c.png")
    (images / "b.png").write_bytes(b"damaged")
    out = tmp_path / "out"
    assert main(["predict", str(net), str(images), "-o", str(out)]) == 2
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "c.png"]
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "b.png" in errors


def test_predict_never_overwrites_its_input(capsys, net, tmp_path):
    images = put(tmp_path / "images", "a.png")
    before = (images / "a.png").read_bytes()
    message = fails(capsys, "predict", str(net), str(images), "-o", str(images))
    assert "would be overwritten" in message
    assert (images / "a.png").read_bytes() == before


def test_predict_says_what_it_did_not_find(capsys, net, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = str(tmp_path / "out")
    assert "holds no pictures" in fails(capsys, "predict", str(net), str(empty), "-o", out)
    assert "matches no file" in fails(capsys, "predict", str(net), str(empty / "*.png"), "-o", out)
    image = str(put(tmp_path / "images", "a.png"))
    assert "does not exist" in fails(capsys, "predict", str(tmp_path / "no"), image, "-o", out)
    assert "tile is 0" in fails(capsys, "predict", str(net), image, "-o", out, "--tile", "0")
    assert "not a run folder" in fails(capsys, "predict", str(empty), image, "-o", out)


def test_files_folders_and_patterns_are_found_once(tmp_path):
    folder = put(tmp_path / "x", "b.png", "a.jpg")
    (folder / "notes.txt").write_text("")
    words = [str(folder / "b.png"), str(folder), str(folder / "*.png")]
    assert [path.name for path in batch.find_images(words)] == ["b.png", "a.jpg"]


def test_output_names_never_collide(tmp_path):
    names = ["x/a.png", "x/a.jpg", "y/a.jpg", "x/b.png", "x/B.tif", "x/c.png", "x/v.npy"]
    out = tmp_path / "out"
    found = batch.output_paths([tmp_path / name for name in names], out, overlays=True)
    assert [path.name for path in found] == [
        "a.png.png",
        "a.jpg.png",
        "a.jpg-2.png",
        "b.png.png",
        "B.tif.png",
        "c.png",
        "v.npy",
    ]
    clash = [tmp_path / "a.png", tmp_path / "a.overlay.png"]
    written = batch.output_paths(clash, out, overlays=True)
    assert len({*written, *(batch._overlay_path(path) for path in written)}) == 4


def test_volumes_are_written_as_arrays(net, tmp_path):
    model = "unet"
    info = ModelInfo(
        model=model,
        model_args={"num_classes": 2, "width": 2, "depth": 1, "spatial_dims": 3},
        class_names=("a", "b"),
        palette=PALETTE[:2],
        mean=(100.0,),
        std=(50.0,),
        in_channels=1,
    )
    shapes = weights.variable_shapes(info.build(), info)
    variables = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)
    weights.save(tmp_path / "v.safetensors", variables, info)
    np.save(tmp_path / "scan.npy", np.zeros((8, 9, 10), np.uint8))
    words = ["predict", str(tmp_path / "v.safetensors"), str(tmp_path / "scan.npy")]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert np.load(tmp_path / "out" / "scan.npy").shape == (8, 9, 10)


# --- the other doors -----------------------------------------------------------------------------


def test_train_hands_over_all_that_follows(monkeypatch):
    seen = []
    monkeypatch.setattr("segzoo.study.main_for", lambda name, argv: seen.append((name, argv)) or 3)
    assert main(["train", "shapes", "--preset", "full", "--help"]) == 3
    assert seen == [("shapes", ["--preset", "full", "--help"])]


def test_train_knows_near_names(capsys, tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "camvid.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "unknown experiment 'camvld'. Did you mean 'camvid'?" in fails(capsys, "train", "camvld")
    assert "EXPERIMENT" in fails(capsys, "train").upper()


def test_evaluate_wants_a_run_folder(capsys, tmp_path):
    assert "does not exist" in fails(capsys, "evaluate", str(tmp_path / "no"))
    assert "no config.json" in fails(capsys, "evaluate", str(tmp_path))


def test_evaluate_passes_its_options_on(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    seen = {}
    monkeypatch.setattr(
        "segzoo.evaluate.evaluate_run",
        lambda folder, **options: seen.update(options, folder=folder) or {"scores": {}},
    )
    monkeypatch.setattr("segzoo.scoreboard.print_table", lambda records: None)
    words = ["--split", "val", "--data-dir", "d", "--boundary", "--crf", "iterations", "3"]
    assert main(["evaluate", str(tmp_path), *words]) == 0
    assert seen.pop("crf").iterations == 3
    assert seen.pop("boundary")
    assert seen == {"folder": tmp_path, "split": "val", "data_dir": "d", "manual_dir": None}


def test_report_writes_then_checks(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no docs folder" in fails(capsys, "report")
    (tmp_path / "docs").mkdir()
    assert main(["report", "--check"]) == 1
    assert "out of date: docs/results.md" in capsys.readouterr().err
    assert main(["report"]) == 0
    assert main(["report", "--check"]) == 0


def test_check_data_names_the_folder(capsys, tmp_path):
    assert main(["check-data", str(tmp_path / "no")]) == 2
    assert str(tmp_path / "no") in capsys.readouterr().err


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_is_well_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    findings = doctor.examine()
    texts = "\n".join(finding.text for finding in findings)
    assert f"jax {jax.__version__}" in texts
    assert str(tmp_path / "data") in texts
    assert "models registered" in texts
    broken = [finding.text for finding in findings if finding.state == "broken"]
    assert not [text for text in broken if "free" not in text]  # a full disk is not our fault


def test_doctor_warns_of_too_few_threads():
    many = 64
    (found,) = doctor._cpu_threads(many)
    assert found.state == "warning"
    assert "NPROC" in found.text
    assert list(doctor._cpu_threads(1)) == []


def test_doctor_finds_wrong_versions_and_files(monkeypatch, tmp_path):
    (found,) = doctor._requirement("numpy<1")
    assert found.state == "broken"
    assert "numpy<1" in found.text
    assert list(doctor._requirement("numpy>=1")) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    assert [finding.state for finding in doctor._data()] == ["broken"]


def test_doctor_survives_what_it_finds(capsys, monkeypatch):
    def explode():
        raise SegzooError("no registry")

    monkeypatch.setattr("segzoo.registry.list_models", explode)
    assert main(["doctor"]) == 1
    assert "broken  models: no registry" in capsys.readouterr().out
