"""The command line of the house: `segzoo COMMAND`.

Parsing imports nothing heavy; each command imports what it needs. A user's mistake is one line on
stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from segzoo import __version__
from segzoo.cli import checks, models, runs, tables
from segzoo.cli.command import Command, complain
from segzoo.errors import SegzooError, check_name

COMMANDS: dict[str, Command] = {
    "list": models.LIST,
    "info": models.INFO,
    "train": runs.TRAIN,
    "pending": tables.PENDING,
    "rehearse": tables.REHEARSE,
    "evaluate": runs.EVALUATE,
    "crf-search": runs.CRF_SEARCH,
    "predict": runs.PREDICT,
    "convert": models.CONVERT,
    "report": tables.REPORT,
    "check-data": checks.CHECK_DATA,
    "doctor": checks.DOCTOR,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `segzoo`; by default those of the process.

    Returns:
        The exit code: 0; 1 where a check found something; 2 for a mistake; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except SegzooError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted.")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except SystemExit as done:  # argparse after --help, tyro after its own errors
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 2


def _run(words: list[str]) -> int:
    # Everything after the name of an experiment belongs to the experiment's own command line.
    if words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-"):
        return runs.train(words[1], words[2:])
    if words and not words[0].startswith("-"):
        check_name("command", words[0], COMMANDS)
    arguments = _parser().parse_args(words)
    run: Any = arguments.run
    return run(arguments)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise SegzooError(f"{message}; see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="segzoo", description="The segmentation model zoo for JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"segzoo {__version__}")

    # A bare `segzoo` shows what there is.
    def usage(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=usage)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name, help=command.text, description=command.text, allow_abbrev=False
        )
        command.arguments(added)
        added.set_defaults(run=command.run)
    return parser
