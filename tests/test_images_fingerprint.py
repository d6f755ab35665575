"""Fingerprints: near for copies, far for other pictures, and the same for ever."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from engine.images import canonical as px
from engine.images import fingerprint as fp
from engine.images.canonical import from_array, from_canonical
from engine.images.pil_images import from_image
from engine.sources import synthetic

NEAR = 31  # bits of 256: what PDQ's authors call a match


def detailed(seed: int, side: int = 256) -> Image.Image:
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
    original = detailed(seed)
    copies = {
        "jpeg": again_as(original, "JPEG", quality=50),
        "webp": again_as(original, "WEBP", quality=50),
        "half": original.resize((128, 128)),
        "larger": original.resize((400, 400)),
        "squeezed": original.resize((300, 200)),
        "small": original.resize((100, 100)),
        "a third": original.resize((85, 85), Image.Resampling.LANCZOS),
        "gamma": original.point([round(255 * (v / 255) ** 1.3) for v in range(256)] * 3),
        "blurred": original.filter(ImageFilter.GaussianBlur(2)),
        "brighter": original.point(lambda value: min(255, value + 10)),
    }
    far = {
        name: d for name, copy in copies.items() if (d := distance(of(original), of(copy))) > NEAR
    }
    assert not far


@pytest.mark.parametrize("side", [24, 48, 100])
def test_a_copy_of_a_small_picture_is_near(side):
    original = detailed(5, 256).resize((side, side), Image.Resampling.LANCZOS)
    for larger in (side * 3 // 2, side * 2, side * 5):
        assert distance(of(original), of(original.resize((larger, larger)))) <= NEAR
    if side > 32:  # below, JPEG's blocks are as large as what the picture is made of
        assert distance(of(original), of(again_as(original, "JPEG", quality=70))) <= NEAR


def test_another_picture_is_far():
    prints = [of(detailed(seed)) for seed in range(5)]
    for i, one in enumerate(prints):
        for other in prints[:i]:
            assert distance(one, other) > 2 * NEAR


def test_the_same_picture_in_another_container_has_the_same_fingerprint():
    original = detailed(9, 64)
    assert of(again_as(original, "PNG")) == of(again_as(original, "BMP")) == of(original)


def test_a_16_bit_picture_is_near_its_8_bit_copy():
    eight = np.asarray(detailed(4))
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


def sparse(seed: int, share: float, side: int = 100) -> np.ndarray:
    """A mask of a few strokes with about this share of ink, grey: three equal channels."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side), bool)
    while image.mean() < share:
        y, x = rng.integers(0, side, 2)
        length = int(rng.integers(1, 9))
        if rng.random() < 0.5:
            image[y, x : x + length] = True
        else:
            image[y : y + length, x] = True
    return image


@pytest.mark.parametrize("share", [0.01, 0.04, 0.15])
@pytest.mark.parametrize("inverted", [False, True])
def test_unrelated_masks_with_little_ink_are_far_and_copies_near(share, inverted):
    prints = []
    for seed in range(6):
        image = sparse(seed, share)
        copy = image & (np.random.default_rng(99).random(image.shape) > 0.05)  # 5 % of the ink gone
        one = fp.fingerprint(from_array(image ^ inverted))
        ways = fp.candidates(from_array(copy ^ inverted), NEAR)
        assert min(distance(one[0], way.tobytes()) for way in ways) <= NEAR
        assert one[1] >= 50
        prints.append(one[0])
    for i, one in enumerate(prints):
        assert all(distance(one, other) > 2 * NEAR for other in prints[:i])


def test_an_image_and_its_negative_have_opposite_fingerprints():
    for image in (bit_image(0), sparse(0, 0.02), sparse(0, 0.2)):
        one = fp.fingerprint(from_array(image))
        other = fp.fingerprint(from_array(~image))
        assert distance(one[0], other[0]) == 256
        assert one[1] == other[1]


@given(
    st.sampled_from([1.7, 1.8, 1.9, 2, 6.8, 7, 7.2, 7.5, 24, 25, 26, 27, 50, 74, 76, 93, 98.2]),
    st.integers(0, 10**6),
)
def test_a_copy_is_near_however_close_its_ink_is_to_where_pools_grow(percent, seed):
    """A query has a fingerprint for each size of pool; one of them is near the stored one."""
    rng = np.random.default_rng(seed)
    image = rng.random((60, 60, 3)) < percent / 100
    copy = image ^ ((rng.random(image.shape) < 0.05) & (image == (percent <= 50)))  # of the ink
    for query, stored in ((copy, image), (image, copy)):
        ways = fp.candidates(from_array(query), NEAR)
        print_ = fp.fingerprint(from_array(stored))[0]
        assert min(distance(print_, way.tobytes()) for way in ways) <= NEAR


DENSITIES = [0.5, 1, 2, 5, 10, 15, 20, 25, 27, 29, 30, 31, 32, 33, 35, 40, 50]  # % of ink


def drawn(rng: np.random.Generator, side: int, share: float) -> np.ndarray:
    """A mask of independent values with about this share of ones."""
    return rng.random((side, side, 3)) < share


