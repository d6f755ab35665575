"""Fingerprints: near for copies, far for other pictures, and the same for ever."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine import fingerprint as fp
from engine import pixels as px
from engine.pixels import from_array, from_canonical, from_image
from engine.sources import synthetic

NEAR = 31  # bits of 256: what PDQ's authors call a match


def picture(seed: int, side: int = 256) -> Image.Image:
    """A picture with detail on every scale, and less of it on the smaller ones, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            total[..., channel] += np.asarray(layer) / cells
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def distance(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def of(image: Image.Image) -> bytes:
    return fp.fingerprint(from_image(image))[0]


def again_as(image: Image.Image, form: str, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(io.BytesIO(file.getvalue()))


# --- what is on disk ------------------------------------------------------------------------------


def test_the_fingerprint_of_a_picture_never_changes():
    y, x = np.mgrid[0:96, 0:96]
    bits, quality = fp.fingerprint(from_array((x * y % 256).astype(np.uint8)))
    assert bits.hex() == "0e1f1e0e3e1e7c1ef83ff01ce03e017e00fc01fc0bf0bff4ffc0ffd0fb008800"
    assert quality == 100


@pytest.mark.parametrize(
    ("row", "pinned", "quality"),
    [
        (0, "407afe060cc0195baeb57897d524dd38fdb411f8706de9260492facd5587905d", 98),
        (12345, "216796b1cc8ac5e6faea10fa5e452d1aea224bc823dd2dd79fd9522a38539bab", 97),
    ],
)
def test_the_fingerprint_of_a_bit_image_never_changes(row, pinned, quality):
    image = from_canonical(synthetic.generate(0, row, 1)[0].tobytes())
    assert fp.fingerprint(image) == (bytes.fromhex(pinned), quality)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_is_near(seed):
    original = picture(seed)
    copies = {
        "jpeg": again_as(original, "JPEG", quality=50),
        "webp": again_as(original, "WEBP", quality=50),
        "half": original.resize((128, 128)),
        "larger": original.resize((400, 400)),
        "squeezed": original.resize((300, 200)),
        "small": original.resize((100, 100)),
        "brighter": original.point(lambda value: min(255, value + 10)),
    }
    far = {
        name: d for name, copy in copies.items() if (d := distance(of(original), of(copy))) > NEAR
    }
    assert not far


def test_another_picture_is_far():
    prints = [of(picture(seed)) for seed in range(5)]
    for i, one in enumerate(prints):
        for other in prints[:i]:
            assert distance(one, other) > 2 * NEAR


def test_the_same_picture_in_another_container_has_the_same_fingerprint():
    original = picture(9, 64)
    assert of(again_as(original, "PNG")) == of(again_as(original, "BMP")) == of(original)


def test_a_16_bit_picture_is_near_its_8_bit_copy():
    eight = np.asarray(picture(4))
    sixteen = eight.astype(np.uint16) * 257
    assert fp.fingerprint(from_array(sixteen)) == fp.fingerprint(from_array(eight))


@pytest.mark.parametrize("value", [1, 128, 254])
def test_a_flat_picture_has_no_quality(value):
    flat = np.full((60, 50, 3), value, np.uint8)
    flat[0, 0, 0] = value + 1  # not a bit image
    assert fp.fingerprint(from_array(flat))[1] == 0


# --- bit images -----------------------------------------------------------------------------------


def bit_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (100, 100, 3), np.uint8).astype(bool)


@pytest.mark.parametrize("seed", range(5))
def test_a_bit_image_with_one_percent_of_noise_is_near(seed):
    original = bit_image(seed)
    noise = np.random.default_rng(100 + seed).random(original.shape) < 0.01
    noisy = fp.fingerprint(from_array(original ^ noise))[0]
    assert distance(fp.fingerprint(from_array(original))[0], noisy) <= 12


def test_unrelated_bit_images_differ_in_about_half_of_the_bits():
    prints = [fp.fingerprint(from_array(bit_image(seed)))[0] for seed in range(8)]
    for i, one in enumerate(prints):
        for other in prints[:i]:
            assert 128 - 48 <= distance(one, other) <= 128 + 48


@pytest.mark.parametrize("value", [False, True])
def test_a_flat_bit_image_has_no_quality(value):
    assert fp.fingerprint(from_array(np.full((100, 100, 3), value)))[1] == 0


def test_the_quality_of_a_bit_image_grows_with_its_rarer_value():
    image = bit_image(0)
    sparse = image & bit_image(1) & bit_image(2)
    assert 0 < fp.fingerprint(from_array(sparse))[1] < fp.fingerprint(from_array(image))[1] <= 100


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_fingerprints_of_a_block_are_those_of_its_rows(n, height, width, seed):
    rows = np.random.default_rng(seed).integers(0, 2, (n, height, width, 3), np.uint8)
    packed = px.rows_from_array(rows, px.Kind.BITS)[:, px.HEADER_BYTES :]
    prints, qualities = fp.fingerprint_bits(packed, height * width * 3)
    assert (prints.shape, prints.dtype) == ((n, fp.FINGERPRINT_BYTES), np.uint8)
    singles = [fp.fingerprint(from_array(row)) for row in rows]
    assert [(p.tobytes(), int(q)) for p, q in zip(prints, qualities, strict=True)] == singles


# --- odd sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 5), (1, 3000), (3000, 1), (64, 63)])
def test_every_size_has_a_fingerprint(shape, dtype):
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(dtype)
    bits, quality = fp.fingerprint(from_array(array))
    assert len(bits) == fp.FINGERPRINT_BYTES
    assert 0 <= quality <= 100
    assert fp.fingerprint(from_array(array)) == (bits, quality)
