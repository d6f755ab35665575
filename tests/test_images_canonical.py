"""The canonical form: the same image is the same bytes, in any container, and no other image is."""

import io
import struct

import numpy as np
import pytest
from helpers import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from layouts import chunk
from picture_files import LOSSLESS, PICTURE, SMOOTH, canonical, png16, reason, tiff
from PIL import Image, ImageOps

from engine.errors import ImageError, UsageError
from engine.images import canonical as px
from engine.images.decode import decode
from engine.images.pil_images import from_image
from engine.records import Kind

# Pillow warns of oddities in the broken files made here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

RNG = np.random.default_rng(20240611)


def of_array(array: np.ndarray) -> bytes:
    return bytes(px.from_array(array).canonical)


def body(data: bytes) -> bytes:
    return canonical(data)[px.HEADER_BYTES :]


# --- the same picture in different containers -----------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_picture_is_identical_in_every_lossless_container(name):
    form, options = LOSSLESS[name]
    decoded = decode(encoded(PICTURE, form, **options))
    assert bytes(decoded.pixels.canonical) == of_array(PICTURE)
    assert decoded.container == form.lower()


def test_a_picture_is_identical_as_an_array_and_as_a_pil_image():
    assert from_image(Image.fromarray(PICTURE)).canonical == of_array(PICTURE)
    assert from_image(Image.open(io.BytesIO(encoded(PICTURE, "PNG")))).canonical == of_array(
        PICTURE
    )


@given(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9).map(lambda s: (*s[:2], 3))
    )
)
def test_any_picture_survives_png_and_arrays(picture):
    picture[0, 0] = 77  # not a bit image, which an array of 0 and 255 would not be either
    assert canonical(encoded(picture, "PNG")) == of_array(picture)


def test_one_changed_value_makes_another_image():
    changed = PICTURE.copy()
    changed[20, 20, 1] ^= 1
    assert of_array(changed) != of_array(PICTURE)


def test_the_header_is_as_documented():
    assert of_array(PICTURE)[:16] == bytes([1, 2, 3, 0]) + struct.pack(">III", 37, 41, 1)
    assert of_array(PICTURE)[16:] == PICTURE.tobytes()


def test_the_shape_is_part_of_the_identity():
    flat = PICTURE.reshape(1, -1, 3)
    assert of_array(flat)[16:] == of_array(PICTURE)[16:]
    assert of_array(flat) != of_array(PICTURE)


# --- grey, alpha, palettes, CMYK ------------------------------------------------------------------


def test_grey_is_rgb_with_equal_channels():
    grey = PICTURE[..., 0]
    colour = np.repeat(grey[..., None], 3, axis=-1)
    assert canonical(encoded(grey, "PNG")) == canonical(encoded(colour, "PNG")) == of_array(grey)


def test_opaque_alpha_is_dropped():
    opaque = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    assert canonical(encoded(opaque, "PNG")) == of_array(PICTURE) == of_array(opaque)


def test_alpha_is_kept_where_one_pixel_is_not_opaque():
    alpha = np.full(PICTURE.shape[:2], 255, np.uint8)
    alpha[3, 4] = 254
    picture = np.dstack([PICTURE, alpha])
    decoded = decode(encoded(picture, "PNG")).pixels
    assert decoded.channels == 4
    assert bytes(decoded.canonical) == of_array(picture) != of_array(PICTURE)
    assert canonical(encoded(picture, "WEBP", lossless=True, exact=True)) == of_array(picture)


def test_grey_with_alpha_is_rgba():
    grey, alpha = PICTURE[..., 0], PICTURE[..., 1]
    image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    assert canonical(encoded(image, "PNG")) == of_array(np.dstack([grey, grey, grey, alpha]))
    image.putalpha(255)
    assert canonical(encoded(image, "PNG")) == of_array(grey)


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "TGA"])
def test_a_palette_is_looked_up(form):
    image = Image.fromarray(PICTURE).quantize(16)
    assert canonical(encoded(image, form)) == of_array(np.asarray(image.convert("RGB")))
    assert from_image(image).canonical == of_array(np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 160, 10))])
def test_a_transparent_palette_is_rgba(transparency):
    image = Image.fromarray(PICTURE).quantize(16)
    decoded = decode(encoded(image, "PNG", transparency=transparency)).pixels
    image.info["transparency"] = transparency
    assert decoded.channels == 4
    assert bytes(decoded.canonical) == of_array(np.asarray(image.convert("RGBA")))


def test_the_alpha_of_a_tga_palette_is_not_lost():
    def tga(alpha: int) -> bytes:
        header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x20)
        return header + bytes([1, 2, 3, alpha, 4, 5, 6, 255]) + bytes([0, 1])

    assert canonical(tga(0)) == of_array(np.array([[[3, 2, 1, 0], [6, 5, 4, 255]]], np.uint8))
    assert canonical(tga(255)) == of_array(np.array([[[3, 2, 1], [6, 5, 4]]], np.uint8))


