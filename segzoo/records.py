"""The records in docs/results/: what a run writes down for the tables, and its checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segzoo.errors import SegzooError
from segzoo.files import read_object

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
TASK_COLUMNS = {
    "semantic": ("miou", "pixel_accuracy", "class_accuracy", "fw_iou", "mean_dice"),
    "classification": ("accuracy", "error"),
    "instance": ("mask_ap", "mask_ap50", "mask_ap75", "box_ap", "pq"),
}
SCORE_LABELS = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel acc.",
    "class_accuracy": "class acc.",
    "fw_iou": "f.w. IoU",
    "mean_dice": "Dice",
    "boundary_f1": "BF",
    "flip.miou": "mIoU, flip",
    "accuracy": "accuracy",
    "error": "error",
    "mask_ap": "mask AP",
    "mask_ap50": "AP50",
    "mask_ap75": "AP75",
    "box_ap": "box AP",
    "pq": "PQ",
}
_WORDS = {str: "a string", dict: "an object", list: "a list", int: "an integer", float: "a number"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row some experiment declares, run or not.

    Attributes:
        experiment: the module in `experiments/`.
        preset: "full", or a cheaper size.
        model: the registered model.
        dataset: the registered dataset.
        published: `{"metric", "value", "source", "protocol", "others"}`, or None.
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
        key = row_of(record).key
        if key in seen:
            raise SegzooError(f"{path} and {seen[key]} are records of the same row {key}.")
        seen[key] = path.name
        records.append(record)
    return records


def _read(path: Path) -> dict[str, Any]:
    record = read_object(path)
    _check(record, _FIELDS, str(path))
    if record["published"] is not None:
        _check(record["published"], _PUBLISHED, f"{path}: published")
        _check_share(record["published"]["value"], f"{path}: published.value")
        if "others" in record["published"]:
            _check(record["published"], {"others": (dict,)}, f"{path}: published")
        for name, value in others(record["published"]).items():
            _check_share(value, f"{path}: published.others.{name}")
    columns = columns_of(record["task"], str(path))
    if columns[0] not in record["scores"]:
        raise SegzooError(f"{path}: scores lacks {columns[0]!r}.")
    for name in (*columns, "boundary_f1"):
        if record["scores"].get(name) is not None:
            _check_share(record["scores"][name], f"{path}: scores.{name}")
    return record


def others(published: Mapping[str, Any]) -> Mapping[str, float]:
    """Returns the further published scores of a row by name; the main one is its `metric`."""
    found: Mapping[str, float] = published.get("others", {})
    return found


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


def columns_of(task: str, where: str) -> tuple[str, ...]:
    """Returns the scores a table of this task shows, the main one first.

    Raises:
        SegzooError: for an unknown task.
    """
    if task not in TASK_COLUMNS:
        known = " or ".join(repr(name) for name in TASK_COLUMNS)
        raise SegzooError(f"{where}: field 'task' is {task!r}; expected {known}.")
    return TASK_COLUMNS[task]


def row_of(record: dict[str, Any]) -> Row:
    """Returns the row a record belongs to."""
    return Row(
        experiment=record["experiment"],
        preset=record["preset"],
        model=record["model"],
        dataset=record["dataset"],
        published=record["published"],
        row=record.get("row", ""),
        task=record["task"],
    )