def blobs(rng: np.random.Generator, side: int, share: float) -> np.ndarray:
    """A grey mask of smooth blobs with this share of ones."""
    cells = rng.standard_normal((max(5, side // 6),) * 2).astype(np.float32)
    image = np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC))
    return np.repeat((image < np.quantile(image, share))[..., None], 3, axis=2)


def is_near(query: np.ndarray, stored: np.ndarray) -> bool:
    print_, quality = fp.fingerprint(from_array(stored))
    ways = fp.candidates(from_array(query), NEAR)
    return quality >= fp.min_quality(px.Kind.BITS) and any(
        distance(print_, way.tobytes()) <= NEAR for way in ways
    )


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("make", [drawn, blobs])
@pytest.mark.parametrize("side", [16, 28, 64, 150])
@pytest.mark.parametrize("inverted", [False, True])
def test_of_every_density_images_say_something_and_their_copies_are_near(make, side, inverted):
    """With up to a tenth of the ink flipped, 0.1 to 2 % of all values; and each may be the query."""
    asked = found = images = 0
    for percent in DENSITIES:
        before = None
        for seed in range(12):
            rng = np.random.default_rng([seed, side, int(percent * 10)])
            image = make(rng, side, percent / 100) ^ inverted
            ink = min(image.sum(), image.size - image.sum()) * min(1, 256 * 256 / image.size)
            if ink < 32:
                continue
            images += 1
            quality = fp.fingerprint(from_array(image))[1]
            assert quality >= fp.min_quality(px.Kind.BITS), (percent, seed)
            for share in (0.1, 0.5, 1, 2):
                if share <= percent / 10:
                    copy = image ^ (rng.random(image.shape) < share / 100)
                    asked += 2
                    found += is_near(copy, image) + is_near(image, copy)
            # Few pixels of few sorts of blobs may well be alike.
            if before is not None and (make is drawn or side >= 64):
                assert not is_near(image, before), (percent, seed)
            before = image
    assert images > 100 and found >= 0.99 * asked > 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.29, 0.31, 0.69, 0.71])
def test_pools_that_set_most_of_the_bits_are_not_pooled_again(share):
    """Of images with a quarter to a third of ink some are pooled, and then have much: 1 in 100."""
    rng = np.random.default_rng(0)
    rows = rng.random((1500, 64 * 64 * 3), np.float32) < share
    packed = np.packbits(rows, axis=1)
    _, qualities = fp.fingerprint_bits(packed, 64 * 64 * 3)
    assert qualities.min() >= 30


@given(st.integers(0, 100), st.floats(0, 0.5), st.sampled_from([8, 20, 40]), st.integers(0, 10**6))
def test_the_candidates_hold_the_sort_of_pool_that_any_near_image_has(percent, flips, side, seed):
    """``most`` is how far the two are apart at any size of pool, near or not."""
    rng = np.random.default_rng(seed)
    stored = rng.random((side, side, 3)) < percent / 100
    query = stored ^ (rng.random(stored.shape) < flips)
    count = stored.size

    def every(image: np.ndarray) -> list[bytes]:
        packed = np.packbits(image.reshape(1, -1), axis=1)
        return [
            fp._pooled(packed, count, 3, each, zeros=zeros)[0].tobytes()
            for each in fp._pools(count)
            for zeros in (False, True)
        ]

    of_stored, of_query = every(stored), every(query)
    most = max(distance(*pair) for pair in zip(of_stored, of_query, strict=True))
    print_, _ = fp.fingerprint(from_array(stored))
    ways = {way.tobytes() for way in fp.candidates(from_array(query), most)}
    same = [one for one, other in zip(of_query, of_stored, strict=True) if other == print_]
    ones = [int.from_bytes(one).bit_count() for one in same]
    says = [one for one, n in zip(same, ones, strict=True) if min(n, 256 - n) >= 8]
    assert not says or ways & set(says)


def test_what_says_nothing_is_compared_with_nothing():
    blank = np.zeros((50, 50, 3), bool)
    assert len(fp.candidates(from_array(blank), 256)) == 0
    blank[3, 3] = True
    assert len(fp.candidates(from_array(blank), 31)) == 0
    flat = np.full((60, 50, 3), 77, np.uint8)
    assert len(fp.candidates(from_array(flat), 256)) == 0
    assert len(fp.candidates(from_image(detailed(0)), 31)) == 1


def test_the_samples_of_a_grey_image_are_as_many_pixels():
    """All three channels of a pixel are the same bit: a second one would tell nothing."""
    places, masks = fp._places(16 * 16 * 3, 3, 1)
    values = places * 8 + 7 - np.log2(masks).astype(int)
    assert len(set((values // 3).tolist())) == 256
    assert (np.bincount(values % 3, minlength=3) > 50).all()  # of every channel some


@pytest.mark.parametrize("count", [768, 30_000, 200_000, 3_000_000])
@pytest.mark.parametrize("each", [4, 64])
def test_a_larger_pool_holds_the_smaller_one_and_no_place_twice(count, each):
    if each * 256 > count:
        each = count // 256

    def values(each):
        places, masks = fp._places(count, 3, each)
        assert places.shape == (each * 256,)
        return places * 8 + 7 - np.log2(masks).astype(int)

    large = values(each)
    assert large.min() >= 0 and large.max() < count
    assert len(set(large.tolist())) == len(large)
    assert (large[:256] == values(1)).all()
    if each > 2:
        assert (large[:512] == values(2)).all()


# --- odd sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 5), (1, 3000), (3000, 1), (64, 63)])
def test_every_size_has_a_fingerprint(shape, dtype):
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(dtype)
    bits, quality = fp.fingerprint(from_array(array))
    assert len(bits) == fp.FINGERPRINT_BYTES
    assert 0 <= quality <= 100
    assert fp.fingerprint(from_array(array)) == (bits, quality)
