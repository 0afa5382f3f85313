"""Many pictures on disk -> class ids, or objects, on disk."""

from __future__ import annotations

import glob
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from segzoo.data.spec import Color, default_palette
from segzoo.errors import SegzooError
from segzoo.files import write_atomically
from segzoo.pictures import SUFFIXES, VOLUME_SUFFIX, read_picture

if TYPE_CHECKING:
    from segzoo.instances import Objects
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

    Of an instance model `NAME.png` holds the numbers of the objects (0 where none is; 16 bits where
    there are more than 255) and `NAME.json` all detections, best first: `id` in the PNG file (null
    where others lie over it, or it scores below 0.5), `class`, `class_id`, `score` and `box`, which
    is y0, x0, y1, x1 in pixels.

    A picture that cannot be read does not stop the others.

    Args:
        weights: a run folder or a `.safetensors` file.
        images: files, folders (all pictures directly in them) and shell patterns.
        output: a folder, made if missing.
        overlays: also write `NAME.overlay.png`, the classes, or objects, over the picture.
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

    from segzoo.instances import Objects
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
            found = predictor(picture)
        except SegzooError as error:
            failures.append(str(error))
            continue
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            failures.append(f"{path}: out of memory at {list(picture.shape)}; give a --tile.")
            continue
        if isinstance(found, Objects):
            _write_objects(target, picture, found, info.class_names, overlays)
        elif target.suffix == VOLUME_SUFFIX:
            buffer = io.BytesIO()
            np.save(buffer, found)
            write_atomically(target, buffer.getvalue())
        else:
            write_atomically(target, encode_ids(found, info.palette))
            if overlays:
                shown = overlay(picture, found, info.palette)
                write_atomically(_overlay_path(target), _png(shown))
        say(f"{path} -> {target}")
    return failures


def _write_objects(
    target: Path, picture: np.ndarray, found: Objects, class_names: Sequence[str], overlays: bool
) -> None:
    """Writes the map of objects, the list of them and, where asked for, the picture of both."""
    from segzoo.instances import CONFIDENT, lay_out
    from segzoo.object_pictures import draw_objects

    ids = lay_out(found)
    shown = set(np.unique(ids).tolist())
    listed = [
        {
            "id": number if number in shown else None,
            "class": class_names[found.classes[number - 1]],
            "class_id": int(found.classes[number - 1]),
            "score": round(float(found.scores[number - 1]), 4),
            "box": [round(float(side), 2) for side in found.boxes[number - 1]],
        }
        for number in range(1, len(found) + 1)
    ]
    write_atomically(target, encode_objects(ids))
    write_atomically(target.with_suffix(".json"), (json.dumps(listed, indent=1) + "\n").encode())
    if overlays:
        sure = found.only(found.scores >= CONFIDENT)
        write_atomically(_overlay_path(target), _png(draw_objects(picture, sure, class_names)))


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


def encode_objects(ids: np.ndarray) -> bytes:
    """Encodes object numbers `[H, W]` as a PNG: of palette indices, or beyond 255 of 16 bits."""
    if ids.max(initial=0) <= 255:
        return encode_ids(ids.astype(np.uint8), default_palette(256))
    return _png(Image.fromarray(ids.astype(np.uint16)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _overlay_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.overlay.png")
