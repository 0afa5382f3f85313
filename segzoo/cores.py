"""How many cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores of this process: in a container often fewer than the machine's.

    Only Linux can tell; elsewhere all of the machine's.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
