"""The near tier: copies are found, what has nothing in common is not, least of all at distance 0."""

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from engine import Store, StoreDamagedError
from engine.images import fingerprint
from engine.images.canonical import HEADER_BYTES, from_array
from engine.records import LookupResult, NearHit
from engine.search import near
from engine.storage.extents import FINGERPRINTS, PIXELS
from engine.storage.extents import HEADER_BYTES as EXTENT_HEADER
from engine.storage.rows import u64

Mask = npt.NDArray[np.bool_]
NEAR = ["near"]
PHOTOS = Path(__file__).parent.parent / "scripts" / "photos"


def photo(seed: int, side: int = 160) -> Image.Image:
    """A picture with detail on every scale, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for cells in (2, 4, 8, 16, 32):
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel])
            total[..., channel] += np.asarray(layer.resize((side, side))) / cells
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def as_file(image: Image.Image, container: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, container, **options)
    return out.getvalue()


def noise(seed: int, height: int = 20, width: int = 30) -> Mask:
    return np.random.default_rng(seed).integers(0, 2, (height, width, 3)).astype(np.bool_)


def flipped(image: Mask, share: float, seed: int = 0) -> Mask:
    return image ^ (np.random.default_rng(1000 + seed).random(image.shape) < share)


def shape(seed: int, side: int = 64) -> Mask:
    """A segmentation mask: one blob on nothing, grey."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        y, x, h, w = rng.integers(0, side, 4) / [1, 1, 4, 4]
        draw.ellipse((x, y, x + w + 4, y + h + 4), fill=255)
    return np.asarray(image) > 0


