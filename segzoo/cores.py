"""What computes: how many cores this process may use, their name, how wide their registers are."""

from __future__ import annotations

import functools
import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """The cores of this process: in a container often fewer than the machine's.

    Only Linux can tell; elsewhere all of the machine's.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def told_of_processor(field: str) -> str | None:
    """Returns a field of Linux's list of processors, of the first that has it, such as "flags".

    Returns:
        "" where none has it; None where there is no such list.
    """
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:  # not Linux
        return None
    fields = (line.partition(":") for line in lines)
    return next((told.strip() for name, _, told in fields if name.strip() == field), "")


@functools.cache
def has_wide_registers() -> bool:
    """Whether the processor computes with 16 float32 at a time (AVX-512), not 8 or 4.

    Only Linux can tell; elsewhere they are taken to be narrow.
    """
    return "avx512f" in (told_of_processor("flags") or "").split()
