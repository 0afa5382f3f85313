"""Checkpoints of a run, through Orbax.

One folder holds the newest two checkpoints and the best one by the run's monitored score. A save is
atomic: a process killed at any moment leaves the checkpoints before it intact.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as managers

from segzoo import parallel
from segzoo.errors import SegzooError
from segzoo.transfer import union

FOLDER = "checkpoints"
_SCORE = "score"
_SCORE_FILE = "metrics/metrics"  # in a checkpoint's folder, as Orbax names it

# Orbax reports through absl what is no news to a user: options it sets by itself.
logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.ERROR)


class Checkpoints:
    """The checkpoints under `run_folder`.

    Attributes:
        folder: where they lie, `run_folder/checkpoints`.
    """

    def __init__(self, run_folder: Path, *, mode: Literal["max", "min"] = "max"):
        self.folder = (Path(run_folder) / FOLDER).absolute()
        if parallel.is_main_process():
            _forget_damaged_scores(self.folder)
        parallel.any_process(False)  # the others wait until that is done

        def score(metrics: dict[str, float]) -> float:
            return metrics[_SCORE]

        # best_fn with max_to_keep would delete the latest checkpoint when it is not a good one.
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(2),
                managers.BestN(
                    get_metric_fn=score,
                    reverse=mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=score,
                best_mode=mode,
                cleanup_tmp_directories=parallel.is_main_process(),
            ),
        )

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts to write `state` in the background; a step that is already there is left alone."""
        if step in self._manager.all_steps():
            return
        metrics = None if score is None else {_SCORE: float(score)}
        self._manager.save(
            step, args=ocp.args.PyTreeSave(parallel.to_global(state)), metrics=metrics
        )

    def restore_latest(self, like: Any) -> Any | None:
        """Returns the newest state that can be read, or None if nothing was ever saved.

        A checkpoint that is damaged is passed over for the one before it, with a warning, and
        removed, so that the run can save that step again.

        Args:
            like: a state of the right structure; its shapes, dtypes and placement are what comes
                back.

        Raises:
            SegzooError: when there are checkpoints and none can be read.
        """
        failures: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = parallel.to_local(self._restore(step, parallel.to_global(like)))
            except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
                failures[step] = _reason(error)
                parallel.log(f"{self.folder}/{step} cannot be read; trying the one before it.")
                continue
            for damaged in failures:
                self._manager.delete(damaged)
            return state
        for step, reason in failures.items():
            raise SegzooError(f"{self.folder}: no checkpoint can be read (step {step}: {reason}).")
        return None

    def _restore(self, step: int, like: Any) -> Any:
        # Abstract targets on purpose: Orbax takes a wrong-shaped numpy target without a word.
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.PyTreeRestore(
                target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
            ),
        )
        jax.tree.map(_check_leaf, target, restored)
        return restored

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _forget_damaged_scores(folder: Path) -> None:
    """Removes scores that cannot be read, over which Orbax would refuse all checkpoints."""
    for path in folder.glob(f"*/{_SCORE_FILE}"):
        try:
            json.loads(path.read_text())[_SCORE]
        except (ValueError, KeyError, TypeError):
            parallel.log(f"{path} cannot be read; the score of that checkpoint is unknown now.")
            shutil.rmtree(path.parent)


def _reason(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or repr(error)


def _check_leaf(wanted: Any, found: Any) -> None:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        raise ValueError(
            f"a stored array is {found.dtype}{list(found.shape)}; "
            f"expected {wanted.dtype}{list(wanted.shape)}"
        )


def restore_variables(
    run_folder: Path, which: Literal["best", "latest"] = "best", mode: Literal["max", "min"] = "max"
) -> tuple[dict[str, Any], int]:
    """Reads the model's variables out of a run, without the optimizer's state.

    Args:
        run_folder: a run's folder, which may still be training.
        which: "best" by the monitored score (the latest where nothing was scored), or "latest".
        mode: whether a high or a low score is good.

    Returns:
        `{"params": ..., "batch_stats": ...}` on the first local device, with the running average
        of a parameter in the place of the parameter where the run kept one; and the step.

    Raises:
        SegzooError: when there is no checkpoint, or it cannot be read.
    """
    folder = (Path(run_folder) / FOLDER).absolute()
    if not folder.is_dir():
        raise SegzooError(f"{run_folder} holds no checkpoint yet (expected a folder {FOLDER}).")
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[_SCORE], best_mode=mode, read_only=True
    )
    try:
        manager = ocp.CheckpointManager(folder, options=options)
    except ValueError as error:
        raise SegzooError(f"{folder}: the scores cannot be read ({_reason(error)}).") from error
    with manager:
        step = manager.best_step() if which == "best" else None
        step = manager.latest_step() if step is None else step
        if step is None:
            raise SegzooError(f"{run_folder} holds no checkpoint yet.")
        try:
            stored = ocp.PyTreeCheckpointHandler().metadata(folder / str(step) / "default")
            tree = {key: stored[key] for key in ("params", "batch_stats", "ema") if stored[key]}
            place = SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
            )
            restored = manager.restore(
                step,
                args=ocp.args.PyTreeRestore(
                    target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
            )
        except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
            raise SegzooError(
                f"{folder}/{step}: this checkpoint cannot be read ({_reason(error)})."
            ) from error
    variables = {"params": union(restored["params"], restored.get("ema", {}))}
    if "batch_stats" in restored:
        variables["batch_stats"] = restored["batch_stats"]
    return variables, step
