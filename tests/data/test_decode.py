"""Every kind of file decodes to one thing, and broken ones name themselves."""

import io

import numpy as np
import pytest
from PIL import Image

from segzoo.data import decode
from segzoo.errors import SegzooError

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
COLOR = np.stack([GREY * 3, 255 - GREY, GREY * 7], -1)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_round_trip_is_exact():
    np.testing.assert_array_equal(decode.decode_image(decode.encode_png(COLOR)), COLOR)
    np.testing.assert_array_equal(
        decode.decode_image(decode.encode_png(GREY[..., None]), 1), GREY[..., None]
    )
    np.testing.assert_array_equal(decode.decode_ids(decode.encode_png(GREY)), GREY)
    wide = GREY.astype(np.uint16) * 1000
    np.testing.assert_array_equal(decode.decode_ids(decode.encode_png(wide)), wide)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_agree(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(COLOR), kind, **options)
    np.testing.assert_array_equal(decode.decode_image(data), COLOR)


def test_image_modes_become_rgb_or_grey():
    rgba = Image.fromarray(np.concatenate([COLOR, GREY[..., None]], -1))
    np.testing.assert_array_equal(decode.decode_image(encoded(rgba)), COLOR)
    palette = Image.fromarray(GREY % 3).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = (GREY[..., None] % 3) * np.uint8(30) + np.array([10, 20, 30], np.uint8)
    np.testing.assert_array_equal(decode.decode_image(encoded(palette)), expected)
    np.testing.assert_array_equal(
        decode.decode_image(encoded(palette, transparency=bytes([0, 128, 255]))), expected
    )
    grey = decode.decode_image(encoded(Image.fromarray(GREY)))
    np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], 3, -1))
    bits = decode.decode_image(encoded(Image.fromarray(GREY > 9)), 1)
    np.testing.assert_array_equal(bits[..., 0], np.where(GREY > 9, 255, 0))
    cmyk = decode.decode_image(encoded(Image.new("CMYK", (5, 4), (0, 255, 255, 0)), "JPEG"))
    assert cmyk.shape == (4, 5, 3)
    assert (cmyk[..., 0] > 200).all()
    assert (cmyk[..., 1:] < 60).all()


def test_ids_are_what_the_file_stores():
    palette = Image.fromarray(GREY % 3).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    np.testing.assert_array_equal(decode.decode_ids(encoded(palette)), GREY % 3)
    np.testing.assert_array_equal(decode.decode_ids(encoded(Image.fromarray(GREY > 9))), GREY > 9)
    thrice = Image.fromarray(np.repeat(GREY[..., None], 3, -1))
    np.testing.assert_array_equal(decode.decode_ids(encoded(thrice)), GREY)
    with pytest.raises(SegzooError, match=r"road\.png: the mask holds colours"):
        decode.decode_ids(encoded(Image.fromarray(COLOR)), "road.png")


def test_orientation_is_followed_when_asked():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    data = encoded(Image.fromarray(COLOR), "PNG", exif=exif)
    np.testing.assert_array_equal(decode.decode_image(data), COLOR)
    np.testing.assert_array_equal(decode.decode_image(data, upright=True), np.rot90(COLOR, -1))
    assert decode.image_shape(data) == (4, 5)
    assert decode.image_shape(data, upright=True) == (5, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.png: the file is empty"),
        (b"no image at all", "a.png: not an image"),
        (decode.encode_png(COLOR)[:50], "a.png: the image is damaged or cut off"),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 9)), "a.png: .*more than 8 bits"),
    ],
    ids=["empty", "text", "cut", "16-bit"],
)
def test_unreadable_images_name_their_file(data, message):
    with pytest.raises(SegzooError, match=message):
        decode.decode_image(data, name="a.png")


def test_cut_off_jpeg_is_refused():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    assert decode.is_plain_jpeg(data)
    with pytest.raises(SegzooError, match="damaged or cut off"):
        decode.decode_image(data[: len(data) // 2])


def test_pages_of_a_stack():
    pages = [Image.fromarray(GREY + i) for i in range(3)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(decode.decode_pages(data), [GREY, GREY + 1, GREY + 2])
    with pytest.raises(SegzooError, match=r"s\.tif: "):
        decode.decode_pages(data[:200], "s.tif")


@pytest.mark.parametrize(
    "array", [COLOR.astype(np.float32), COLOR[..., :2], GREY.astype(np.int32), COLOR[None]]
)
def test_only_what_png_holds_is_encoded(array):
    with pytest.raises(SegzooError, match="cannot write an array"):
        decode.encode_png(array)
