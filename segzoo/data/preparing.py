"""Preparing a dataset once, safely.

A prepared dataset lies in `<data_dir>/segzoo/<name>/<version>/`, and appears there by one rename:
it is whole or absent.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow_datasets as tfds

from segzoo.data.statistics import remembered
from segzoo.errors import SegzooError

if TYPE_CHECKING:
    from segzoo.data.builders import Builder

log = logging.getLogger(__name__)


def prepare(builder: type[Builder], directory: Path, manual_dir: Path) -> None:
    """Prepares a dataset unless it is there already.

    Several processes may call this at once: one works and the others wait for it. One that is
    killed leaves nothing that could be taken for a dataset.

    Raises:
        SegzooError: when the original files are missing or wrong, or the place is not writable.
    """
    if directory.exists():
        return
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.parent / ".lock") as alone:
            if directory.exists():
                return
            if alone:
                # What a killed process left. Without a lock it might be another's work.
                for left in directory.parent.glob("incomplete.*"):
                    shutil.rmtree(left, ignore_errors=True)
            log.warning("preparing dataset %s in %s (once)", builder.SPEC.name, directory)
            _run(builder, directory, manual_dir)
    except OSError as error:
        raise SegzooError(
            f"cannot prepare {builder.SPEC.name!r} in {directory}: {error}."
        ) from error


def facts_folder(directory: Path, split: str) -> Path:
    """Returns where what is measured of a split is kept, in a prepared dataset's folder."""
    slug = "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):02x}" for c in split)
    return directory / "facts" / slug


def _run(builder: type[Builder], directory: Path, manual_dir: Path) -> None:
    # Large ones are written beside their place: see `_write_in_order`.
    beside = directory.parent / f"incomplete.{os.getpid()}"
    place = beside if builder.LARGE else directory.parents[1]
    made = builder(data_dir=place, file_format="array_record")
    made.manual_dir, made.measured = manual_dir, {}
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        if builder.LARGE:
            _write_in_order(made)
            os.rename(made.data_dir, directory)
        else:
            assert Path(made.data_dir) == directory, (made.data_dir, directory)
            with _no_progress_bars():
                made.download_and_prepare(download_config=config)
    except Exception as error:
        if directory.exists():
            return  # another host, with a lock of its own, was first
        cause: BaseException | None = error
        while cause is not None:
            # tfds wraps what a generator raises into exceptions of its own.
            if isinstance(cause, SegzooError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not builder.SHUFFLED:
        for split, (shapes, counts) in made.measured.items():
            facts = facts_folder(directory, split)
            remembered(facts / "shape_of_each.json", functools.partial(list, shapes))
            if builder.SPEC.task == "instance":
                remembered(facts / "object_counts.json", functools.partial(list, counts))


def _write_in_order(made: Builder) -> None:
    """Writes each record as it comes, in shards of some 700 MB.

    tfds's own way sorts all records in memory, and more than 1 GB on disk, by way of TensorFlow.
    """
    Path(made.data_dir).mkdir(parents=True)
    splits = made._split_generators(None)
    writer = tfds.core.SequentialWriter(made.info, made.LARGE, file_format="array_record")
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        writer.add_examples({split: (example for _, example in examples)})
    writer.close_all()


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    bars = tfds.core.utils.tqdm_utils
    before = getattr(bars, "_active", True)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.display_progress_bar(before)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock on a file, which the system drops when the process dies.

    Yields:
        True, or False where the system or the file system knows no locks.
    """
    with path.open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            yield False
        else:
            yield True
