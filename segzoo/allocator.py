"""Memory that a process keeps for itself between one step and the next.

glibc gives every freed block of some megabytes back to the system, and takes a new one in its place
page by page as it is first written to. Each call of a compiled function allocates the room for all
its activations anew; on CPU a convolution of large maps can take half its time in that.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LONG = 1.0


def keep_freed_memory() -> bool:
    """Makes this process keep what is freed, for what is allocated next.

    For a program that does the same again and again, as training does: between two peaks its memory
    no longer falls, and where each computation is another, holes between what stays can add up. A
    setting of the whole process, for programs and not for libraries to call, before the first use
    of JAX. The environment variable SEGZOO_KEEP_MEMORY=0 forbids it.

    glibc keeps large blocks for no thread but the first. So that this one allocates the room of a
    computation, those on a CPU are no longer dispatched asynchronously.

    What the compiler leaves behind, often more than a step takes, serves nobody; it goes back to
    the system when a compilation of a second or more is over, before its program runs.

    Returns:
        Whether malloc is glibc's and took the setting.
    """
    if not malloc_keeps_freed_memory():
        return False
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.monitoring.register_event_duration_secs_listener(_after_compiling)
    return True


def _after_compiling(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED and duration_secs >= _LONG:
        ctypes.CDLL(None).malloc_trim(0)


def malloc_keeps_freed_memory() -> bool:
    """Does the part of `keep_freed_memory` that concerns malloc, and leaves JAX alone."""
    if not sys.platform.startswith("linux") or os.environ.get("SEGZOO_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
