"""docs/results/*.json -> the tables of docs/results.md and the README.

Nothing in the tables is typed by hand. Equal records give an equal page, byte for byte.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segzoo.errors import SegzooError
from segzoo.files import write_atomically

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_NUMBER = (int, float)
_FIELDS: dict[str, tuple[type, ...]] = {
    "experiment": (str,),
    "preset": (str,),
    "model": (str,),
    "model_args": (dict,),
    "dataset": (str,),
    "split": (str,),
    "task": (str,),
    "scores": (dict,),
    "protocol": (str,),
    "published": (dict, type(None)),
    "parameters": (int,),
    "steps": (int,),
    "best_step": (int,),
    "batch_size": (int,),
    "image_size": (list, type(None)),
    "seed": (int,),
    "train_seconds": _NUMBER,
    "evaluate_seconds": _NUMBER,
    "device": (str,),
    "versions": (dict,),
    "commit": (str,),
    "date": (str,),
    "notes": (str,),
}
_PUBLISHED: dict[str, tuple[type, ...]] = {
    "metric": (str,),
    "value": _NUMBER,
    "source": (str,),
    "protocol": (str,),
}
_COLUMNS = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel acc.",
    "class_accuracy": "class acc.",
    "fw_iou": "f.w. IoU",
    "mean_dice": "Dice",
    "accuracy": "accuracy",
    "error": "error",
}
_TASK_COLUMNS = {
    "semantic": ("miou", "pixel_accuracy", "class_accuracy", "fw_iou", "mean_dice"),
    "classification": ("accuracy", "error"),
}
_DECIMALS = {"accuracy": 2, "error": 2}  # of percent; one for the others
_PRESETS = {"full": "Full size"}
_WORDS = {str: "a string", dict: "an object", list: "a list", int: "an integer", float: "a number"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row some experiment declares, run or not.

    Attributes:
        experiment: the module in `experiments/`.
        preset: "full", or a cheaper size.
        model: the registered model.
        dataset: the registered dataset.
        published: `{"metric", "value", "source", "protocol"}`, or None.
        row: the name of the row; the model's if empty.
        task: what the columns are for a table without any run.
    """

    experiment: str
    preset: str
    model: str
    dataset: str
    published: dict[str, Any] | None = None
    row: str = ""
    task: str = "semantic"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a record and its row have in common."""
        return self.dataset, self.experiment, self.row or self.model, self.preset


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of a table: what was declared, and the record where there is one."""

    row: Row
    record: dict[str, Any] | None


def read_records(folder: Path | str) -> list[dict[str, Any]]:
    """Reads and checks every record of a folder, in the order of their names.

    Args:
        folder: holds one JSON object per file.

    Raises:
        SegzooError: names the file and the field of a malformed record, and both files when two
            hold the same row.
    """
    records: list[dict[str, Any]] = []
    seen: dict[tuple[str, ...], str] = {}
    for path in sorted(Path(folder).glob("*.json")):
        record = _read(path)
        key = _row_of(record).key
        if key in seen:
            raise SegzooError(f"{path} and {seen[key]} are records of the same row {key}.")
        seen[key] = path.name
        records.append(record)
    return records


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # JSON and Unicode errors are ValueErrors
        raise SegzooError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(record, dict):
        raise SegzooError(f"{path} holds a {type(record).__name__}; expected an object.")
    _check(record, _FIELDS, str(path))
    if record["published"] is not None:
        _check(record["published"], _PUBLISHED, f"{path}: published")
    if record["published"] is not None:
        _check_share(record["published"]["value"], f"{path}: published.value")
    columns = _columns(record["task"], str(path))
    if columns[0] not in record["scores"]:
        raise SegzooError(f"{path}: scores lacks {columns[0]!r}.")
    for name in columns:
        if record["scores"].get(name) is not None:
            _check_share(record["scores"][name], f"{path}: scores.{name}")
    return record


