"""Where a number comes from: device, versions, commit, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import segzoo
from segzoo.cores import has_wide_registers, told_of_processor, usable_cores

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe() -> dict[str, Any]:
    """Returns `device`, `versions`, `commit` and `date` of the running program, for a record."""
    versions = {"segzoo": segzoo.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "device": device(),
        "versions": versions,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def device() -> str:
    """Returns the devices in words, e.g. "1 x NVIDIA H100" or "1 x CPU (2 cores, AMD EPYC)"."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        # Clouds give processors of different generations the same name.
        wide = "AVX-512" if has_wide_registers() else ""
        told = [f"{usable_cores()} cores", _processor(), wide]
        kind = f"CPU ({', '.join(filter(None, told))})"
    return f"{jax.device_count()} x {kind}"


def _processor() -> str:
    """What the processor calls itself, "" where it is not known."""
    told = told_of_processor("model name")
    return platform.processor() if told is None else told


def commit() -> str:
    """Returns the commit of the source tree, with "-dirty" if files differ, or "unknown"."""
    root = Path(segzoo.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A segzoo installed inside somebody else's repository has no commit of its own.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown"
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
