"""How many cores this process may use, and how wide their registers are."""

from __future__ import annotations

import functools
import os
from pathlib import Path

_PROCESSOR = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """The cores of this process: in a container often fewer than the machine's.

    Only Linux can tell; elsewhere all of the machine's.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def has_wide_registers() -> bool:
    """Whether the processor computes with 16 float32 at a time (AVX-512), not 8 or 4.

    Only Linux can tell; elsewhere they are taken to be narrow.
    """
    return _PROCESSOR.exists() and "avx512f" in _PROCESSOR.read_text().split()
