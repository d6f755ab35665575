"""JPEGs decode to the pixels that Pillow makes of them, whichever decoder does it."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.errors import ImageError
from engine.images.decode import decode
from engine.images.rgb_picture import to_rgb8

Array = npt.NDArray[np.uint8]

SIZES = ((1, 1), (7, 9), (8, 8), (16, 17), (33, 31), (64, 50), (100, 3))
QUALITIES = (3, 75, 100)


def shades(height: int, width: int, seed: int = 0) -> Array:
    """A picture with edges and slopes in each channel."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    slopes = np.stack([x * 7, y * 5, (x + y) * 3], axis=-1) + noise
    return (slopes + 90 * ((x // 5 + y // 7) % 2)[..., None]).clip(0, 255).astype(np.uint8)


def saved(array: Array, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", **options)
    return out.getvalue()


def by_pillow(data: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def require_same(data: bytes) -> None:
    found = decode(data)
    assert found.container == "jpeg"
    np.testing.assert_array_equal(to_rgb8(found.pixels), by_pillow(data))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_are_those_of_pillow(height: int, width: int) -> None:
    array = shades(height, width)
    ways = itertools.product(QUALITIES, (0, 1, 2), (False, True), (0, 1, 3))
    for quality, subsampling, progressive, restart in ways:
        options = {"progressive": progressive, "restart_marker_blocks": restart}
        require_same(saved(array, quality=quality, subsampling=subsampling, **options))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_subsampling_of_turbojpeg(subsampling: str, height: int, width: int) -> None:
    array = shades(height, width)
    for quality in QUALITIES:
        require_same(simplejpeg.encode_jpeg(array, quality=quality, colorsubsampling=subsampling))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grey_rgb_and_cmyk(height: int, width: int) -> None:
    array = shades(height, width)
    for progressive in (False, True):
        require_same(saved(array[..., 0], progressive=progressive))
        require_same(saved(array, keep_rgb=True, progressive=progressive))
        four = np.concatenate([array, array[..., :1]], axis=-1)
        out = io.BytesIO()
        Image.fromarray(four, "CMYK").save(out, "JPEG", progressive=progressive)
        require_same(out.getvalue())


@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(1, 100), st.integers(0, 2), st.booleans()
)
def test_any_size_and_quality(
    height: int, width: int, quality: int, subsampling: int, progressive: bool
) -> None:
    data = saved(
        shades(height, width, quality),
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
    )
    require_same(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(shades(31, 50), exif=exif, quality=90)
    turned = Image.open(io.BytesIO(data))
    turned.load()
    shape = (50, 31) if orientation > 4 else (31, 50)
    assert to_rgb8(decode(data).pixels).shape[:2] == shape
    transpose = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    upright = turned.transpose(transpose) if transpose is not None else turned
    np.testing.assert_array_equal(to_rgb8(decode(data).pixels), np.asarray(upright))


def test_black_and_white_stays_a_bit_image() -> None:
    for value in (0, 255):
        flat = np.full((40, 24, 3), value, np.uint8)
        assert decode(saved(flat)).pixels == decode(saved(flat[..., 0])).pixels
        assert decode(saved(flat)).pixels.kind.name == "BITS"


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_damage_is_what_pillow_says_it_is(seed: int, flips: int) -> None:
    """A damaged file is rejected where Pillow rejects it, and else has Pillow's pixels."""
    draw = np.random.default_rng(seed)
    data = bytearray(
        saved(
            shades(40, 56), quality=60, progressive=bool(seed & 1), restart_marker_blocks=seed & 2
        )
    )
    for at in draw.integers(2, len(data), flips):
        data[at] ^= 1 << int(draw.integers(8))
    damaged = bytes(data[: int(draw.integers(len(data) // 2, len(data) + 1))])
    try:
        found = decode(damaged)
    except ImageError:
        with pytest.raises((OSError, SyntaxError, ValueError)):
            by_pillow(damaged)
        return
    if found.container == "jpeg" and Image.open(io.BytesIO(damaged)).getexif().get(0x0112, 1) == 1:
        np.testing.assert_array_equal(to_rgb8(found.pixels), by_pillow(damaged))
