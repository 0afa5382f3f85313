"""docs/results/*.json -> docs/results.md, and generated tables into the pages that show them.

Nothing in the tables is typed by hand. Equal records give an equal page, byte for byte.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segzoo.errors import SegzooError
from segzoo.files import write_atomically
from segzoo.records import SCORE_LABELS, Row, columns_of, others, read_records, row_of

_DECIMALS = {"accuracy": 2, "error": 2}  # of percent; one for the others
_PRESETS = {"full": "Full size"}
_RUNS = re.compile(r"<!-- runs:([\w-]+):([\w-]+):begin -->")


@dataclasses.dataclass(frozen=True)
class Table:
    """A generated text that stands in a page, from `<!-- name:begin -->` to `<!-- name:end -->`.

    Attributes:
        page: below the repository's root.
        name: of the markers.
        text: Markdown, ending in a new line.
    """

    page: str
    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of a table: what was declared, and the record where there is one."""

    row: Row
    record: dict[str, Any] | None


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
                _metric_name(metric),
                _ours(line, metric),
                _percent(line.row.published["value"], metric) if line.row.published else "-",
                line.row.published["source"] if line.row.published else "-",
            )
        )
    return table(head, rows, numbers=(3, 4))


def _lines(records: Iterable[dict[str, Any]], expected: Sequence[Row]) -> list[_Line]:
    """Every row once: those declared first, in their order, within each dataset."""
    found = {row_of(record).key: record for record in records}
    lines = {}
    for row in expected:
        record = found.get(row.key)
        # The declaration is newer than the record: its published number stands.
        lines[row.key] = _Line(
            dataclasses.replace(row, task=record["task"]) if record else row, record
        )
    for key, record in sorted(found.items()):
        lines.setdefault(key, _Line(row_of(record), record))
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
                if preset != "full":
                    parts.append("Cut down in size: not comparable with the published numbers.\n")
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
    columns = _columns(lines)
    head = ["model", "parameters", *(SCORE_LABELS[name] for name in columns)]
    head += ["published", "steps", "minutes", "device", "run"]
    rows = []
    for line in lines:
        record = line.record
        if record is None:
            ours = ["not run", *("" for _ in columns[1:])]
            rows.append([_label(line.row), "", *ours, _published(line, columns), "", "", "", ""])
            continue
        rows.append(
            [
                _label(line.row),
                f"{record['parameters']:,}",
                *(_ours(line, name) for name in columns),
                _published(line, columns),
                f"{record['best_step']:,} of {record['steps']:,}",
                f"{record['train_seconds'] / 60:.1f}",
                record["device"],
                f"{record['date']}, `{record['commit'][:9]}`",
            ]
        )
    text = table(head, rows, numbers=range(1, 2 + len(columns)))
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
    return "\nIoU per class:\n\n" + table(["model", *names], rows, numbers)


def _label(row: Row) -> str:
    """The row's name, and the model's where they differ."""
    if row.row in ("", row.model):
        return row.model
    return f"{row.row} ({row.model})"


def _ours(line: _Line, metric: str) -> str:
    if line.record is None:
        return "not run"
    score: Any = line.record["scores"]
    for name in metric.split(".", 1):  # a class's own score is "iou.<class>"
        score = score.get(name) if isinstance(score, dict) else None
    return "-" if not isinstance(score, int | float) else _percent(score, metric)


def _columns(lines: list[_Line]) -> list[str]:
    """The scores of the lines' tasks, and what was scored beside them where it was."""
    columns = [n for line in lines for n in columns_of(line.row.task, line.row.experiment)]
    scored = {name for line in lines if line.record is not None for name in line.record["scores"]}
    columns += [name for name in ("boundary_f1", "flip.miou") if name.split(".")[0] in scored]
    return list(dict.fromkeys(columns))


