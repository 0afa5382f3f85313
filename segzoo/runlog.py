"""What a run writes while it goes: `metrics.jsonl`, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segzoo import parallel


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`; a last line that was cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RunLog:
    """The log of one run; only the main process writes.

    Args:
        folder: the run's folder.
        step: where the run goes on from; rows of later steps, left by a killed run, are dropped.
        total: the last step.
        title: what the progress bar is called.

    Attributes:
        rows: every row of the run so far.
    """

    def __init__(self, folder: Path, *, step: int, total: int, title: str):
        self._path = folder / "metrics.jsonl"
        self._writes = parallel.is_main_process()
        self.rows = [row for row in read_rows(self._path) if row["step"] <= step]
        self._file = None
        self._events: Any = None
        if self._writes:
            # Written beside and moved over it, so that a kill here cannot lose the history.
            beside = self._path.with_suffix(".tmp")
            beside.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            beside.replace(self._path)
            self._file = self._path.open("a", buffering=1)
            from tensorboardX import SummaryWriter  # slow to import

            self._events = SummaryWriter(str(folder / "events"), purge_step=step + 1)
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._writes and self._console.is_terminal),
        )
        self._bar = self._progress.add_task(title, total=total, completed=step, note="")
        self._title = title
        self._total = total
        self._progress.start()

    def write(self, split: str, step: int, values: dict[str, Any]) -> None:
        """Adds a row; scalars go to TensorBoard too."""
        row = {"step": step, "split": split, **values}
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{split}/{name}", value, step)

    def show(self, step: int, note: str) -> None:
        """Moves the progress bar, or prints a line where there is no terminal."""
        self._progress.update(self._bar, completed=step, note=note)
        if self._writes and not self._console.is_terminal:
            sys.stderr.write(f"{self._title} {step}/{self._total} {note}\n")

    def of_split(self, split: str) -> list[dict[str, Any]]:
        """Returns the rows of one split."""
        return [row for row in self.rows if row["split"] == split]

    def close(self) -> None:
        """Flushes and closes everything."""
        self._progress.stop()
        if self._file is not None:
            self._file.close()
            self._events.close()