def _check(record: dict[str, Any], fields: dict[str, tuple[type, ...]], where: str) -> None:
    for name, kinds in fields.items():
        if name not in record:
            raise SegzooError(f"{where} lacks the field {name!r}.")
        value = record[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(_WORDS.get(kind, "null") for kind in kinds)
            raise SegzooError(f"{where}: field {name!r} is {value!r}; expected {expected}.")


def _check_share(value: Any, where: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise SegzooError(f"{where} is {value!r}; expected a fraction, 0..1.")


def _columns(task: str, where: str) -> tuple[str, ...]:
    if task not in _TASK_COLUMNS:
        known = " or ".join(repr(name) for name in _TASK_COLUMNS)
        raise SegzooError(f"{where}: field 'task' is {task!r}; expected {known}.")
    return _TASK_COLUMNS[task]


def _row_of(record: dict[str, Any]) -> Row:
    return Row(
        experiment=record["experiment"],
        preset=record["preset"],
        model=record["model"],
        dataset=record["dataset"],
        published=record["published"],
        row=record.get("row", ""),
        task=record["task"],
    )


def render(records: Iterable[dict[str, Any]], expected: Sequence[Row] = ()) -> str:
    """Returns the whole of docs/results.md.

    Args:
        records: from `read_records`.
        expected: the rows the experiments declare; those without a record are listed as not run.
    """
    return (
        "# Results\n\n"
        "Written by `segzoo report` from the records in `docs/results/`; do not edit.\n\n"
        "Scores are percentages over the whole split. Each published number stands with the "
        "protocol it was measured under: where that differs from ours, the two are not "
        "comparable.\n\n" + _body(_lines(records, expected), "##")
    )


def render_summary(records: Iterable[dict[str, Any]], expected: Sequence[Row] = ()) -> str:
    """Returns the table for the README: full-size rows, one main score each."""
    lines = [line for line in _lines(records, expected) if line.row.preset == "full"]
    if not lines:
        return "No full-size experiment is declared.\n"
    head = ("dataset", "model", "score", "ours", "published", "published in")
    rows = []
    for line in lines:
        metric = _main_metric(line.row)
        rows.append(
            (
                line.row.dataset,
                _label(line.row),
                _COLUMNS.get(metric, metric),
                _ours(line, metric),
                _percent(line.row.published["value"], metric) if line.row.published else "-",
                line.row.published["source"] if line.row.published else "-",
            )
        )
    return _table(head, rows, numbers=(3, 4))


def _lines(records: Iterable[dict[str, Any]], expected: Sequence[Row]) -> list[_Line]:
    """Every row once: those declared first, in their order, within each dataset."""
    found = {_row_of(record).key: record for record in records}
    lines = {}
    for row in expected:
        record = found.get(row.key)
        # The declaration is newer than the record: its published number stands.
        lines[row.key] = _Line(
            dataclasses.replace(row, task=record["task"]) if record else row, record
        )
    for key, record in sorted(found.items()):
        lines.setdefault(key, _Line(_row_of(record), record))
    return sorted(lines.values(), key=lambda line: line.row.dataset)


def _body(lines: list[_Line], heading: str) -> str:
    """One section per dataset; in it the full-size tables, then those of the cheaper presets."""
    if not lines:
        return "No experiment is declared.\n"
    parts = []
    for dataset, group in itertools.groupby(lines, key=lambda line: line.row.dataset):
        parts.append(f"{heading} {dataset}\n")
        members = list(group)
        presets = sorted({line.row.preset for line in members}, key=lambda p: (p != "full", p))
        for preset in presets:
            title = f"{heading}# {_PRESETS.get(preset, f'Preset `{preset}`')}"
            chosen = [line for line in members if line.row.preset == preset]
            for (task, split), same in _kinds(chosen).items():
                parts.append(f"{title}{f', split `{split}`' if split else ''}\n")
                parts.append(_section(same, task))
    return "\n".join(parts)


def _kinds(lines: list[_Line]) -> dict[tuple[str, str], list[_Line]]:
    """Scores of different tasks or splits do not share a table; a row not run joins the first."""
    kinds: dict[tuple[str, str], list[_Line]] = {}
    for line in lines:
        if line.record is not None:
            kinds.setdefault((line.row.task, line.record["split"]), [])
    for line in lines:
        if line.record is not None:
            key = (line.row.task, line.record["split"])
        else:
            key = next((k for k in kinds if k[0] == line.row.task), (line.row.task, ""))
        kinds.setdefault(key, []).append(line)
    return kinds


def _section(lines: list[_Line], task: str) -> str:
    """The table of one dataset, preset, task and split, with its protocols and classes."""
    columns = _columns(task, "a declared row")
    head = ["model", "parameters", *(_COLUMNS[name] for name in columns)]
    head += ["published", "steps", "minutes", "device", "run"]
    rows = []
    for line in lines:
        record = line.record
        ours = [_ours(line, name) for name in columns]
        if record is None:
            rows.append([_label(line.row), "", *ours, _published(line.row), "", "", "", ""])
            continue
        rows.append(
            [
                _label(line.row),
                f"{record['parameters']:,}",
                *ours,
                _published(line.row),
                f"{record['best_step']:,} of {record['steps']:,}",
                f"{record['train_seconds'] / 60:.1f}",
                record["device"],
                f"{record['date']}, `{record['commit'][:9]}`",
            ]
        )
    text = _table(head, rows, numbers=range(1, 2 + len(columns)))
    return text + _protocols(lines) + _per_class(lines)


def _protocols(lines: list[_Line]) -> str:
    """What ours, and each published number, was measured under."""
    notes: dict[str, list[str]] = {}
    for line in lines:
        if line.record is not None:
            notes.setdefault(f"Ours: {line.record['protocol']}", []).append(_label(line.row))
    for line in lines:
        published = line.row.published
        if published is not None:
            how = published["protocol"] or "the same protocol"
            note = f"Published ({published['source']}): {how}"
            notes.setdefault(note, []).append(_label(line.row))
    for line in lines:
        if line.record is not None and line.record["notes"]:
            notes.setdefault(f"Note: {line.record['notes']}", []).append(_label(line.row))
    if not notes:
        return ""
    listed = []
    for note, labels in notes.items():
        whose = "" if len(labels) == len(lines) else f" [{', '.join(labels)}]"
        listed.append(f"- {' '.join(note.split())}{whose}\n")
    return "\n" + "".join(listed)


def _per_class(lines: list[_Line]) -> str:
    """IoU of every class, for the rows that were run."""
    scored = [
        (line, iou)
        for line in lines
        if line.record is not None and isinstance(iou := line.record["scores"].get("iou"), dict)
    ]
    names = list(dict.fromkeys(name for _, iou in scored for name in iou))
    if not names:
        return ""
    rows = []
    for line, iou in scored:
        values = [iou.get(name) for name in names]
        rows.append([_label(line.row), *("-" if v is None else _percent(v, "iou") for v in values)])
    numbers = range(1, len(names) + 1)
    return "\nIoU per class:\n\n" + _table(["model", *names], rows, numbers)


def _label(row: Row) -> str:
    """The row's name, and the model's where they differ."""
    if row.row in ("", row.model):
        return row.model
    return f"{row.row} ({row.model})"


def _ours(line: _Line, metric: str) -> str:
    if line.record is None:
        # Said once, under the score that counts.
        return "not run" if metric == _main_metric(line.row) else ""
    score = line.record["scores"].get(metric)
    return "-" if score is None else _percent(score, metric)


def _published(row: Row) -> str:
    if row.published is None:
        return "-"
    metric = row.published["metric"]
    return f"{_COLUMNS.get(metric, metric)} {_percent(row.published['value'], metric)}"


def _main_metric(row: Row) -> str:
    """The published metric where it has a column, else the task's first."""
    columns = _columns(row.task, f"{row.experiment}")
    metric = row.published["metric"] if row.published is not None else ""
    return metric if metric in columns else columns[0]


def _percent(value: float, metric: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.{_DECIMALS.get(metric, 1)}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> str:
    """A Markdown table; the columns in `numbers` are set to the right."""
    rules = ["---:" if i in numbers else "---" for i in range(len(head))]
    lines = [head, rules, *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def update(root: Path | str, expected: Sequence[Row] = (), *, check: bool = False) -> list[Path]:
    """Brings docs/results.md, and the table in README.md between its markers, up to date.

    Args:
        root: the repository's root, which holds `docs/`.
        expected: the rows the experiments declare.
        check: write nothing.

    Returns:
        The files that were out of date.

    Raises:
        SegzooError: when there is no `docs` folder, a record is malformed, or README.md has one
            marker without the other.
    """
    root = Path(root)
    if not (root / "docs").is_dir():
        raise SegzooError(f"{root.absolute()} has no docs folder; run this from the repository.")
    records = read_records(root / "docs" / "results")
    wanted = {root / "docs" / "results.md": render(records, expected)}
    readme = root / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        wanted[readme] = _replace(text, render_summary(records, expected), readme)
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if not check:
        for path in stale:
            write_atomically(path, wanted[path].encode())
    return stale


def _replace(text: str, table: str, path: Path) -> str:
    """Puts a table between the markers; a text without markers stays as it is."""
    counts = text.count(BEGIN), text.count(END)
    if counts == (0, 0):
        return text
    if counts != (1, 1) or text.index(BEGIN) > text.index(END):
        raise SegzooError(f"{path}: expected one {BEGIN} followed by one {END}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"
