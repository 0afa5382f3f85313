"""MNIST: handwritten digits, 28x28 grey (LeCun, Bottou, Bengio, Haffner 1998), for LeNet.

There is no standard validation split; `train[:55000]` and `train[55000:]` make one, in the
original order.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from segzoo.data.builders import Builder, Record, Records, record, register_builder
from segzoo.data.originals import need, read_bytes
from segzoo.data.spec import DatasetSpec
from segzoo.errors import SegzooError

SPEC = DatasetSpec(
    name="mnist",
    task="classification",
    class_names=tuple("0123456789"),
    mean=(33.3,),
    std=(78.6,),
    description=(
        "70,000 handwritten digits, 28x28 grey pixels, white on black. 60,000 train, 10,000 test, "
        "in the original order."
    ),
    terms="copyright LeCun and Cortes, derived from NIST; usually stated as CC BY-SA 3.0",
)

LAYOUT = (
    "the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each with .gz or without"
)


@register_builder
class Mnist(Builder):
    """Reads the four idx files in `manual_dir`."""

    SPEC = SPEC
    SPLITS: ClassVar[Mapping[str, int]] = {"train": 60000, "test": 10000}
    PREFIXES: ClassVar[Mapping[str, str]] = {"train": "train", "test": "t10k"}

    def records(self, manual_dir: Path) -> Mapping[str, Records]:
        """Returns the two splits in the files' order."""
        files = {}
        for split, prefix in self.PREFIXES.items():
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
                plain = f"{prefix}-{kind}"
                zipped = f"{plain}.gz"
                files[split, kind[:6]] = zipped if (manual_dir / zipped).exists() else plain
        need(SPEC.name, manual_dir, files.values(), LAYOUT)
        splits = {}
        for split, count in self.SPLITS.items():
            images = read_idx(manual_dir / files[split, "images"], (count, 28, 28))
            labels = read_idx(manual_dir / files[split, "labels"], (count,))
            if labels.max(initial=0) >= SPEC.num_classes:
                raise SegzooError(
                    f"{manual_dir / files[split, 'labels']}: label {labels.max()}; expected 0..9."
                )
            splits[split] = _digits(images, labels)
        return splits


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an idx file of bytes, gzipped or not.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes; the sizes as big-endian
    32-bit integers; the values.

    Args:
        path: the file.
        shape: what it must hold.

    Returns:
        uint8 of `shape`.

    Raises:
        SegzooError: when the file is damaged or holds something else.
    """
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise SegzooError(f"{path}: the gzip file is damaged or cut off ({error}).") from error
    start = 4 + 4 * len(shape)
    if data[:4] != bytes([0, 0, 8, len(shape)]) or len(data) < start:
        raise SegzooError(f"{path}: not an idx file of unsigned bytes with {len(shape)} axes.")
    found = tuple(np.frombuffer(data, ">u4", len(shape), 4).tolist())
    if found != shape or len(data) != start + int(np.prod(shape)):
        raise SegzooError(
            f"{path}: {len(data) - start} bytes of values for the shape {list(found)}; expected "
            f"{list(shape)}."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _digits(images: np.ndarray, labels: np.ndarray) -> Iterator[Record]:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield record(f"{index:05d}", image[..., None], int(label))