def glyph(text: str, side: int = 24) -> Mask:
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((side // 4, side // 8), text, fill=255, font_size=side * 3 // 4)
    return np.asarray(image) > 127


def store_of(where: Path, images: list[npt.NDArray[np.generic]], **options: str) -> None:
    """Images 1 to n of a new store, in this order; each is a file."""
    folder = where.with_suffix(".images")
    folder.mkdir()
    names = []
    for i, image in enumerate(images):
        values = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
        names.append(folder / f"{i}.png")
        Image.fromarray(values).save(names[-1])
    with Store.open(where, create=True, encoder="none") as store:
        assert store.ingest(*names, **options).added == len(images)


def ids(result: LookupResult) -> list[int]:
    return [hit.id for hit in result.near]


def remove(where: Path, id_: int) -> None:
    """What a removal leaves behind as far as a lookup can see: an id without a record."""
    with Store.open(where) as store:
        store.session.become_writer()
        batch = store.session.snapshot.keys.batch()
        batch.delete("records", u64(id_))
        store.session.snapshot.keys.commit(batch)


# --- pictures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("photos") / "store"
    store_of(where, [np.asarray(photo(seed)) for seed in range(12)])
    return where


COPIES = {
    "jpeg": lambda image: as_file(image, "JPEG", quality=30),
    "webp": lambda image: as_file(image, "WEBP", quality=50),
    "half": lambda image: as_file(image.resize((80, 80)), "PNG"),
    "stretched": lambda image: as_file(image.resize((320, 200)), "PNG"),
    "darker": lambda image: as_file(image.point(lambda value: int(value * 0.8)), "PNG"),
    "blurred": lambda image: as_file(image.filter(ImageFilter.GaussianBlur(2)), "PNG"),
    "sixteen bits": lambda image: image,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_near_and_nothing_else_is(photos: Path, how: str) -> None:
    with Store.open(photos, read_only=True) as store:
        for seed in (0, 5, 11):
            query = COPIES[how](photo(seed))
            if how == "sixteen bits":
                query = np.asarray(query).astype(np.uint16) * 257 + 3
            result = store.lookup(query)
            assert result.searched == ("identical", "near")
            assert result.identical == ()
            (hit,) = result.near
            assert hit.id == seed + 1
            assert 0 <= hit.distance <= 31
            assert (hit.pixel_distance, hit.pixel_values, hit.metadata) == (None, None, None)
            assert hit.sources == (str(photos.with_suffix(".images") / f"{seed}.png"),)
            assert hit.source_count == 1
            assert result.milliseconds["near"] > 0


@pytest.mark.slow
def test_copies_of_real_photographs_are_near_and_other_photographs_are_not(tmp_path: Path) -> None:
    paths = sorted(path for path in PHOTOS.iterdir() if path.suffix != ".md")
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(*paths)
        missed = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            for how in ("jpeg", "webp", "darker"):
                result = store.lookup(COPIES[how](image), tiers=NEAR)
                assert {hit.sources[0] for hit in result.near} <= {str(path)}
                missed += [(path.name, how)] * (not result.near)
            assert store.lookup(ImageOps.mirror(image), tiers=NEAR).near == ()
    assert len(paths) > 40
    assert len(missed) <= 3, missed


@pytest.mark.slow
def test_another_picture_is_not_near(photos: Path) -> None:
    with Store.open(photos, read_only=True) as store:
        for seed in range(100, 110):
            assert store.lookup(photo(seed)).near == ()


@pytest.mark.slow
def test_an_image_is_near_only_if_it_is_not_identical(photos: Path) -> None:
    with Store.open(photos, read_only=True) as store:
        both = store.lookup(photo(3))
        assert [hit.id for hit in both.identical] == [4]
        assert both.near == ()
        (hit,) = store.lookup(photo(3), tiers=NEAR).near
        assert (hit.id, hit.distance) == (4, 0)


def test_the_distance_bounds_what_is_found_and_the_nearest_come_first(photos: Path) -> None:
    with Store.open(photos, read_only=True) as store:
        query = COPIES["blurred"](photo(7))
        every = store.lookup(query, max_distance=256).near
        assert {hit.id for hit in every} == set(range(1, 13))
        distances = [hit.distance for hit in every]
        assert distances == sorted(distances)
        assert every[0].id == 8
        for most in (0, distances[0] - 1, distances[0], distances[3], distances[-1]):
            found = store.lookup(query, max_distance=most).near
            assert list(found) == [hit for hit in every if hit.distance <= most]


def test_flat_pictures_and_those_without_content_are_near_nothing(tmp_path: Path) -> None:
    x = np.arange(50) + np.zeros((40, 1))
    flat = [np.full((40, 50, 3), value, np.uint8) for value in (1, 90, 254)]
    faint = [np.dstack([200 + (x > at)] * 3).astype(np.uint8) for at in (10, 11, 30)]
    images: list[npt.NDArray[np.generic]] = [*flat, *faint]
    store_of(tmp_path / "store", images)
    with Store.open(tmp_path / "store", read_only=True) as store:
        for image in [*images, np.full((64, 64, 3), 91, np.uint8)]:
            for most in (0, 31):
                assert store.lookup(image, tiers=NEAR, max_distance=most).near == ()


def test_drawings_in_white_on_transparency_are_near_to_their_copies_alone(tmp_path: Path) -> None:
    transparent = np.zeros((160, 200, 4), np.uint8)
    transparent[..., :3] = 255
    drawn = [transparent.copy() for _ in range(2)]
    drawn[0][20:80, 20:80, 3] = 200
    drawn[1][90:130, 20:180, 3] = 200
    store_of(tmp_path / "store", [*drawn])
    with Store.open(tmp_path / "store", read_only=True) as store:
        for i, image in enumerate(drawn):
            half = np.asarray(Image.fromarray(image).resize((100, 80)))
            for copy in (image, half):
                assert ids(store.lookup(copy, tiers=NEAR)) == [i + 1]


@pytest.mark.slow
@pytest.mark.parametrize("side", [2, 3, 5, 8, 16])
def test_tiny_pictures_that_are_unrelated_are_not_near(tmp_path: Path, side: int) -> None:
    rng = np.random.default_rng(side)
    images = [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for _ in range(25)]
    store_of(tmp_path / "store", [*images])
    with Store.open(tmp_path / "store", read_only=True) as store:
        for i, image in enumerate(images):
            assert ids(store.lookup(image, tiers=NEAR, max_distance=0)) in ([], [i + 1])
            if side >= 8:
                assert set(ids(store.lookup(image, tiers=NEAR))) <= {i + 1}


# --- bit images -----------------------------------------------------------------------------------


def brute_force(query: Mask, image: Mask) -> tuple[int, int]:
    """How many values differ, and the ink of both: the values that are rarer in the query."""
    query, image = (
        np.broadcast_to(one.reshape(*one.shape[:2], -1), (*one.shape[:2], 3))
        for one in (query, image)
    )
    rare = query.sum() * 2 <= query.size
    return int((query != image).sum()), int((query == rare).sum() + (image == rare).sum())


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    percent=st.sampled_from([1, 5, 10, 20, 50, 80, 95]),
    lost=st.sampled_from([0.1, 0.3, 0.6, 1.0]),
    most=st.sampled_from([0, 8, 31, 64, 128, 256]),
    seed=st.integers(0, 10**6),
)
def test_the_distance_of_pixels_is_exact(
    height: int, width: int, percent: int, lost: float, most: int, seed: int
) -> None:
    """What is compared by ``_compared`` is what NumPy compares, and by the same rule."""
    rng = np.random.default_rng(seed)
    query = rng.random((height, width, 3)) < percent / 100
    noise = min(percent, 100 - percent) / 100 * lost  # of all values: as much as a part of the ink
    images = [query ^ (rng.random(query.shape) < noise * k / 4) for k in range(5)]
    pixels = from_array(query)
    canonicals = [bytes(from_array(image).canonical) for image in images]
    found = dict(near._compared(pixels, most, range(5), canonicals))
    for i, image in enumerate(images):
        differ, ink = brute_force(query, image)
        fits = differ * 256 <= most * query.size and differ * 128 <= most * ink
        assert (i in found) == fits
        if fits:
            assert found[i] == differ


@pytest.mark.slow
@pytest.mark.parametrize("keep_pixels", ["auto", "no"])
@pytest.mark.parametrize("inverted", [False, True])
def test_specks_are_near_only_where_they_are_the_same(
    tmp_path: Path, keep_pixels: str, inverted: bool
) -> None:
    """Fifteen specks each: so few that the fingerprints of any two are within 31 bits."""
    rows = np.zeros((12, 64, 64, 3), np.bool_)
    for i, row in enumerate(rows):
        row.reshape(-1)[np.random.default_rng(i).permutation(row.size)[:15]] = True
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows ^ inverted, name="x", keep_pixels=keep_pixels)
        for i, row in enumerate(rows):
            query = row.copy()
            query.reshape(-1)[np.flatnonzero(query)[:1]] = False
            assert ids(store.lookup(query ^ inverted)) == [i + 1]


def test_too_little_ink_for_a_fingerprint_is_not_near_by_it(tmp_path: Path) -> None:
    row = np.zeros((1, 64, 64, 3), np.bool_)
    places = np.random.default_rng(0).permutation(row.size)
    row.reshape(-1)[places[:6]] = True
    query = row[0].copy()
    query.reshape(-1)[places[6:12]] = True
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(row, name="x", keep_pixels="no")
        assert store.lookup(query, max_distance=256).near == ()


@pytest.mark.slow
@pytest.mark.parametrize("keep_pixels", ["auto", "no"])
def test_a_bit_image_with_some_bits_flipped_is_near(tmp_path: Path, keep_pixels: str) -> None:
    rows = np.stack([noise(i) for i in range(50)])
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows, name="x", keep_pixels=keep_pixels)
        for row in range(0, 50, 7):
            for share in (0.01, 0.05):
                query = flipped(rows[row], share, row)
                result = store.lookup(query)
                (hit,) = result.near
                assert hit.id == row + 1
                assert hit.sources == (f"memory:x#{row}",)
                if keep_pixels == "no":
                    assert (hit.pixel_distance, hit.pixel_values) == (None, None)
                else:
                    assert hit.pixel_distance == (query != rows[row]).sum()
                    assert hit.pixel_values == 1800
        assert store.lookup(noise(99)).near == ()
        assert store.lookup(~rows[3]).near == ()  # the negative is as far as can be


