"""What a command of `segzoo` is, and what commands share: reading values, saying things."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from segzoo.errors import SegzooError

if TYPE_CHECKING:
    from rich.console import Console


class Command(NamedTuple):
    """A command.

    Attributes:
        text: what it does, in a sentence.
        arguments: adds its arguments to its parser.
        run: does it, and returns the exit code.
    """

    text: str
    arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def console() -> Console:
    """Returns where tables are printed."""
    from rich.console import Console

    # Into a pipe or a file nothing is cut to a terminal's width.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def tell(line: str) -> None:
    """Prints a line at once, as it is."""
    console().print(line, markup=False, soft_wrap=True)
    sys.stdout.flush()


def complain(message: str) -> None:
    """Prints a line on stderr."""
    sys.stderr.write(f"segzoo: {message}\n")


def pairs(words: list[str], flag: str = "--override") -> dict[str, Any]:
    """Returns `{"width": 8, "padding": "VALID"}` of `["width", "8", "padding", "VALID"]`.

    Raises:
        SegzooError: when the last name has no value.
    """
    if len(words) % 2:
        raise SegzooError(f"{flag} takes pairs of NAME VALUE; {words[-1]!r} has no value.")
    return {name: value(text) for name, text in zip(words[::2], words[1::2], strict=True)}


def value(text: str) -> Any:
    """Returns the Python value that a word stands for; the word itself where it is none."""
    named = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
