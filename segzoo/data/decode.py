"""Bytes to arrays and back: the one place that decodes and encodes images.

Everything goes through Pillow. Decoders disagree on palette, 1-bit, CMYK and transparent files, so
each of those modes is settled here by name and nowhere else.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

from segzoo.errors import SegzooError


def _open(data: bytes, name: str) -> Image.Image:
    """Opens encoded bytes without reading the pixels."""
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:
        raise _unreadable(data, name, error) from error


def _load(image: Image.Image, data: bytes, name: str) -> None:
    """Reads the pixels; Pillow puts this off until they are needed."""
    try:
        image.load()
    except Exception as error:
        raise _unreadable(data, name, error) from error


def _unreadable(data: bytes, name: str, error: Exception) -> SegzooError:
    # Damaged files end in OSError, SyntaxError, struct.error, EOFError, ... by format and place.
    if isinstance(error, MemoryError):
        raise error
    if not data:
        return SegzooError(f"{name}: the file is empty; expected an image.")
    if isinstance(error, Image.UnidentifiedImageError):
        return SegzooError(f"{name}: not an image in any known format.")
    return SegzooError(f"{name}: the image is damaged or cut off ({error}).")


def image_shape(data: bytes, name: str = "image", *, upright: bool = False) -> tuple[int, int]:
    """Returns `(H, W)` from the header alone, as `decode_image` would return the pixels.

    Raises:
        SegzooError: when the bytes are no image.
    """
    with _open(data, name) as image:
        if upright and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            return image.width, image.height
        return image.height, image.width


def decode_image(
    data: bytes, channels: int = 3, name: str = "image", *, upright: bool = False
) -> np.ndarray:
    """Decodes an 8-bit image in any common format.

    Transparency is dropped, palettes and CMYK become RGB, 1-bit becomes 0 and 255, and colour
    becomes luma (ITU-R 601) when one channel is asked for.

    Args:
        data: the encoded file.
        channels: 1 (grey) or 3 (RGB).
        name: the file's name, for messages.
        upright: turn the image as its EXIF orientation says, as viewers show it.

    Returns:
        uint8 `[H, W, channels]`.

    Raises:
        SegzooError: when the bytes are no image, are cut off or hold more than 8 bits a channel.
    """
    with _open(data, name) as image:
        _load(image, data, name)
        if image.mode.startswith(("I", "F")):
            low, high = image.getextrema()
            raise SegzooError(
                f"{name}: pixels of more than 8 bits (mode {image.mode}, values {low} to {high}); "
                "scale them to 0..255 and save as 8-bit."
            )
        picture: Image.Image = ImageOps.exif_transpose(image) if upright else image
        if "transparency" in picture.info and picture.mode == "P":
            # Straight to RGB, Pillow warns that the transparency is lost.
            picture = picture.convert("RGBA")
        mode = "RGB" if channels == 3 else "L"
        if picture.mode != mode:
            picture = picture.convert(mode)
        return np.array(picture).reshape(picture.height, picture.width, channels)


def image_channels(data: bytes, name: str = "image") -> int:
    """Returns 1 for a grey image and 3 for one with colour, from the header alone.

    Raises:
        SegzooError: when the bytes are no image.
    """
    with _open(data, name) as image:
        return 1 if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")) else 3


def is_plain_jpeg(data: bytes, name: str = "image") -> bool:
    """Returns whether the bytes are an RGB JPEG, which every decoder reads alike.

    Raises:
        SegzooError: when the bytes are no image.
    """
    with _open(data, name) as image:
        return image.format == "JPEG" and image.mode == "RGB"


def is_jpeg(data: bytes, name: str = "image") -> bool:
    """Returns whether the bytes are a JPEG.

    Raises:
        SegzooError: when the bytes are no image.
    """
    with _open(data, name) as image:
        return image.format in ("JPEG", "MPO")


def has_colors(data: bytes, name: str = "image") -> bool:
    """Returns whether pixels are stored as colours (not grey levels or palette indices).

    Raises:
        SegzooError: when the bytes are no image.
    """
    with _open(data, name) as image:
        return image.mode in ("RGB", "RGBA", "CMYK", "YCbCr")


def decode_ids(data: bytes, name: str = "mask", *, upright: bool = False) -> np.ndarray:
    """Decodes an image of integer ids: grey levels or palette indices as stored, 1-bit as 0 and 1.

    Args:
        data: the encoded file.
        name: the file's name, for messages.
        upright: turn the image as its EXIF orientation says.

    Returns:
        uint8 or uint16 `[H, W]`.

    Raises:
        SegzooError: when the bytes are no image, are cut off, or hold colours instead of ids.
    """
    with _open(data, name) as image:
        _load(image, data, name)
        picture: Image.Image = ImageOps.exif_transpose(image) if upright else image
        if picture.mode in ("L", "P", "1"):
            return np.array(picture, np.uint8)
        if picture.mode in ("LA", "PA", "La"):
            return np.array(picture.getchannel(0), np.uint8)
        array = np.array(picture)
        if picture.mode.startswith("I") and array.min() >= 0 and array.max() < 2**16:
            return array.astype(np.uint16)
        if array.ndim == 3 and array.shape[-1] in (3, 4) and picture.mode in ("RGB", "RGBA"):
            red, green, blue = (array[..., i] for i in range(3))
            # Grey ids that a program saved as RGB say the same thing three times.
            if np.array_equal(red, green) and np.array_equal(red, blue):
                return np.ascontiguousarray(red)
            raise SegzooError(
                f"{name}: the mask holds colours; expected one id per pixel (grey or palette)."
            )
        raise SegzooError(
            f"{name}: a mask of mode {picture.mode} holds no ids up to 65535; expected grey or "
            "palette."
        )


def decode_pages(data: bytes, name: str = "stack") -> list[np.ndarray]:
    """Decodes every page of a multi-page file (TIFF) of 8-bit grey images.

    Returns:
        uint8 `[H, W]` each; 1-bit pages as 0 and 255.

    Raises:
        SegzooError: when the bytes are no image, are cut off, or hold other than grey pages.
    """
    pages = []
    with _open(data, name) as image:
        try:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()
                if image.mode not in ("1", "L", "P"):
                    raise SegzooError(
                        f"{name}: page {number} has mode {image.mode}; expected 8-bit grey."
                    )
                pages.append(np.array(image.convert("L") if image.mode == "1" else image))
        except SegzooError:
            raise
        except Exception as error:
            raise _unreadable(data, name, error) from error
    return pages


def encode_png(array: np.ndarray, *, level: int = 6) -> bytes:
    """Encodes an array losslessly.

    Args:
        array: uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, or uint16 `[H, W]`.
        level: zlib's compression level, 1 (fast) to 9 (small).

    Raises:
        SegzooError: for any other shape or dtype.
    """
    plain = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if not (
        (plain.dtype == np.uint8 and (plain.ndim == 2 or plain.shape[2:] == (3,)))
        or (plain.dtype == np.uint16 and plain.ndim == 2)
    ):
        raise SegzooError(
            f"cannot write an array {array.dtype}{list(array.shape)} as PNG; expected uint8 "
            "[H, W], [H, W, 1] or [H, W, 3], or uint16 [H, W]."
        )
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plain)).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()
