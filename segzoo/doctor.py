"""What can be wrong with an installation, found before a run finds it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

State = Literal["ok", "warning", "broken"]
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "array_record",
    "importlib_resources",
    "numpy",
    "scipy",
    "pillow",
    "matplotlib",
    "rich",
    "tyro",
    "tensorboardX",
    "safetensors",
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        state: "broken" where runs will fail, "warning" where they may be slow or surprising.
        text: one sentence.
    """

    state: State
    text: str


def examine() -> list[Finding]:
    """Looks at versions, devices, the CPU client's threads, models, data folder and disk."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _devices,
        _models,
        _data,
        _disk,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        except Exception as error:  # whatever a broken installation raises is the finding
            reason = str(error).split("\n", 1)[0] or type(error).__name__
            findings.append(Finding("broken", f"{check.__name__[1:]}: {reason}"))
    return findings


def _versions() -> Iterator[Finding]:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", f"Python {platform.python_version()} on {platform.platform()}")
    yield Finding("ok", ", ".join(found))
    if missing:
        yield Finding("broken", f"not installed: {', '.join(missing)}")
    for wanted in importlib.metadata.requires("segzoo") or ():
        yield from _requirement(wanted)


def _requirement(wanted: str) -> Iterator[Finding]:
    """A dependency whose installed version is not one segzoo asks for."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # comes with most environments, but is no dependency
        return
    requirement = Requirement(wanted)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return  # said above
    if not requirement.specifier.contains(version, prereleases=True):
        yield Finding("broken", f"{requirement.name} is {version}; segzoo needs {wanted}")


def _devices() -> Iterator[Finding]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS")
        because = f" (JAX_PLATFORMS is {asked!r})" if asked else ""
        reason = str(error).split("\n", 1)[0]
        yield Finding("broken", f"JAX finds no device{because}: {reason}")
        return
    backend = jax.default_backend()
    yield Finding("ok", f"{len(devices)} x {devices[0].device_kind} ({backend})")
    total = float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))))
    if total != 512.0:
        yield Finding("broken", f"a matrix product gave {total} instead of 512 on {backend}")
    if backend == "cpu":
        yield from _idle_accelerator()
        yield from _cpu_threads(jax.local_device_count())


def _idle_accelerator() -> Iterator[Finding]:
    asked = os.environ.get("JAX_PLATFORMS", "")
    if Path("/dev/nvidia0").exists() and "cpu" not in asked:
        yield Finding(
            "warning",
            "this machine has an NVIDIA GPU, but JAX uses the CPU: install segzoo[cuda12]",
        )


def _cpu_threads(devices: int) -> Iterator[Finding]:
    """XLA's CPU client dead-locks on collectives with fewer than two threads a device."""
    threads = os.environ.get("NPROC", "")
    if devices > 1 and (not threads.isdigit() or int(threads) < 2 * devices):
        yield Finding(
            "warning",
            f"NPROC is {threads or 'not set'}: programs over {devices} CPU devices may hang; "
            f"set NPROC={max(16, 4 * devices)} (segzoo's own commands do)",
        )


def _models() -> Iterator[Finding]:
    from segzoo.registry import list_models

    yield Finding("ok", f"{len(list_models())} models registered")


def _data() -> Iterator[Finding]:
    import grain  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    from segzoo.data.spec import default_data_dir, list_datasets

    names = list_datasets()
    folder = default_data_dir()
    source = "TFDS_DATA_DIR" if os.environ.get("TFDS_DATA_DIR") else "the default"
    if folder.exists() and not folder.is_dir():
        yield Finding("broken", f"data folder {folder} ({source}) is a file")
        return
    prepared = [name for name in names if (folder / name).is_dir()]
    listed = f"prepared: {', '.join(prepared)}" if prepared else "nothing prepared yet"
    yield Finding("ok", f"data folder {folder} ({source}); {listed}")
    if not os.access(_existing(folder), os.W_OK):
        state: State = "warning" if prepared else "broken"
        yield Finding(state, f"data folder {folder} cannot be written to; set TFDS_DATA_DIR")


def _disk() -> Iterator[Finding]:
    from segzoo.data.spec import default_data_dir

    places = {"here": Path(), "data": default_data_dir(), "temp": Path(tempfile.gettempdir())}
    for name, place in places.items():
        free = shutil.disk_usage(_existing(place)).free / 2**30
        state: State = "ok" if free > 5 else "warning" if free > 0.5 else "broken"
        yield Finding(state, f"{free:.1f} GiB free for {name} ({place.absolute()})")
    if not os.access(Path(), os.W_OK):
        yield Finding("warning", f"{Path().absolute()} cannot be written to; runs start in runs/")


def _existing(path: Path) -> Path:
    """The nearest folder on the way to `path` that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