def test_bit_images_come_in_the_order_of_their_pixels(tmp_path: Path) -> None:
    query = noise(0)
    rows = np.stack([flipped(query, share, i) for i, share in enumerate([0.08, 0.01, 0.05, 0.03])])
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows, name="x")
        hits = store.lookup(query, max_distance=40).near
    assert [hit.id for hit in hits] == [2, 4, 3, 1]
    assert [hit.pixel_distance for hit in hits] == [
        (query != rows[hit.id - 1]).sum() for hit in hits
    ]


@pytest.mark.slow
@pytest.mark.parametrize("keep_pixels", ["auto", "no"])
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_and_glyphs_agree_by_their_ink_and_not_by_being_blank(
    tmp_path: Path, keep_pixels: str, inverted: bool
) -> None:
    masks = [shape(seed) for seed in range(30)]
    glyphs = [glyph(text, 64) for text in "AbE7ghWxiz+?"]
    dots = [np.zeros((64, 64), np.bool_) for _ in range(10)]
    for i, dot in enumerate(dots):
        dot[5 * i + 3, 60 - 4 * i] = True
    every = [image ^ inverted for image in [*masks, *glyphs, *dots]]
    store_of(tmp_path / "store", [*every], keep_pixels=keep_pixels)
    with Store.open(tmp_path / "store", read_only=True) as store:
        for i, image in enumerate(every):
            for other in store.lookup(image).near:
                unlike, ink = brute_force(image, every[other.id - 1])
                assert unlike <= 0.35 * ink, (i + 1, other)  # a sample is not exact
                assert other.distance > 0
        blank = np.full((64, 64), inverted)
        assert store.lookup(blank).near == ()
        for i in (0, 7, 19, 33, 38):
            copy = every[i].copy()
            y, x = np.nonzero(copy != inverted)
            copy[y[::20], x[::20]] = inverted  # a twentieth of its ink is lost
            assert i + 1 in ids(store.lookup(copy, tiers=NEAR))