def test_cmyk_is_converted():
    data = encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")
    assert canonical(data) == of_array(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


# --- orientation, frames --------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURE, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert canonical(data) == of_array(np.asarray(upright))
    if form != "JPEG":
        turned = px.from_canonical(canonical(data))
        assert (turned.width == 37) == (orientation > 4)


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_unknown_orientation_is_none(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert canonical(encoded(PICTURE, "PNG", exif=exif)) == of_array(PICTURE)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts_and_how_many_there_are(form):
    frames = [Image.new("RGB", (20, 30), colour) for colour in ["orange", "navy", "teal"]]
    options = {"lossless": True} if form == "WEBP" else {}
    moving = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    longer = encoded(
        frames[0], form, save_all=True, append_images=[*frames[1:], frames[0]], **options
    )
    still = encoded(frames[0], form, **options)
    assert decode(moving).pixels.frames == 3
    assert body(moving) == body(still) == body(longer)
    assert len({canonical(moving), canonical(still), canonical(longer)}) == 3


def test_a_jpeg_with_a_preview_is_the_still_picture():
    preview = Image.fromarray(PICTURE).resize((8, 8))
    with_preview = encoded(PICTURE, "MPO", save_all=True, append_images=[preview])
    assert canonical(with_preview) == canonical(encoded(PICTURE, "JPEG"))


# --- 16 bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (9, 7, 4)])
def test_a_16_bit_png_is_read_without_loss(shape):
    samples = RNG.integers(0, 65536, shape, np.uint16)
    decoded = decode(png16(samples)).pixels
    assert decoded.kind is Kind.U16
    assert bytes(decoded.canonical) == of_array(samples)
    grey = samples.ndim == 2
    expected = np.repeat(samples[..., None], 3, axis=-1) if grey else samples
    assert bytes(decoded.canonical)[16:] == expected.astype("<u2").tobytes()


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3), (5, 6, 4)])
@given(data=st.data())
@settings(max_examples=10)
def test_16_bit_pictures_that_differ_in_one_low_byte_differ(shape, data):
    samples = data.draw(hnp.arrays(np.uint16, shape))
    place = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
    other = samples.copy()
    other[place] ^= data.draw(st.integers(1, 255))
    assert canonical(png16(samples)) != canonical(png16(other))


@pytest.mark.parametrize("form", ["TIFF", "JPEG2000", "PNG", "PPM"])
def test_16_bit_grey_is_read_without_loss(form):
    samples = RNG.integers(0, 65536, (9, 7), np.uint16)
    data = encoded(samples, form)
    if form == "PPM":
        data = b"P5 7 9 65535\n" + samples.astype(">u2").tobytes()
    other = samples.copy()
    other[4, 4] ^= 1
    assert canonical(data) == of_array(samples) != of_array(other)


