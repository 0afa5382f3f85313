"""What is shown of runs when they are done: their scores in a table, and a picture of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segzoo.records import SCORE_LABELS

_HEADLINES = {
    "semantic": ("miou", "pixel_accuracy"),
    "classification": ("accuracy", "error"),
    "instance": ("mask_ap", "mask_ap50", "box_ap", "pq"),
}


def print_table(records: Sequence[Mapping[str, Any]]) -> None:
    """Prints the headline scores of each record, and those of up to five classes, in percent.

    A table for each dataset and split, in the order of the records.
    """
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        kinds.setdefault((record["dataset"], record["split"]), []).append(record)
    for alike in kinds.values():
        _print_table(alike)


def _print_table(records: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{records[0]['dataset']}, {records[0]['split']} split")
    names = list(records[0]["scores"].get("iou", ()))
    names = names if len(names) <= 5 else []
    shown = _HEADLINES[records[0]["task"]]
    if any("boundary_f1" in record["scores"] for record in records):
        shown = (*shown, "boundary_f1")
    labels = [SCORE_LABELS[key] for key in shown]
    for column in ("row", "parameters", *labels, *names, "published", "minutes"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for record in records:
        scores, published = record["scores"], record["published"]
        values = [scores.get(key) for key in shown]
        values += [scores["iou"][name] for name in names]
        table.add_row(
            record["row"],
            f"{record['parameters']:,}",
            *("-" if value is None else f"{100 * value:.2f}" for value in values),
            "-" if published is None else f"{published['metric']} {100 * published['value']:.2f}",
            f"{record['train_seconds'] / 60:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def print_picture(folders: Sequence[Path]) -> None:
    """Writes the first test example of every row into one picture, and says where it is."""
    from PIL import Image

    from segzoo import visualize

    first = [sorted((folder / "predictions").glob("*.png"))[:1] for folder in folders]
    if not all(first):
        return
    panels = [Image.open(path[0]) for path in first]
    picture = folders[0].parent / "comparison.png" if len(folders) > 1 else first[0][0]
    if len(folders) > 1:
        visualize.grid(panels).save(picture)
    sys.stdout.write(f"picture: {picture}\n")