@pytest.mark.slow
@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("keep_pixels", ["auto", "no"])
def test_tiny_bit_images_that_differ_are_never_at_distance_0(
    tmp_path: Path, side: int, keep_pixels: str
) -> None:
    rng = np.random.default_rng(side)
    rows = np.unique(rng.integers(0, 2, (60, side, side)).astype(np.bool_), axis=0)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows[..., None], name="x", keep_pixels=keep_pixels)
        for i, image in enumerate(rows):
            for hit in store.lookup(np.repeat(image[..., None], 3, axis=2), tiers=NEAR).near:
                assert hit.id == i + 1 or hit.distance > 0
                assert hit.pixel_distance in (None, (image != rows[hit.id - 1]).sum() * 3)


@pytest.mark.slow
def test_what_is_near_is_ranked_without_its_records(tmp_path: Path) -> None:
    """Ids and distances alone are held while hits are gathered, and all hits come, in order."""
    query = np.random.default_rng(0).random((40, 40, 3)) < 0.5
    rows = np.repeat(query[None], 3000, axis=0)
    rng = np.random.default_rng(1)
    flips = rng.integers(1, 60, len(rows))
    for row, count in zip(rows, flips.tolist(), strict=True):
        row.reshape(-1)[rng.permutation(row.size)[:count]] ^= True
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        assert store.ingest(rows, name="x").duplicates < 100
        pixels = from_array(query)
        found = near.near_images(
            store.session, pixels, fingerprint.candidates(pixels, 31), 31, {1, 2}
        )
        assert all(column.dtype == np.int64 for column in found)
        hits = store.lookup(query, near_limit=None).near
        images = store.info().images
    assert len(hits) == images and len(found.ids) == images - 2
    order = [(hit.pixel_distance, hit.distance, hit.id) for hit in hits]
    assert order == sorted(order)  # type: ignore[type-var]
    assert [id_ for *_, id_ in order if id_ > 2] == found.ids.tolist()
    for hit in hits:
        row = int(hit.sources[0].rpartition("#")[2])
        assert (hit.pixel_distance, hit.pixel_values) == (flips[row], query.size)


