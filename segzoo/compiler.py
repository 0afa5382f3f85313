"""What tracing and compiling leave out, so that a program's first step comes sooner."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os

# LLVM's loop strength reduction: a large part of the time that machine code takes, while the
# loops of XLA's kernels, which are short, run as fast without it.
_LLVM_OPTIONS = "-disable-lsr"
_FLAG = "--xla_backend_extra_options"
# Allocated objects after which Python looks for garbage: 700 by default, of which tracing a deep
# network makes thousands a second that all stay.
_GARBAGE = 10_000


def compile_sooner() -> bool:
    """Makes this process trace and compile sooner, values and speed of a step as they were.

    Settings of the whole process, for programs and not for libraries to call: after their imports,
    since what is there now is no longer looked through for garbage, and before JAX's devices are
    first asked for, when XLA reads its flags (`XLA_FLAGS`, to which one is added). XLA's is made on
    a CPU alone; one that the flags already give LLVM options is left as it is.

    Returns:
        Whether XLA was told anything.
    """
    gc.freeze()
    first, *later = gc.get_threshold()
    if 0 < first < _GARBAGE:  # 0 is Python's for never
        gc.set_threshold(_GARBAGE, *later)
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG in flags or not _cpu_alone():
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}={_LLVM_OPTIONS}".lstrip()
    return True


def _cpu_alone() -> bool:
    """Whether JAX will find no other device: the option would reach a GPU's code, too."""
    import jax

    if platforms := getattr(jax.config, "jax_platforms", None):
        return bool(platforms == "cpu")
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(
        importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")
    )
