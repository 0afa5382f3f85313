"""The generated dataset: the same everywhere, fair, and prepared safely."""

import hashlib
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from segzoo import data
from segzoo.data import shapes


def test_pictures_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for index in (0, 1, 999):
        for key in ("image", "label", "instances"):
            digest.update(shapes.draw(index)[key].tobytes())
    assert digest.hexdigest() == "9d9a6db5d940e693f01211454565ef4ef450836a2f9d41f3a96d5a589550f52d"


def test_label_and_instances_agree():
    kinds = set()
    for index in range(20):
        example = shapes.draw(index, 64)
        assert example["image"].shape == (64, 64, 3)
        np.testing.assert_array_equal(example["label"] > 0, example["instances"] > 0)
        for instance in np.unique(example["instances"])[1:]:
            (kind,) = np.unique(example["label"][example["instances"] == instance])
            kinds.add(int(kind))
    assert kinds == {1, 2}


def test_an_ellipse_and_a_rectangle_are_what_they_are_called():
    """Area over that of the bounding box along its own axes: pi/4 for an ellipse, 1 for a box."""
    fills = {1: [], 2: []}
    for index in range(200):
        example = shapes.draw(index)
        last = example["instances"].max()  # the last one drawn is covered by none
        y, x = np.nonzero(example["instances"] == last)
        if len(y) < 300 or min(y.min(), x.min()) == 0 or max(y.max(), x.max()) == 127:
            continue
        kind = int(example["label"][y[0], x[0]])
        # For a uniform ellipse the axes' variances are a^2/4 and b^2/4, for a box a^2/3 and b^2/3.
        root = np.sqrt(np.linalg.det(np.cov(np.stack([y, x]))))
        fills[kind].append(len(y) / root)
    assert len(fills[1]) > 20
    assert len(fills[2]) > 20
    np.testing.assert_allclose(np.mean(fills[1]), 4 * np.pi, rtol=0.02)
    np.testing.assert_allclose(np.mean(fills[2]), 12, rtol=0.02)


def test_colour_does_not_tell_the_class():
    means = {1: [], 2: []}
    for index in range(120):
        example = shapes.draw(index, 48)
        for instance in np.unique(example["instances"])[1:]:
            inside = example["instances"] == instance
            means[int(example["label"][inside][0])].append(example["image"][inside].mean(0))
    for channel in range(3):
        ellipses, boxes = (np.array(means[kind])[:, channel] for kind in (1, 2))
        error = np.sqrt(ellipses.var() / len(ellipses) + boxes.var() / len(boxes))
        assert abs(ellipses.mean() - boxes.mean()) < 4 * error


SCRIPT = """
import socket, sys
def refuse(*args): raise AssertionError("a network connection was tried")
socket.socket.connect = refuse
from segzoo import data
from segzoo.data import shapes
shapes.SPLITS = {"train": 6, "val": 2, "test": 2}
"""


def start(code, data_dir):
    env = {**os.environ, "TFDS_DATA_DIR": str(data_dir)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(code)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_preparing_survives_kills_and_rivals(tmp_path):
    killed = start(
        """
        import os, signal
        draw = shapes.draw
        shapes.draw = lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == 4 else draw(i)
        data.get("shapes").source("train")
        """,
        tmp_path,
    )
    killed.communicate(timeout=120)
    assert killed.returncode == -9
    assert list((tmp_path / "segzoo" / "shapes").glob("incomplete.*"))

    read = """
        import time
        draw = shapes.draw
        shapes.draw = lambda i: (time.sleep(0.1), draw(i))[1]
        source = data.get("shapes").source("train+val")
        assert len(source) == 8
        assert (source[7]["image"] == draw(7)["image"]).all()
        assert "tensorflow" not in sys.modules
    """
    rivals = [start(read, tmp_path) for _ in range(2)]
    for rival in rivals:
        out, err = rival.communicate(timeout=120)
        assert rival.returncode == 0, err
        assert out == ""
        assert err.count("\n") <= 1, err
    left = {path.name for path in (tmp_path / "segzoo" / "shapes").iterdir()}
    assert left == {"1.0.0", ".lock"}


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 6, "val": 2, "test": 2})
    return data.get("shapes", data_dir=tmp_path)


def test_what_is_read_is_what_was_drawn(small):
    assert dict(small.splits) == {"train": 6, "val": 2, "test": 2}
    source = small.source("val+test[:1]")
    assert len(source) == 3
    assert source.name(2) == "0008"
    assert source.image_shape(2) == (128, 128, 3)
    drawn = shapes.draw(8)
    for example in (source[2], source.__getitems__([1, 2])[1]):
        assert {key: value.dtype for key, value in example.items()} == {
            "image": np.uint8,
            "label": np.uint8,
            "instances": np.int32,
        }
        for key, value in example.items():
            np.testing.assert_array_equal(value, drawn[key])
    with pytest.raises(IndexError):
        source[3]
