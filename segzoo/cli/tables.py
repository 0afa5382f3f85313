"""The commands about the tables of the house: `pending`, `rehearse`, `report`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from segzoo.cli.command import Command, complain, console, tell
from segzoo.errors import SegzooError


def _rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="these alone")


def _datasets_at(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", help="where prepared datasets lie")
    text = "holds a folder of original files for each dataset, by its name"
    parser.add_argument("--manual-dir", type=Path, metavar="DIR", help=text)


def _check_manual_dir(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise SegzooError(f"{folder} does not exist; expected a folder with one for each dataset.")


# --- pending -------------------------------------------------------------------------------------


def _pending_arguments(parser: argparse.ArgumentParser) -> None:
    _rows(parser)
    parser.add_argument(
        "--run", dest="go", action="store_true", help="run what is not recorded, cheapest first"
    )
    _datasets_at(parser)


def _pending(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from segzoo import pending

    chosen = pending.items(only=arguments.experiments)
    lacking = pending.in_order([i for i in chosen if i.state != "recorded"], chosen)
    if arguments.go:
        _check_manual_dir(arguments.manual_dir)
        failed = pending.run(lacking, arguments.manual_dir, arguments.data_dir, tell)
        return 0 if failed <= 0 else 1
    table = Table(box=None, pad_edge=False)
    for column in ("experiment", "row", "state", "steps", "GPU hours, reckoned"):
        table.add_column(column, justify="right" if column[:3] in ("ste", "GPU") else "left")
    for item in chosen:
        seconds = item.gpu_seconds
        hours = "not rehearsed" if seconds is None else f"{seconds / 3600:.1f}"
        row = item.experiment
        table.add_row(row.name, row.row, item.state, f"{row.steps:,}", hours)
    console().print(table)
    known = [item.gpu_seconds for item in lacking if item.gpu_seconds is not None]
    tell(
        f"{len(lacking)} of {len(chosen)} rows to run; about {sum(known) / 3600:.0f} GPU hours for "
        f"the {len(known)} rehearsed."
    )
    return 0


PENDING = Command(
    "List the full-size rows of the tables, or run what lacks.", _pending_arguments, _pending
)


# --- rehearse ------------------------------------------------------------------------------------


def _rehearse_arguments(parser: argparse.ArgumentParser) -> None:
    _rows(parser)
    parser.add_argument("--again", action="store_true", help="also rows that were rehearsed before")
    _datasets_at(parser)


def _rehearse(arguments: argparse.Namespace) -> int:
    from segzoo import pending

    _check_manual_dir(arguments.manual_dir)
    chosen = pending.items(only=arguments.experiments)
    lacking = [item for item in chosen if arguments.again or item.facts is None]
    failed = pending.rehearse(lacking, Path(), arguments.manual_dir, arguments.data_dir, tell)
    return 1 if failed else 0


REHEARSE = Command(
    "Train one step of each full-size row, for its cost.", _rehearse_arguments, _rehearse
)


# --- report --------------------------------------------------------------------------------------


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    parser.add_argument(
        "--count", action="store_true", help="count every model again, not only the new ones"
    )


def _report(arguments: argparse.Namespace) -> int:
    import dataclasses

    from segzoo import pending, registry, report, study, zoo
    from segzoo.records import Row

    rows = [
        Row(
            experiment=declared.name,
            preset=declared.preset,
            model=declared.model,
            dataset=declared.dataset,
            published=None
            if declared.published is None
            else dataclasses.asdict(declared.published),
            row=declared.row,
            task=registry.entry(declared.model).task,
        )
        for declared in study.declared()
    ]
    root, check = Path(), arguments.check
    changed = zoo.update(root, anew=arguments.count, check=check)
    tables = [*zoo.tables(root), *pending.tables(root), *_benchmarks(root)]
    changed += report.update(root, rows, tables=tables, check=check)
    stale = [str(path) for path in changed]
    if arguments.check and stale:
        complain(f"out of date: {', '.join(stale)}; run `segzoo report`.")
        return 1
    tell(f"wrote {', '.join(stale)}" if stale else "the tables are up to date")
    return 0


def _benchmarks(root: Path) -> list[Any]:
    """The tables of the benchmarks, where they are."""
    if not (root / "experiments" / "benchmarks" / "page.py").exists():
        return []
    # `study.declared` has put the current folder where modules are found.
    modules = [importlib.import_module(f"experiments.benchmarks.{n}") for n in ("page", "progress")]
    return [table for module in modules for table in module.tables(root)]


REPORT = Command("Write the generated tables of the documentation.", _report_arguments, _report)
