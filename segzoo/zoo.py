"""The tables of models: what each costs and sees, counted here, beside what was published.

Counting traces every model, which takes a minute; docs/models.json keeps the numbers, and the tests
count again.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segzoo import registry
from segzoo.cost import measure
from segzoo.files import read_object, write_atomically
from segzoo.receptive_field import describe, model_fields
from segzoo.registry import ModelEntry
from segzoo.report import Table, table

Facts = dict[str, Any]
FACTS, PARITY = "docs/models.json", "docs/parity.json"


def count(name: str) -> Facts:
    """Counts a registered model, at its defaults and its usual input.

    Args:
        name: of the registry.

    Returns:
        `{"parameters": int, "multiply_adds": int, "fields": {"1/2": "7", ...}}`, the fields by the
        reductions of the backbone, finest first, and for a segmenter that of the "logits".
    """
    entry = registry.entry(name)
    model = entry.builder()
    *size, channels = entry.input_shape
    cost = measure(model, tuple(size), channels)
    fields = model_fields(model, channels, logits=entry.task == "semantic")
    return {
        "parameters": cost.parameters,
        "multiply_adds": cost.macs,
        "fields": {place: describe(found) for place, found in fields.items()},
    }


def update(root: Path | str, *, anew: bool = False, check: bool = False) -> list[Path]:
    """Brings docs/models.json up to date with the registry: counts what it lacks.

    Args:
        root: the repository's root.
        anew: count every model again.
        check: write nothing, and count nothing unless `anew`.

    Returns:
        The file, if it was out of date; none where there is no docs/models.md to need it.

    Raises:
        SegzooError: for a file that is no JSON object.
    """
    path = Path(root) / FACTS
    if not (Path(root) / "docs" / "models.md").exists():
        return []
    before = _read(path)
    names = registry.list_models()
    missing = [name for name in names if anew or name not in before]
    if check and not anew:
        return [path] if missing or set(before) - set(names) else []
    counted = {name: count(name) for name in missing}
    after = {name: counted.get(name) or before[name] for name in names}
    if after == before:
        return []
    if not check:
        write_atomically(path, (json.dumps(after, indent=1) + "\n").encode())
    return [path]


def tables(root: Path | str) -> list[Table]:
    """Returns the tables of the models, with the pages they stand in.

    Args:
        root: the repository's root, whose docs/models.json and docs/parity.json are read.

    Raises:
        SegzooError: for a file that is no JSON object.
    """
    root = Path(root)
    facts, parity = _read(root / FACTS), _read(root / PARITY)
    known = set(registry.list_models())
    entries = {name: registry.entry(name) for name in facts if name in known}
    return [
        Table("docs/models.md", "models", _models(entries, facts, parity)),
        Table("docs/building-blocks.md", "fields", _fields(entries, facts)),
        Table("README.md", "models", _families(entries, facts)),
    ]


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _models(entries: Mapping[str, ModelEntry], facts: Facts, parity: Facts) -> str:
    """One table per task, and what its last column was measured under."""
    titles = {
        "classification": "Classifiers",
        "semantic": "Semantic segmentation",
        "instance": "Instance segmentation",
    }
    head = ["model", "paper", "parameters", "published", "GMACs", "published", "input"]
    head += ["receptive field", "stride", "parity"]
    parts = []
    for task in dict.fromkeys(entry.task for entry in entries.values()):
        rows = []
        for entry in _sorted(entries.values()):
            if entry.task != task:
                continue
            found = facts[entry.name]
            place, field = list(found["fields"].items())[-1]
            rows.append(
                (
                    f"`{entry.name}`",
                    entry.paper,
                    f"{found['parameters']:,}",
                    "-" if entry.parameters is None else f"{entry.parameters:,}",
                    _giga(found["multiply_adds"]),
                    "-" if entry.gmacs is None else f"{entry.gmacs:g}",
                    "x".join(map(str, entry.input_shape)),
                    field,
                    "1" if place == "logits" else place.split(" ")[0].removeprefix("1/"),
                    _difference(entry, parity),
                )
            )
        title = titles.get(task, task.capitalize())
        parts.append(f"{title}:\n\n" + table(head, rows, numbers=(2, 3, 4, 5, 8, 9)))
    if parity:
        versions = ", ".join(
            f"{name} {parity['versions'][name]}" for name in ("jax", "torch", "torchvision", "timm")
        )
        parts.append(f"Parity, measured {parity['date']} ({versions}): {parity['protocol']}\n")
        parts += [_by_stage(name, row) for name, row in parity.get("stages", {}).items()]
    return "\n".join(parts)


def _by_stage(name: str, row: Facts) -> str:
    """The errors of a network whose stages are not maps alone."""
    sizes = " and ".join(f"{height}x{width}" for height, width in row["sizes"])
    title = (
        f"`{name}` beside {row['reference']}, one image of {sizes} each. Proposals and boxes are "
        "in pixels, scores and classes as they are, all else in standard deviations as above:\n"
    )
    rows = [(stage.replace("_", " "), f"{error:.1e}") for stage, error in row["errors"].items()]
    return f"{title}\n" + table(("stage", "largest difference"), rows, numbers=(1,))


def _sorted(entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """By file, then by name, numbers in names being numbers."""

    def key(entry: ModelEntry) -> tuple[str, list[tuple[str, int]]]:
        parts = re.findall(r"(\D+)(\d*)", entry.name)
        return entry.builder.__module__, [(word, int(n or -1)) for word, n in parts]

    return sorted(entries, key=key)


def _giga(multiply_adds: int) -> str:
    """In 1e9, to four digits or three decimals, whichever is more."""
    value = multiply_adds / 1e9
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def _difference(entry: ModelEntry, parity: Facts) -> str:
    found = parity.get("models", {}).get(entry.name)
    if found is not None:
        return f"{max(found['logits'], found['stages']):.1e}"
    if entry.name in parity.get("stages", {}):
        return "by stage"
    # The names other libraries store a family under stand in a file of the family's name.
    family = entry.builder.__module__.rpartition(".")[2]
    known = importlib.util.find_spec(f"segzoo.weights.{family}") is not None
    return "not run" if known else "no counterpart"


def _fields(entries: Mapping[str, ModelEntry], facts: Facts) -> str:
    """The fields of every encoder by reduction; encoders that see the same share a line."""
    reductions: dict[int, None] = {}
    lines: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for entry in _sorted(entries.values()):
        if entry.task == "classification":
            found = facts[entry.name]["fields"]
            lines.setdefault(tuple(found.items()), []).append(f"`{entry.name}`")
            reductions.update(dict.fromkeys(int(p.split(" ")[0][2:]) for p in found))
    places = [f"1/{r}" for r in sorted(reductions)]
    rows = []
    for found, names in lines.items():
        cells = []
        for place in places:
            sizes = [size for at, size in found if at.split(" ")[0] == place]
            cells.append(", ".join(size.removesuffix(_WHOLE) for size in sizes) or "-")
        mark = " *" if any(size.endswith(_WHOLE) for _, size in found) else ""
        rows.append((", ".join(names) + mark, *cells))
    return table(("encoder", *places), rows, numbers=range(1, 1 + len(places)))


_WHOLE = " + whole image"


def _families(entries: Mapping[str, ModelEntry], facts: Facts) -> str:
    """The models of each file in a line, for the README."""
    families: dict[str, list[ModelEntry]] = {}
    for entry in _sorted(entries.values()):
        families.setdefault(entry.builder.__module__, []).append(entry)
    rows = []
    for members in families.values():
        counts = sorted(facts[entry.name]["parameters"] for entry in members)
        low, high = _short(counts[0]), _short(counts[-1])
        rows.append(
            (
                ", ".join(f"`{entry.name}`" for entry in members),
                ", ".join(dict.fromkeys(entry.paper for entry in members)),
                low if low == high else f"{low} to {high}",
            )
        )
    return table(("models", "paper", "parameters"), rows, numbers=(2,))


def _short(number: int) -> str:
    """`11,689,512` -> `11.7 M`."""
    if number < 1e6:
        return f"{number / 1e3:.3g} k"
    return f"{number / 1e6:.{max(0, 2 - int(math.log10(number / 1e6)))}f} M"
