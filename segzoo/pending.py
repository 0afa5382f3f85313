"""What the tables still lack: every full-size row, its state, what it would take, and running it.

docs/rehearsals.json holds what each row's rehearsal found (see `segzoo.rehearsal`); the time on a
GPU is reckoned from it, not measured.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from segzoo import study
from segzoo.errors import SegzooError, check_name
from segzoo.experiment import Experiment
from segzoo.files import read_object, write_atomically
from segzoo.rehearsal import Facts, in_processes
from segzoo.report import Table, table

FACTS = "docs/rehearsals.json"
State = Literal["recorded", "begun", "not run"]

# What the reckoning assumes of a data-centre GPU: a tenth or so of what its matrix products reach,
# and that small steps wait for the host.
RATES = {"bfloat16": 1.0e14, "float32": 4.0e13}  # operations per second
LEAST_SECONDS = 0.015  # a step


@dataclasses.dataclass(frozen=True)
class Item:
    """A full-size row.

    Attributes:
        experiment: the row.
        state: "recorded" in docs/results, "begun" where its run folder holds a run.
        facts: of its rehearsal, if there was one.
    """

    experiment: Experiment
    state: State
    facts: Facts | None

    @property
    def gpu_seconds(self) -> float | None:
        """What all of its steps and evaluations would take, reckoned; None without a rehearsal."""
        return None if self.facts is None else gpu_seconds(self.facts)


def gpu_seconds(facts: Facts) -> float:
    """Reckons the time of a whole run on one data-centre GPU from its multiply-adds.

    A step takes three forward passes' worth, an evaluated image one; see `RATES`.

    Args:
        facts: from `rehearsal.rehearse`.
    """
    rate, batch = RATES[facts["dtype"]], facts["batch_size"]
    step = max(LEAST_SECONDS, 3 * 2 * facts["train_macs"] * batch / rate)
    evaluations = facts["steps"] // facts["eval_every"]
    images = evaluations * facts["val_images"] + facts["test_images"]
    evaluated = images * max(LEAST_SECONDS / batch, 2 * facts["test_macs"] / rate)
    return facts["steps"] * step + evaluated


def items(root: Path | str = ".", only: Iterable[str] = ()) -> list[Item]:
    """Returns every full-size row of the tables, in the order of their declaration.

    Args:
        root: the repository's root.
        only: names of experiments; all if empty.

    Raises:
        SegzooError: for an unknown experiment, or a damaged docs/rehearsals.json.
    """
    only, root = list(only), Path(root)
    rows = [row for row in study.declared() if row.preset == "full"]
    for name in only:
        check_name("experiment of the tables", name, {row.name for row in rows})
    known = read(root)
    found = []
    for row in rows:
        if only and row.name not in only:
            continue
        recorded = (root / study.RECORDS / f"{row.label}.json").exists()
        begun = (folder_of(row) / "config.json").exists()
        state: State = "recorded" if recorded else "begun" if begun else "not run"
        found.append(Item(row, state, known.get(row.label)))
    return found


def folder_of(row: Experiment) -> Path:
    """Returns the folder a row's run lies in."""
    return study.run_folder(study.find(row.name), row, None, Path("runs"))


def in_order(chosen: Sequence[Item], everything: Sequence[Item]) -> list[Item]:
    """Returns rows in the order to run them: the cheapest first, each after the row it starts from.

    A row that another starts from comes along where its run is not at hand, recorded or not.

    Args:
        chosen: the rows wanted.
        everything: where rows to start from are looked up.
    """
    by_key = {(item.experiment.name, item.experiment.row): item for item in everything}
    ordered: list[Item] = []

    def add(item: Item) -> None:
        source = item.experiment.init_row
        if source is not None:
            first = by_key[item.experiment.name, source]
            finished = (folder_of(first.experiment) / "results.json").exists()
            if first not in ordered and not finished:
                add(first)
        if item not in ordered:
            ordered.append(item)

    unknown = float("inf")
    for item in sorted(chosen, key=lambda item: item.gpu_seconds or unknown):
        add(item)
    return ordered