def _published(line: _Line, columns: Sequence[str]) -> str:
    """The published numbers, and ours beside each that has no column of its own."""
    published = line.row.published
    if published is None:
        return "-"
    texts = []
    for metric, value in {published["metric"]: published["value"], **others(published)}.items():
        text = f"{_metric_name(metric)} {_percent(value, metric)}"
        if metric not in columns and line.record is not None:
            text += f" (ours {_ours(line, metric)})"
        texts.append(text)
    return ", ".join(texts)


def _metric_name(metric: str) -> str:
    kind, _, name = metric.partition(".")
    return f"IoU of {name}" if kind == "iou" and name else SCORE_LABELS.get(metric, metric)


def _main_metric(row: Row) -> str:
    """What is compared: the published metric, else the task's first."""
    if row.published is not None:
        return row.published["metric"]
    return columns_of(row.task, row.experiment)[0]


def _percent(value: float, metric: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.{_DECIMALS.get(metric, 1)}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> str:
    """Returns a Markdown table; the columns in `numbers` are set to the right."""
    rules = ["---:" if i in numbers else "---" for i in range(len(head))]
    lines = [head, rules, *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def update(
    root: Path | str,
    expected: Sequence[Row] = (),
    *,
    tables: Iterable[Table] = (),
    check: bool = False,
) -> list[Path]:
    """Brings docs/results.md, and every table that stands between markers, up to date.

    Args:
        root: the repository's root, which holds `docs/`.
        expected: the rows the experiments declare.
        tables: further tables; a page without a table's markers stays as it is.
        check: write nothing.

    Returns:
        The files that were out of date.

    Raises:
        SegzooError: when there is no `docs` folder, a record is malformed, or a page has one marker
            without the other.
    """
    root = Path(root)
    if not (root / "docs").is_dir():
        raise SegzooError(f"{root.absolute()} has no docs folder; run this from the repository.")
    records = read_records(root / "docs" / "results")
    wanted = {root / "docs" / "results.md": render(records, expected)}
    summary = Table("README.md", "results", render_summary(records, expected))
    for part in (summary, *_runs(root, _lines(records, expected)), *tables):
        page = root / part.page
        if page.exists():
            text = wanted.get(page) or page.read_text(encoding="utf-8")
            wanted[page] = _replace(text, part, page)
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if not check:
        for path in stale:
            write_atomically(path, wanted[path].encode())
    return stale


def _runs(root: Path, lines: list[_Line]) -> list[Table]:
    """The tables a page asks for by `<!-- runs:EXPERIMENT:PRESET:begin -->`: that study's rows."""
    found = []
    for page in sorted((root / "docs").glob("*.md")):
        for experiment, preset in _RUNS.findall(page.read_text(encoding="utf-8")):
            rows = [
                line
                for line in lines
                if (line.row.experiment, line.row.preset) == (experiment, preset)
            ]
            if not rows:
                raise SegzooError(f"{page}: no row {experiment}.*.{preset} is declared.")
            text = _run_table(rows)
            found.append(Table(f"docs/{page.name}", f"runs:{experiment}:{preset}", text))
    return found


def _run_table(lines: list[_Line]) -> str:
    """The rows of one study: the scores and the time."""
    columns = _columns(lines)
    head = ("row", "dataset", *(SCORE_LABELS[name] for name in columns), "minutes")
    rows = [
        (
            f"`{line.row.row or line.row.model}`",
            line.row.dataset,
            *(_ours(line, name) for name in columns),
            f"{line.record['train_seconds'] / 60:.1f}" if line.record else "",
        )
        for line in lines
    ]
    return table(head, rows, numbers=range(2, len(head)))


def _replace(text: str, part: Table, path: Path) -> str:
    """Puts a table between its markers; a text without them stays as it is."""
    begin, end = f"<!-- {part.name}:begin -->", f"<!-- {part.name}:end -->"
    counts = text.count(begin), text.count(end)
    if counts == (0, 0):
        return text
    if counts != (1, 1) or text.index(begin) > text.index(end):
        raise SegzooError(f"{path}: expected one {begin} followed by one {end}.")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{part.text}\n{end}{after}"
