"""The one exception for a user's mistakes, and the checks that raise it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SegzooError(ValueError):
    """A mistake the user can mend: one sentence that names what was found and what was expected.

    The command line prints it as `segzoo: <message>` and exits with code 2; library callers may
    catch it as a `ValueError`.
    """


def did_you_mean(value: object, options: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest options, else a list of all of them."""
    names = sorted(options)
    near = difflib.get_close_matches(str(value).lower(), names, n=3, cutoff=0.6)
    if near:
        return " Did you mean " + " or ".join(repr(name) for name in near) + "?"
    return " Known: " + ", ".join(names) + "." if names else ""


def check_name(what: str, value: object, options: Iterable[str]) -> None:
    """Raises `SegzooError` with near matches unless `value` is one of `options`."""
    names = list(options)
    if value not in names:
        raise SegzooError(f"unknown {what} {value!r}.{did_you_mean(value, names)}")


def check_choice(what: str, value: object, options: Iterable[Any]) -> None:
    """Raises `SegzooError` unless `value` is one of the few `options`, which are all named."""
    choices = list(options)
    if value not in choices or isinstance(value, bool) not in {
        isinstance(c, bool) for c in choices
    }:
        listed = ", ".join(repr(choice) for choice in choices)
        raise SegzooError(f"{what} is {value!r}; expected one of {listed}.")


def check_positive_int(what: str, value: object, minimum: int = 1) -> None:
    """Raises `SegzooError` unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise SegzooError(f"{what} is {value!r}; expected an integer of at least {minimum}.")


def check_bool(what: str, value: object) -> None:
    """Raises `SegzooError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise SegzooError(f"{what} is {value!r}; expected True or False.")
