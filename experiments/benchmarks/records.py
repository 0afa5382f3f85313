"""The records in docs/benchmarks/: a folder for each device, a file for each benchmark in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from experiments.benchmarks.contestants import Facts
from segzoo.errors import SegzooError
from segzoo.files import write_atomically

RECORDS = Path("docs/benchmarks")


def record_path(benchmark: str, device: str, folder: Path = RECORDS) -> Path:
    """Returns where the records of a benchmark on one device are kept.

    Args:
        benchmark: its name.
        device: in words, as provenance gives it: "1 x CPU (2 cores, AMD EPYC)".
        folder: of the records of all devices.
    """
    words = re.findall(r"[a-z0-9]+", shown(device).lower().replace("(r)", ""))
    return folder / "-".join(words) / f"{benchmark}.json"


def shown(device: str) -> str:
    """Returns a device in words without the number one."""
    return device.removeprefix("1 x ")


def read_all(benchmark: str, folder: Path = RECORDS) -> list[dict[str, Facts]]:
    """Returns a benchmark's records by subject, for every device that has any.

    Raises:
        SegzooError: for a damaged file.
    """
    return [read_records(path) for path in sorted(folder.glob(f"*/{benchmark}.json"))]


def read_records(path: Path) -> dict[str, Facts]:
    """Returns records by subject; none where there is no file.

    Raises:
        SegzooError: for a file that holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SegzooError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise SegzooError(f"{path} is not an object of records; expected what was written there.")
    return found


def write_record(path: Path, subject: str, record: Facts) -> None:
    """Puts one record into a file beside those that are there."""
    records = {**read_records(path), subject: record}
    write_atomically(path, (json.dumps(records, indent=1) + "\n").encode())


def entries(record: Facts) -> Iterable[Facts]:
    """Yields what a record says of its peers."""
    for part in (record, *record.get("builds", {}).values()):
        yield from part.get("peers", {}).values()