def run(
    chosen: Sequence[Item],
    manual_dirs: Path | None,
    data_dir: str | None,
    say: Callable[[str], None],
) -> int:
    """Runs rows one after the other, each in a process of its own, and records them.

    A row that was begun goes on. A row that fails leaves the others alone. SIGTERM and Ctrl-C are
    passed on: the row at work saves, and the same command goes on from there.

    Args:
        chosen: in order.
        manual_dirs: holds a folder of original files for each dataset, by its name.
        data_dir: where prepared data lies.
        say: told of every row.

    Returns:
        How many rows failed; -1 when a signal ended it early.
    """
    failed = 0
    for number, item in enumerate(chosen, start=1):
        row = item.experiment
        say(f"{number} of {len(chosen)}: {row.label}")
        command = [sys.executable, "-m", "segzoo.cli", "train", row.name, "--preset", "full"]
        command += ["--only", row.row, "--record"]
        if manual_dirs is not None and (manual_dirs / row.dataset).is_dir():
            command += ["--manual-dir", str(manual_dirs / row.dataset)]
        if data_dir is not None:
            command += ["--data-dir", data_dir]
        code, stopped = _run(command)
        if stopped:
            say(f"stopped at {row.label}; the same command goes on from there.")
            return -1
        if code:
            say(f"{row.label} failed with exit code {code}; going on with the next.")
            failed += 1
    return failed


def _run(command: list[str]) -> tuple[int, bool]:
    """A process's exit code, and whether a signal to us asked for its end."""
    stopped = False
    # Ctrl-C reaches us alone, and the run once, by us.
    with subprocess.Popen(command, start_new_session=True) as process:

        def pass_on(number: int, frame: Any) -> None:
            nonlocal stopped
            stopped = True
            process.send_signal(number)

        before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code, stopped


# --- rehearsals ----------------------------------------------------------------------------------


def read(root: Path) -> dict[str, Facts]:
    """Returns docs/rehearsals.json, by the rows' labels; empty where there is none.

    Raises:
        SegzooError: for a file that is no JSON object of objects.
    """
    path = root / FACTS
    if not path.exists():
        return {}
    found = read_object(path)
    if not all(isinstance(facts, dict) for facts in found.values()):
        raise SegzooError(
            f"{path} is not an object of rehearsals; expected what was written there."
        )
    return found


def rehearse(
    chosen: Sequence[Item],
    root: Path,
    manual_dirs: Path | None,
    data_dir: str | None,
    say: Callable[[str], None],
) -> list[str]:
    """Rehearses rows and keeps the figures in docs/rehearsals.json, row by row.

    Args:
        chosen: the rows.
        root: the repository's root.
        manual_dirs: see `run`.
        data_dir: where prepared data lies.
        say: told of every row.

    Returns:
        The labels of the rows that failed.
    """
    rows = []
    for item in chosen:
        place = None if manual_dirs is None else manual_dirs / item.experiment.dataset
        manual = str(place.absolute()) if place is not None and place.is_dir() else None
        rows.append(dataclasses.replace(item.experiment, manual_dir=manual, data_dir=data_dir))
    labels = [row.label for row in study.declared() if row.preset == "full"]
    failed = []
    for row, facts in in_processes(rows, say):
        if facts is None:
            failed.append(row.label)
            continue
        known = {**read(root), row.label: facts}
        kept = {label: known[label] for label in labels if label in known}
        write_atomically(root / FACTS, (json.dumps(kept, indent=1) + "\n").encode())
    return failed


def tables(root: Path | str = ".") -> list[Table]:
    """Returns the table of rehearsals, for docs/training.md."""
    head = [
        "row",
        "images of a step",
        "GMACs of one",
        "dtype",
        "s to compile and step",
        "GiB",
        "device",
    ]
    head += ["steps", "GPU hours, reckoned"]
    lines = []
    for item in items(root):
        row, facts = item.experiment, item.facts
        if facts is None:
            lines.append(
                [f"`{row.name}` `{row.row}`", *[""] * 3, "not run", *[""] * 2, f"{row.steps:,}", ""]
            )
            continue
        shape = "x".join(map(str, facts["train_shape"][:-1]))
        lines.append(
            [
                f"`{row.name}` `{row.row}`",
                f"{facts['batch_size']} of {shape}",
                f"{facts['train_macs'] / 1e9:.1f}",
                facts["dtype"],
                f"{facts['step_seconds']:.1f}",
                f"{facts['peak_bytes'] / 2**30:.1f}",
                facts["device"],
                f"{facts['steps']:,}",
                f"{gpu_seconds(facts) / 3600:.1f}",
            ]
        )
    return [Table("docs/training.md", "rehearsals", table(head, lines, numbers=(2, 4, 5, 7, 8)))]
