"""Many pictures on disk -> class ids on disk."""

from __future__ import annotations

import glob
import io
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from segzoo.data.spec import Color
from segzoo.errors import SegzooError
from segzoo.files import write_atomically
from segzoo.pictures import SUFFIXES, VOLUME_SUFFIX, read_picture

if TYPE_CHECKING:
    from segzoo.ops.dense_crf import DenseCRF


def predict_files(
    weights: Path | str,
    images: Iterable[str],
    output: Path | str,
    *,
    overlays: bool = False,
    tile: int | None = None,
    overlap: int | None = None,
    crf: DenseCRF | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> list[str]:
    """Predicts files and writes `NAME.png`, class ids as palette indices (volumes: `NAME.npy`).

    A picture that cannot be read does not stop the others.

    Args:
        weights: a run folder or a `.safetensors` file.
        images: files, folders (all pictures directly in them) and shell patterns.
        output: a folder, made if missing.
        overlays: also write `NAME.overlay.png`, the classes over the picture.
        tile: see `Predictor`.
        overlap: see `Predictor`.
        crf: see `Predictor`.
        say: is given one line per file written.

    Returns:
        One sentence for each file that failed.

    Raises:
        SegzooError: when nothing is found, an input would be overwritten, or the weights or the
            tile are impossible.
    """
    import jax

    from segzoo.predict import Predictor
    from segzoo.visualize import overlay
    from segzoo.weights import load

    paths = find_images(images)
    targets = output_paths(paths, Path(output), overlays)
    model, variables, info = load(weights)
    predictor = Predictor(model, variables, info, tile=tile, overlap=overlap, crf=crf)
    failures = []
    for path, target in zip(paths, targets, strict=True):
        try:
            picture = read_picture(path, info.in_channels, info.spatial_dims)
            ids = predictor(picture)
        except SegzooError as error:
            failures.append(str(error))
            continue
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            failures.append(f"{path}: out of memory at {list(picture.shape)}; give a --tile.")
            continue
        if target.suffix == VOLUME_SUFFIX:
            buffer = io.BytesIO()
            np.save(buffer, ids)
            write_atomically(target, buffer.getvalue())
        else:
            write_atomically(target, encode_ids(ids, info.palette))
            if overlays:
                write_atomically(_overlay_path(target), _png(overlay(picture, ids, info.palette)))
        say(f"{path} -> {target}")
    return failures


def find_images(words: Iterable[str]) -> list[Path]:
    """Returns the files that files, folders and shell patterns stand for, each once.

    Raises:
        SegzooError: for a word that stands for nothing.
    """
    found: dict[Path, Path] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            kinds = (*SUFFIXES, VOLUME_SUFFIX)
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in kinds and p.is_file())
            if not matches:
                raise SegzooError(f"{path} holds no pictures ({', '.join(kinds)}).")
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(p) for p in glob.glob(word, recursive=True) if Path(p).is_file())
            if not matches:
                raise SegzooError(f"{word} does not exist, and matches no file as a pattern.")
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def output_paths(paths: list[Path], output: Path, overlays: bool = False) -> list[Path]:
    """Returns where the class ids of each file go: `STEM.png`, all different.

    Files of one stem keep their suffix (`a.jpg.png`, `a.tif.png`); files of one name from several
    folders are numbered.

    Raises:
        SegzooError: when a file to write is one of the inputs.
    """
    # Some file systems do not tell "A.png" from "a.png".
    stems = Counter(path.stem.casefold() for path in paths)
    taken: set[str] = set()
    targets = []
    for path in paths:
        base = path.stem if stems[path.stem.casefold()] == 1 else path.name
        name, number = base, 2
        while name.casefold() in taken:
            name, number = f"{base}-{number}", number + 1
        # With overlays, "a" writes "a.overlay.png", which a picture "a.overlay" must not.
        taken |= {name.casefold(), f"{name}.overlay".casefold()} if overlays else {name.casefold()}
        suffix = VOLUME_SUFFIX if path.suffix.lower() == VOLUME_SUFFIX else ".png"
        targets.append(output / f"{name}{suffix}")
    inputs = {path.resolve() for path in paths}
    for target in targets:
        for written in (target, _overlay_path(target)) if overlays else (target,):
            if written.resolve() in inputs:
                raise SegzooError(
                    f"{written} is an input and would be overwritten; choose another -o."
                )
    return targets


def encode_ids(ids: np.ndarray, palette: tuple[Color, ...]) -> bytes:
    """Encodes class ids `[H, W]` as a PNG of palette indices that viewers show in colour."""
    image = Image.fromarray(ids)
    colors = [value for color in palette[:256] for value in color]
    image.putpalette(colors + [0] * (768 - len(colors)))
    return _png(image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _overlay_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.overlay.png")