def test_only_like_is_compared_with_like(tmp_path: Path) -> None:
    bits = np.repeat(noise(0, 24, 24)[..., :1], 3, axis=2)
    grey = bits.astype(np.uint8) * 200 + 20  # the same drawing, in 8 bits
    taller = bits.reshape(48, 12, 3)  # the same bits, of another size
    store_of(tmp_path / "store", [bits, grey, taller])
    with Store.open(tmp_path / "store", read_only=True) as store:
        every = {"tiers": NEAR, "max_distance": 256}
        assert ids(store.lookup(bits, **every)) == [1]  # type: ignore[arg-type]
        assert ids(store.lookup(grey, **every)) == [2]  # type: ignore[arg-type]
        assert ids(store.lookup(taller, **every)) == [3]  # type: ignore[arg-type]


@pytest.mark.slow
def test_large_bit_images_are_compared_in_full_where_their_files_are_kept(tmp_path: Path) -> None:
    page = np.random.default_rng(0).random((430, 430, 3)) < 0.1  # more than 64 KiB packed
    store_of(tmp_path / "kept", [page], keep_pixels="yes")
    store_of(tmp_path / "not", [page])
    query = page & (np.random.default_rng(1).random(page.shape) > 0.02)
    with Store.open(tmp_path / "kept", read_only=True) as store:
        (hit,) = store.lookup(query).near
        assert hit.pixel_distance == (query != page).sum()
    with Store.open(tmp_path / "not", read_only=True) as store:
        (hit,) = store.lookup(query).near
        assert hit.pixel_distance is None


# --- what is no longer there, or damaged ----------------------------------------------------------


def test_what_was_removed_is_not_near(tmp_path: Path) -> None:
    query = noise(0)
    where = tmp_path / "store"
    store_of(where, [flipped(query, 0.02, i) for i in range(4)])
    remove(where, 2)
    with Store.open(where, read_only=True) as store:
        assert sorted(ids(store.lookup(query))) == [1, 3, 4]


def test_zeros_in_place_of_fingerprints_match_nothing(tmp_path: Path) -> None:
    """A part of an extent whose images are gone may have been given back to the disk."""
    where = tmp_path / "store"
    store_of(where, [noise(0), shape(0, 20), noise(2)])
    path = FINGERPRINTS.path(where, 1)
    with path.open("r+b") as file:
        file.seek(EXTENT_HEADER)
        file.write(bytes(64))
    with Store.open(where, read_only=True) as store:
        for query in (noise(0), shape(0, 20), flipped(np.zeros((20, 30, 3), np.bool_), 0.004)):
            assert store.lookup(query, tiers=NEAR, max_distance=60).near == ()


def test_kept_pixels_that_cannot_be_read_leave_the_fingerprint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = tmp_path / "store"
    store_of(where, [noise(0), noise(1)])
    with Store.open(where, read_only=True) as store:
        place = store.get(1).place
    assert place is not None
    os.truncate(PIXELS.path(where, 1), EXTENT_HEADER + place.offset + HEADER_BYTES)
    with Store.open(where, read_only=True) as store:
        (hit,) = store.lookup(flipped(noise(0), 0.02)).near
    assert (hit.id, hit.pixel_distance) == (1, None)
    assert "cut short" in caplog.text


def test_fingerprints_that_are_gone_are_damage(tmp_path: Path) -> None:
    where = tmp_path / "store"
    store_of(where, [noise(0)])
    FINGERPRINTS.path(where, 1).unlink()
    with Store.open(where, read_only=True) as store:
        assert [hit.id for hit in store.lookup(noise(0), tiers=["identical"]).identical] == [1]
        with pytest.raises(StoreDamagedError, match="engine check"):
            store.lookup(noise(0))


