"""Oxford-IIIT Pet: cats and dogs with trimaps (Parkhi, Vedaldi, Zisserman, Jawahar 2012).

The trimap's 1, 2, 3 become class 0 pet, 1 background, 2 border. The border is a class of its own,
as in most work on this dataset; it is not void.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from segzoo.data import decode
from segzoo.data.builders import Builder, Record, Records, record, register_builder
from segzoo.data.originals import check_same_size, need
from segzoo.data.spec import DatasetSpec
from segzoo.errors import SegzooError

SPEC = DatasetSpec(
    name="oxford_iiit_pet",
    task="semantic",
    class_names=("pet", "background", "border"),
    palette=((230, 97, 1), (0, 0, 0), (253, 224, 140)),
    # ImageNet's, as is usual for photographs.
    mean=(123.7, 116.3, 103.5),
    std=(58.4, 57.1, 57.4),
    description=(
        "7349 photographs of cats and dogs of 37 breeds, of many sizes, with a trimap each: pet, "
        "background, border. 3680 trainval, 3669 test, each shuffled, since the lists are sorted "
        "by breed: `trainval[:80%]` is a fair sample."
    ),
    terms="CC BY-SA 4.0; the copyright of each image remains with its owner",
)

LAYOUT = "the original archives images.tar.gz and annotations.tar.gz"


@register_builder
class OxfordIiitPet(Builder):
    """Reads the two archives in `manual_dir` without unpacking them."""

    SPEC = SPEC
    SHUFFLED = True
    SPLITS: ClassVar[Mapping[str, int]] = {"trainval": 3680, "test": 3669}

    def records(self, manual_dir: Path) -> Mapping[str, Records]:
        """Returns the two splits of the dataset's own lists."""
        need(SPEC.name, manual_dir, ["images.tar.gz", "annotations.tar.gz"], LAYOUT)
        archive = manual_dir / "annotations.tar.gz"
        notes = {path: data for path, data in _members(archive) if path.suffix in (".png", ".txt")}
        splits = {}
        for split, count in self.SPLITS.items():
            path = PurePosixPath(f"annotations/{split}.txt")
            if path not in notes:
                raise SegzooError(f"{archive}: the list {path} is missing.")
            lines = notes[path].decode("utf-8", "replace").splitlines()
            names = [line.split()[0] for line in lines if line.strip() and line[0] != "#"]
            if len(names) != count:
                raise SegzooError(f"{archive}: {path} lists {len(names)} images, not {count}.")
            trimaps = {}
            for name in names:
                trimap = PurePosixPath(f"annotations/trimaps/{name}.png")
                if trimap not in notes:
                    raise SegzooError(f"{archive}: {trimap} is missing.")
                trimaps[name] = notes[trimap]
            splits[split] = _pets(manual_dir / "images.tar.gz", trimaps)
        return splits


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yields the files of a tar archive in one pass."""
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                file = tar.extractfile(member) if member.isfile() else None
                # The archives hold a Mac's hidden companions of some files, too.
                if file is not None and not path.name.startswith("."):
                    yield path, file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise SegzooError(f"{archive}: the archive is damaged or cut off ({error}).") from error


def _pets(archive: Path, trimaps: Mapping[str, bytes]) -> Iterator[Record]:
    missing = set(trimaps)
    for path, data in _members(archive):
        name = path.stem
        if path.suffix != ".jpg" or name not in missing:
            continue
        missing.remove(name)
        file = f"{archive}: {path}"
        image = decode.decode_image(data, 3, file)
        trimap = decode.decode_ids(trimaps[name], f"trimap of {path}")
        check_same_size(image, trimap, file)
        if trimap.min() < 1 or trimap.max() > SPEC.num_classes:
            raise SegzooError(
                f"{file}: its trimap holds values {trimap.min()}..{trimap.max()}; expected 1..3."
            )
        # Some files are PNG, GIF or CMYK under the name .jpg; those are written anew.
        plain = decode.is_plain_jpeg(data, file)
        yield record(name, data if plain else image, (trimap - 1).astype(np.uint8))
    if missing:
        raise SegzooError(
            f"{archive}: {len(missing)} of {len(trimaps)} listed images are missing, "
            f"e.g. images/{min(missing)}.jpg."
        )
