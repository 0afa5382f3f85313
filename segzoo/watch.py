"""What the training loop sees of its own steps: speed, the log, the score that counts, patience."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from segzoo import parallel
from segzoo.errors import SegzooError, check_name
from segzoo.experiment import Experiment
from segzoo.runlog import RunLog


class Watch:
    """Keeps an eye on the steps: speed, rows of the log, and losses that are not finite.

    Steps are dispatched ahead of the devices; their metrics are fetched together, now and then.
    """

    _AHEAD = 2  # steps in flight: enough to hide the host, little enough memory

    def __init__(self, experiment: Experiment, folder: Path, log: RunLog):
        self._experiment = experiment
        self._folder = folder
        self._log = log
        self._schedule = experiment.optimizer.learning_rate_at(experiment.steps)
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        rows = log.of_split("train")
        self._seconds = rows[-1]["seconds"] if rows else 0.0
        self._ahead = 0 if parallel.must_block_every_step() else self._AHEAD
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last row out of the training time."""
        self._since = time.perf_counter()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Notes a step that was dispatched."""
        self._pending.append((step, metrics))
        if len(self._pending) > self._ahead:
            jax.block_until_ready(self._pending[-1 - self._ahead][1])

    def flush(self, saved: int | None) -> None:
        """Writes a row over the steps since the last one.

        Args:
            saved: the newest checkpoint, for the error.

        Raises:
            SegzooError: at the first loss or gradient that is not finite.
        """
        if not self._pending:
            return
        steps = [step for step, _ in self._pending]
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        self._pending = []
        for step, metrics in zip(steps, fetched, strict=True):
            for what, name in (("loss", "loss"), ("gradient", "grad_norm")):
                if not np.isfinite(metrics[name]):
                    good = (
                        "there is no checkpoint yet"
                        if saved is None
                        else (f"the last good checkpoint is step {saved}")
                    )
                    raise SegzooError(
                        f"{what} is not finite at step {step} in {self._folder}; {good}."
                    )
        seconds = time.perf_counter() - self._since
        self._seconds += seconds
        self.restart_clock()
        rate = len(steps) * self._experiment.batch_size / seconds
        loss = float(np.mean([metrics["loss"] for metrics in fetched], dtype=np.float64))
        row = {
            "loss": loss,
            "grad_norm": float(fetched[-1]["grad_norm"]),
            "learning_rate": float(self._schedule(steps[-1] - 1)),
            "images_per_second": round(rate, 2),
            "seconds": round(self._seconds, 3),
        }
        self._log.write("train", steps[-1], row)
        self._log.show(steps[-1], f"loss {loss:.4f}  {rate:.1f} img/s")


def monitored(experiment: Experiment, scores: dict[str, Any]) -> float:
    """Returns the score that picks the best checkpoint; one that is undefined counts as worst.

    Raises:
        SegzooError: when `monitor` is no score of this task.
    """
    numbers = [k for k, v in scores.items() if v is None or isinstance(v, int | float)]
    check_name("monitor", experiment.monitor, numbers)
    value = scores[experiment.monitor]
    if value is None or math.isnan(value):
        return -math.inf if experiment.mode == "max" else math.inf
    return float(value)


def patience_is_over(experiment: Experiment, log: RunLog) -> bool:
    """Whether the monitored score has not improved for `patience` evaluations."""
    if experiment.patience is None:
        return False
    sign = 1.0 if experiment.mode == "max" else -1.0
    values = [sign * monitored(experiment, row) for row in log.of_split("val")]
    if not values:
        return False
    return len(values) - 1 - values.index(max(values)) >= experiment.patience