def test_an_empty_store_has_nothing_near(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        assert store.lookup(noise(0)).near == ()
        store.ingest(np.stack([noise(0), noise(1)]), name="x")  # and what comes is seen
        assert ids(store.lookup(flipped(noise(1), 0.01))) == [2]


# --- with the similar tier ------------------------------------------------------------------------


def tone(level: int) -> npt.NDArray[np.uint8]:
    """Unlike pictures whose mean colours an encoder puts in order."""
    picture = np.asarray(photo(level, 64)).astype(np.int64) - 128 + level
    return picture.clip(1, 254).astype(np.uint8)


@pytest.mark.slow
def test_similar_are_k_where_others_took_their_places(tmp_path: Path, tiny_encoder: Path) -> None:
    where, folder = tmp_path / "store", tmp_path / "pictures"
    folder.mkdir()
    base = tone(100)
    rng = np.random.default_rng(0)
    for i in range(20):  # copies of the query: near, and the most similar
        noisy = base + rng.integers(-3, 4, base.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"a{i:02}.png")
    for i in range(40):
        Image.fromarray(tone(60 + 2 * i)).save(folder / f"b{i:02}.png")
    with Store.open(where, create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(folder)
    query = as_file(Image.fromarray(base), "WEBP", quality=90)
    with Store.open(where, read_only=True) as store:
        before = store.lookup(query, k=3)
        close = {hit.id for hit in before.near}
        assert set(range(1, 21)) <= close  # a00 to a19, and the picture they were made of
        assert len(before.similar) == 3
        assert not close & {hit.id for hit in before.similar}
        rest = store.lookup(query, k=1000).similar
        assert len(rest) == 60 - len(close)
        assert before.similar == rest[:3]
    for hit in rest[:8]:
        remove(where, hit.id)
    with Store.open(where, read_only=True) as store:
        assert store.lookup(query, k=3).similar == rest[8:11]
        assert store.lookup(query, k=1000).similar == rest[8:]
        alone = store.lookup(query, k=2, tiers=["similar"])
        assert alone.near == () and len(alone.similar) == 2


def test_tiers_may_be_combined(photos: Path) -> None:
    with Store.open(photos, read_only=True) as store:
        copy = COPIES["jpeg"](photo(2))
        found = store.lookup(copy, tiers=["near", "identical"])
        assert found.searched == ("identical", "near")
        assert ids(found) == [3]
        assert "identical" in found.milliseconds
        alone = store.lookup(copy, tiers=["identical"])
        assert (alone.near, alone.searched) == ((), ("identical",))
        assert "near" not in alone.milliseconds
        (result,) = store.lookup_many(
            [str(photos.with_suffix(".images") / "2.png")], max_distance=0, tiers=NEAR
        )
        assert [hit.distance for hit in result.near] == [0]


@pytest.mark.slow
def test_hits_carry_metadata(tmp_path: Path, tiny_encoder: Path) -> None:
    """As it is in the record; here it is put there by hand."""
    where = tmp_path / "store"
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        photo(i).save(images / f"{i}.png")
    with Store.open(where, create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(images)
        files = store.session
        batch = files.snapshot.keys.batch()
        for id_ in (1, 2, 3):
            record = files.snapshot.record(id_)
            assert record is not None
            fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
            changed = type(record)(**fields | {"metadata": {"label": f"number {id_}"}})
            batch.put("records", u64(id_), changed.pack())
        files.snapshot.keys.commit(batch)
    with Store.open(where, read_only=True) as store:
        same = store.lookup(images / "0.png")
        assert [hit.metadata for hit in same.identical] == [{"label": "number 1"}]
        assert {hit.id: hit.metadata for hit in same.similar} == {
            2: {"label": "number 2"},
            3: {"label": "number 3"},
        }
        copy = store.lookup(COPIES["jpeg"](photo(1)))
        assert [hit.metadata for hit in copy.near] == [{"label": "number 2"}]
        assert isinstance(copy.near[0], NearHit)