@pytest.mark.parametrize("rows", [0, 2], ids=["one-strip", "strips"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_16_bit_colour_tiff_is_read_without_loss(channels, order, rows):
    samples = RNG.integers(0, 65536, (5, 4, channels), np.uint16)
    assert canonical(tiff(samples, order=order, rows=rows)) == of_array(samples)


def test_16_bits_are_never_identical_to_8():
    wide = PICTURE.astype(np.uint16)
    for same in (wide, wide * 256, wide * 257):
        assert canonical(png16(same)) == of_array(same)
        assert of_array(same) != of_array(PICTURE)


def test_16_bit_alpha_is_dropped_only_where_all_of_it_is_opaque():
    samples = RNG.integers(0, 65536, (5, 4, 4), np.uint16)
    samples[..., 3] = 65535
    assert canonical(png16(samples)) == of_array(samples[..., :3])
    samples[2, 2, 3] = 65534
    assert decode(png16(samples)).pixels.channels == 4


def test_the_orientation_of_16_bit_pictures_is_applied():
    samples = RNG.integers(0, 65536, (5, 4, 3), np.uint16)
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # turn it to the right
    exif = b"II*\0" + struct.pack("<IH", 8, 1) + tag + bytes(4)
    assert canonical(png16(samples, chunk(b"eXIf", exif))) == of_array(np.rot90(samples, -1))


def deep_avif() -> bytes:
    data = bytearray(encoded(SMOOTH, "AVIF"))
    data[data.index(b"av1C") + 6] |= 0x40  # high_bitdepth
    return bytes(data)


def deep_jpeg2000() -> bytes:
    data = bytearray(encoded(SMOOTH, "JPEG2000"))
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 15  # the first component's depth, less one
    return bytes(data)


SAMPLES = RNG.integers(0, 65536, (5, 4, 4), np.uint16)
TOO_DEEP = {
    "avif": deep_avif(),
    "jpeg2000": deep_jpeg2000(),
    "tiff-cmyk": tiff(SAMPLES, photometric=5),
    "tiff-32-bit-colour": tiff(SAMPLES[..., :3].astype(np.uint32)),
    "tiff-32-bit-grey": encoded(SAMPLES[..., 0].astype(np.int32), "TIFF"),
    "tiff-float": encoded(SAMPLES[..., 0].astype(np.float32), "TIFF"),
    "pfm": b"Pf 1 1 -1.0\n\0\0\0\0",
}


@pytest.mark.parametrize("name", TOO_DEEP)
def test_what_could_only_be_read_reduced_is_refused(name):
    reason(TOO_DEEP[name])


# --- bit images -----------------------------------------------------------------------------------

BITS = RNG.integers(0, 2, (10, 13, 3), np.uint8)


def test_a_png_of_0_and_255_equals_the_arrays_of_bool_and_of_0_and_1():
    decoded = decode(encoded(BITS * 255, "PNG")).pixels
    assert decoded.kind is Kind.BITS
    assert bytes(decoded.canonical) == of_array(BITS) == of_array(BITS.astype(bool))


@pytest.mark.parametrize("form", ["PNG", "PPM", "BMP", "TIFF", "TGA"])
def test_a_one_bit_file_equals_the_array_of_bool(form):
    mask = BITS[..., 0].astype(bool)
    assert canonical(encoded(Image.fromarray(mask), form)) == of_array(mask)
    assert from_image(Image.fromarray(mask)).canonical == of_array(mask)


def test_bits_are_packed_row_major_from_the_highest_bit_with_zeros_behind_the_last():
    picture = np.array([[[1, 0, 1], [1, 1, 1], [0, 0, 1]]], bool)
    assert of_array(picture)[16:] == bytes([0b10111100, 0b10000000])
    assert len(of_array(np.ones((100, 100, 3), bool))) == 16 + 3750


def test_one_other_value_makes_it_an_8_bit_image():
    values = BITS * 255
    values[4, 4, 1] = 254
    assert decode(encoded(values, "PNG")).pixels.kind is Kind.U8


def test_an_array_of_0_and_255_is_8_bit():
    assert px.from_array(BITS * 255).kind is Kind.U8


def test_bits_with_transparency_keep_their_alpha():
    alpha = np.ones((10, 13, 1), np.uint8)
    assert canonical(encoded(np.dstack([BITS, alpha]) * 255, "PNG")) == of_array(BITS)
    alpha[0, 0] = 0
    decoded = decode(encoded(np.dstack([BITS, alpha]) * 255, "PNG")).pixels
    assert (decoded.kind, decoded.channels) == (Kind.BITS, 4)


@given(
    rows=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda shape: hnp.arrays(np.uint8, st.sampled_from([shape, (*shape, 3)]))
    ),
    kind=st.sampled_from([Kind.BITS, Kind.U8]),
    as_bool=st.booleans(),
)
def test_the_rows_of_a_block_are_the_images_one_by_one(rows, kind, as_bool):
    if kind is Kind.BITS:
        rows = rows % 2
        rows = rows.astype(bool) if as_bool else rows
    else:
        rows.reshape(len(rows), -1)[:, 0] = 200  # an image of 0 and 1 alone would be bits
    block = px.rows_from_array(rows, kind)
    assert block.flags.c_contiguous
    assert [row.tobytes() for row in block] == [of_array(row) for row in rows]


# --- back from canonical bytes --------------------------------------------------------------------


def any_array():
    shapes = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
        lambda side: st.sampled_from([side, (*side, 3), (*side, 4)])
    )
    return st.sampled_from([np.bool_, np.uint8, np.uint16]).flatmap(lambda t: hnp.arrays(t, shapes))


@given(any_array())
def test_canonical_bytes_describe_the_image(array):
    image = px.from_array(array)
    assert px.from_canonical(image.canonical) == image
    assert (image.height, image.width) == array.shape[:2]


@given(any_array(), st.integers(1, 40))
def test_canonical_bytes_of_another_length_are_refused(array, change):
    whole = of_array(array)
    for odd in (whole[:-change], whole + bytes(change)):
        with pytest.raises(ImageError):
            px.from_canonical(odd)


@pytest.mark.parametrize(
    "header",
    [
        (2, Kind.U8, 3, 1, 1, 1),
        (1, 9, 3, 1, 1, 1),
        (1, Kind.U8, 1, 1, 3, 1),
        (1, Kind.U8, 3, 0, 1, 1),
        (1, Kind.U8, 3, 1, 1, 0),
    ],
)
def test_canonical_bytes_with_an_unknown_header_are_refused(header):
    with pytest.raises(ImageError):
        px.from_canonical(px.HEADER.pack(*header) + bytes(3 * header[3]))


@pytest.mark.parametrize(
    "array",
    [np.zeros(5, np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)]
    + [np.zeros((4, 4), dtype) for dtype in (np.float32, np.int64, np.uint32, "U3", object)],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_an_array_that_is_no_image_is_a_usage_error(array):
    with pytest.raises(UsageError):
        px.from_array(array)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0, 3)])
def test_an_image_without_pixels_is_refused(shape):
    with pytest.raises(ImageError):
        px.from_array(np.zeros(shape, np.uint8))
