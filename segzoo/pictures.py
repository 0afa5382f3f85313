"""Pictures as people have them -> uint8 arrays `[*S, C]` with the channels a model wants."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from segzoo.data.decode import decode_image
from segzoo.errors import SegzooError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
VOLUME_SUFFIX = ".npy"


def open_picture(
    image: Path | str | Image.Image | np.ndarray, channels: int, spatial_dims: int = 2
) -> np.ndarray:
    """Returns a picture with the channels a model wants, whatever it comes as.

    Args:
        image: a file, for `read_picture`; a PIL image or an array, for `as_picture`.
        channels: the channels wanted.
        spatial_dims: 2, or 3 for volumes.

    Returns:
        uint8 `[*S, channels]`.

    Raises:
        SegzooError: for a file that cannot be read or a picture that no rule covers.
    """
    if isinstance(image, str | Path):
        return read_picture(image, channels, spatial_dims)
    return as_picture(image, channels, spatial_dims)


def read_picture(path: Path | str, channels: int, spatial_dims: int = 2) -> np.ndarray:
    """Reads a picture, or an array of any axes and channels from a `.npy` file.

    Args:
        path: any file Pillow reads, with 8 bits per channel; or uint8 in a `.npy` file, the only
            kind for volumes and for channels other than grey and RGB.
        channels: the channels wanted; see `as_picture`.
        spatial_dims: 2, or 3 for volumes.

    Returns:
        uint8 `[*S, channels]`, upright: the EXIF orientation is applied.

    Raises:
        SegzooError: names the file when it is missing, unreadable, or of another kind.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SegzooError(f"{path} does not exist.") from None
    except OSError as error:
        raise SegzooError(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix.lower() == VOLUME_SUFFIX:
        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise SegzooError(f"{path} cannot be read as an array: {error}.") from error
        return as_picture(array, channels, spatial_dims, str(path))
    if spatial_dims != 2 or channels not in (1, 3):
        raise SegzooError(
            f"{path}: a picture cannot hold {spatial_dims} axes of {channels} channels; "
            f"expected a {VOLUME_SUFFIX} file of uint8."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is our trade
            return decode_image(content, 1 if channels == 1 else 3, str(path), upright=True)
    except SegzooError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise SegzooError(
                f"{path} is larger than Pillow opens by default; raise PIL.Image.MAX_IMAGE_PIXELS, "
                "or pass the pixels as an array."
            ) from error
        raise


def as_picture(
    image: Image.Image | np.ndarray, channels: int, spatial_dims: int = 2, where: str = "the image"
) -> np.ndarray:
    """Brings a picture to `[*S, channels]`, uint8.

    Palettes are looked up and an alpha channel is dropped. Grey becomes RGB by repetition, RGB
    becomes grey by ITU-R 601 luma, as Pillow does it. Nothing else is guessed.

    Args:
        image: a PIL image, or uint8 `[*S]` or `[*S, C]`.
        channels: the number of channels wanted.
        spatial_dims: 2, or 3 for volumes (arrays only).
        where: names the picture in errors.

    Raises:
        SegzooError: for other than 8 bits per channel, other axes, or channels no rule covers.
    """
    array = _pixels(image, where) if isinstance(image, Image.Image) else np.asarray(image)
    if array.dtype != np.uint8:
        raise SegzooError(f"{where} has dtype {array.dtype}; expected uint8, 0..255.")
    if array.ndim == spatial_dims:
        array = array[..., None]
    if array.ndim != spatial_dims + 1 or 0 in array.shape:
        axes = "[D, H, W] or [D, H, W, C]" if spatial_dims == 3 else "[H, W] or [H, W, C]"
        raise SegzooError(f"{where} has shape {list(array.shape)}; expected {axes}.")
    found = array.shape[-1]
    if found in (2, 4) and channels in (1, 3):  # grey or RGB, and alpha
        array = array[..., :-1]
        found -= 1
    if found == 1 and channels == 3:
        array = np.repeat(array, 3, axis=-1)
    elif found == 3 and channels == 1:
        array = _luma(array)
    elif found != channels:
        raise SegzooError(
            f"{where} has {found} channels; the model takes {channels}, and only grey, RGB and "
            "RGBA are converted into each other."
        )
    return np.ascontiguousarray(array)


def _pixels(image: Image.Image, where: str) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        raise SegzooError(
            f"{where} has more than 8 bits per channel (mode {image.mode}); scale it to 0..255, "
            "8 bits, the way the training images were."
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "1":
        return np.asarray(upright.convert("L"))
    if upright.mode == "P":  # by way of RGBA: straight to RGB, Pillow warns of lost transparency
        upright = upright.convert("RGBA")
    if upright.mode not in ("L", "LA", "RGB", "RGBA"):
        upright = upright.convert("RGB")
    return np.asarray(upright)


def _luma(array: np.ndarray) -> np.ndarray:
    """Pillow's fixed-point ITU-R 601 luma, over any spatial axes."""
    red, green, blue = (array[..., i].astype(np.uint32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]
