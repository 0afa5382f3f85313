import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.checkpoint import Checkpoints, restore_variables
from segzoo.errors import SegzooError


def state(value=0.0, shape=(2, 3), ema=None):
    params = {"kernel": jnp.full(shape, value)}
    return {
        "step": jnp.int32(value),
        "params": params,
        "batch_stats": {},
        "opt_state": [jnp.full(shape, -value), None],
        "ema": None if ema is None else {"kernel": jnp.full(shape, ema)},
    }


def write(folder, scores, mode="max"):
    checkpoints = Checkpoints(folder, mode=mode)
    for step, score in enumerate(scores, 1):
        checkpoints.save(step, state(step), score)
    checkpoints.close()
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("mode", "scores", "kept"),
    [
        ("max", [0.1, 0.9, 0.2, 0.3, 0.4], [2, 4, 5]),
        ("min", [0.1, 0.9, 0.2, 0.3, 0.4], [1, 4, 5]),
        ("max", [0.5, None, None, None], [1, 3, 4]),
        ("max", [None, None, None], [2, 3]),
        ("max", [float("-inf"), 0.1, None, None], [2, 3, 4]),
    ],
)
def test_the_newest_two_and_the_best_are_kept(tmp_path, mode, scores, kept):
    assert write(tmp_path, scores, mode) == kept
    _, best = restore_variables(tmp_path, mode=mode)
    assert best == (kept[-1] if scores[0] is None else kept[0])
    assert restore_variables(tmp_path, "latest")[1] == kept[-1]


def test_a_state_comes_back_as_it_was(tmp_path):
    write(tmp_path, [None, None])
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step == 2
    found = checkpoints.restore_latest(state())
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found, state(2))
    assert jax.tree.structure(found) == jax.tree.structure(state(2))


def test_an_empty_folder_restores_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step is None
    assert checkpoints.restore_latest(state()) is None
    checkpoints.close()


def test_a_step_is_written_once(tmp_path):
    write(tmp_path, [0.5])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(7))
    checkpoints.close()
    variables, _ = restore_variables(tmp_path)
    assert variables["params"]["kernel"][0, 0] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_state_of_other_shapes_is_refused(tmp_path):
    write(tmp_path, [None])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(SegzooError, match="no checkpoint can be read"):
        checkpoints.restore_latest(state(shape=(3, 2)))
    assert checkpoints.latest_step == 1
    checkpoints.close()
    gc.collect()  # Orbax leaves an event loop behind where it fails


def test_the_running_average_stands_in_for_the_parameters(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1, ema=5.0))
    checkpoints.close()
    variables, step = restore_variables(tmp_path)
    assert step == 1
    assert set(variables) == {"params"}
    assert variables["params"]["kernel"].tolist() == [[5.0] * 3] * 2


def test_a_folder_without_a_checkpoint_is_said(tmp_path):
    with pytest.raises(SegzooError, match="holds no checkpoint yet"):
        restore_variables(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SegzooError, match="holds no checkpoint yet"):
        restore_variables(tmp_path)


def test_a_score_that_cannot_be_read_is_forgotten_and_the_state_kept(tmp_path):
    write(tmp_path, [0.9, 0.5, 0.4])
    score = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    score.write_text(score.read_text()[:5])
    with pytest.raises(SegzooError, match="checkpoints: the scores cannot be read"):
        restore_variables(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert int(checkpoints.restore_latest(state())["step"]) == 3
    checkpoints.close()
    assert restore_variables(tmp_path)[1] == 2
