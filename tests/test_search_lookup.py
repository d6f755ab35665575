"""The read path: what each tier answers, and that "identical" is never wrong."""

import io
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damage import flip
from helpers import mask, picture, save
from PIL import Image

from engine import EncoderError, ImageError, PackedBits, Store, StoreDamagedError, UsageError
from engine.config import Limits
from engine.images import canonical, hashing
from engine.records import LookupResult
from engine.storage.extents import HEADER_BYTES, PIXELS


def encoded(array: np.ndarray, container: str) -> bytes:
    values = array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array
    out = io.BytesIO()
    Image.fromarray(values).save(out, container)
    return out.getvalue()


def proof_of(array: np.ndarray) -> bytes:
    return hashing.proof(canonical.from_array(array).canonical)


def only(result: LookupResult) -> tuple[int, tuple[str, ...], str]:
    """The one identical hit of a result."""
    (hit,) = result.identical
    assert hit.source_count == len(hit.sources)
    return hit.id, hit.sources, hit.verified


# --- images that share a key ----------------------------------------------------------------------


def constant_key(canonical: bytes, seed: int) -> bytes:
    return b"\x07" * hashing.KEY_BYTES


def use_key(monkeypatch: pytest.MonkeyPatch, key: Callable[[bytes, int], bytes]) -> None:
    monkeypatch.setattr(hashing, "key", key)
    monkeypatch.setattr(hashing, "keys", lambda rows, seed: [key(row, seed) for row in rows])


def two_keys(canonical: bytes, seed: int) -> bytes:
    return bytes([hashing.proof(canonical)[0] & 1]) * hashing.KEY_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "keep_pixels"),
    [(constant_key, "yes"), (constant_key, "auto"), (constant_key, "no"), (two_keys, "auto")],
)
def test_images_that_share_a_key_are_never_mixed_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    key: Callable[[bytes, int], bytes],
    keep_pixels: str,
) -> None:
    use_key(monkeypatch, key)
    # Collisions inside a commit and across commits.
    limits = Limits(chunk_rows=8, chunk_files=5)
    images = {f"picture-{i}": picture(i) for i in range(12)}
    images |= {f"mask-{i}": mask(i) for i in range(12)}
    first, later = tmp_path / "first", tmp_path / "later"
    sources: dict[str, set[str]] = {}
    for folder, names in ((first, list(images)[::2]), (later, list(images))):
        folder.mkdir()
        for name in names:  # half of the images are met again, in another container
            path = folder / f"{name}.{'png' if folder is first else 'bmp'}"
            sources.setdefault(name, set()).add(str(save(path, images[name])))
    rows = tmp_path / "rows.npy"
    np.save(rows, np.stack([mask(100 + i) for i in range(20)]))
    images |= {f"row-{i}": mask(100 + i) for i in range(20)}
    sources |= {f"row-{i}": {f"{rows}#{i}"} for i in range(20)}

    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none", limits=limits) as store:
        store.ingest(first, keep_pixels=keep_pixels)
    with Store.open(where, limits=limits) as store:
        store.ingest(rows, later, keep_pixels=keep_pixels)
        again = store.ingest(rows, first, later, keep_pixels=keep_pixels)
        assert (again.added, again.unchanged) == (0, again.seen)

    ids = set()
    with Store.open(where, read_only=True) as reader:
        for name, image in images.items():
            kept = image.dtype == np.bool_ and keep_pixels != "no"
            id_, found, verified = only(reader.lookup(image))
            assert set(found) == sources[name]
            assert verified == ("bytes" if kept else "digest")
            assert reader.get(id_).proof == proof_of(image)
            # A container that was never ingested can only be found by its pixels.
            assert only(reader.lookup(encoded(image, "tiff")))[0] == id_
            for path in sources[name]:
                assert only(reader.lookup(path))[0] == id_
            ids.add(id_)
        for seed in range(1000, 1010):
            assert reader.lookup(picture(seed)).identical == ()
            assert reader.lookup(mask(seed)).identical == ()
        assert ids == set(range(1, len(images) + 1))
        assert len(reader) == len(images)
        assert reader.check().problems == ()
    assert caplog.text == ""  # that two images share a key is no damage


def test_a_damaged_image_among_others_of_its_key_is_still_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, constant_key)
    rows = tmp_path / "rows.npy"
    np.save(rows, np.stack([mask(i) for i in range(6)]))
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest(rows)
        place = store.get(3).place
    assert place is not None
    flip(where / "pixels" / "00000001.blobs", HEADER_BYTES + place.offset + place.length - 1)
    with Store.open(where) as store:
        for i in range(6):
            id_, _, verified = only(store.lookup(mask(i)))
            assert id_ == i + 1
            assert verified == ("digest" if id_ == 3 else "bytes")
        assert store.lookup(mask(50)).identical == ()


def test_no_memory_is_taken_for_kept_pixels_of_another_length(tmp_path: Path) -> None:
    """A row may say that they are as long as a file with a hole in it."""
    where = tmp_path / "store"
    images = np.stack([mask(0), mask(1)])
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest(images, name="some")
        snapshot = store.session.snapshot
        key = snapshot.record(1).key
        (row,) = snapshot.image_of(key)
        assert row.place is not None
        claimed = row._replace(place=row.place._replace(length=64 << 20))
        store.session.writer.put_rows([snapshot.tables.images.put(key, claimed)])
    os.truncate(PIXELS.path(where, 1), 65 << 20)
    near_query = mask(0) ^ (np.arange(mask(0).size).reshape(mask(0).shape) % 200 == 0)
    with Store.open(where, read_only=True) as store:
        store.lookup(mask(1))
        tracemalloc.start()
        try:
            _, _, verified = only(store.lookup(mask(0)))
            near = store.lookup(near_query).near
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert verified == "digest"
    assert [(hit.id, hit.pixel_distance) for hit in near] == [(1, None)]
    assert most < 8 << 20


@pytest.mark.slow
def test_images_that_are_looked_up_together_take_a_bounded_share_of_memory(tmp_path: Path) -> None:
    images = np.zeros((200, 512, 512), np.uint8)
    with Store.open(tmp_path / "store", create=True, encoder="none", memory="128M") as store:
        store.ingest(images[:1], name="one")
        tracemalloc.start()
        try:
            found = store.find_identical(images)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (found == 1).all()
    assert most < images.nbytes


# --- the identical tier ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 20 bit images, rows of an array, and a picture; it has no encoder."""
    folder = tmp_path_factory.mktemp("masks")
    np.save(folder / "masks.npy", np.stack([mask(i) for i in range(20)]))
    save(folder / "picture.png", picture(0))
    with Store.open(folder / "store", create=True, encoder="none") as store:
        store.ingest(folder / "masks.npy", folder / "picture.png")
    return folder


def test_an_image_is_found_in_any_container(masks: Path) -> None:
    with Store.open(masks / "store") as store:
        for container in ("png", "bmp", "tiff", "gif"):
            assert only(store.lookup(encoded(mask(4), container)))[0] == 5
        assert only(store.lookup(f"{masks}/masks.npy#4"))[0] == 5
        assert only(store.lookup(mask(4)))[0] == 5
        assert only(store.lookup(Image.fromarray(mask(4).astype(np.uint8) * 255)))[0] == 5


def test_one_changed_bit_is_another_image(masks: Path) -> None:
    changed = mask(4)
    changed[3, 3, 0] ^= True
    with Store.open(masks / "store") as store:
        assert store.lookup(changed).identical == ()


def test_pixels_of_another_shape_are_another_image(masks: Path) -> None:
    with Store.open(masks / "store") as store:
        assert store.lookup(mask(4).reshape(8, 32, 3)).identical == ()
        assert store.lookup(np.ascontiguousarray(picture(0).transpose(1, 0, 2))).identical == ()


def test_a_path_is_looked_up_as_a_str_or_as_a_path(masks: Path) -> None:
    path = masks / "picture.png"
    with Store.open(masks / "store") as store:
        assert only(store.lookup(path)) == only(store.lookup(str(path)))
        assert only(store.lookup(path))[1] == (str(path),)


def test_the_result_says_what_was_asked_and_searched(masks: Path) -> None:
    with Store.open(masks / "store") as store:
        result = store.lookup(f"{masks}/masks.npy#4")
    assert result.query == f"{masks}/masks.npy#4"
    assert result.searched == ("identical", "near")
    assert set(result.milliseconds) <= {"decode", "identical", "near"}
    assert result.near == result.similar == ()


def test_hits_are_capped_in_sources_and_not_in_their_count(tmp_path: Path) -> None:
    rows = tmp_path / "equal.npy"
    np.save(rows, np.stack([mask(1)] * 30))
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(rows)
        (hit,) = store.lookup(mask(1)).identical
        assert (len(hit.sources), hit.source_count) == (10, 30)
        assert store.sources(hit.id) == [f"{rows}#{i}" for i in range(30)]


def test_kept_pixels_that_are_damaged_never_make_a_wrong_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tmp_path / "rows.npy"
    np.save(rows, np.stack([mask(i) for i in range(3)]))
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest(rows)
        place = store.get(2).place
    assert place is not None
    blobs = where / "pixels" / "00000001.blobs"
    flip(blobs, HEADER_BYTES + place.offset + canonical.HEADER_BYTES)
    as_damaged = mask(1)
    as_damaged.reshape(-1)[3] ^= True  # the bit that was flipped on disk
    with Store.open(where) as store:
        assert only(store.lookup(mask(1)))[::2] == (2, "digest")
        assert "damaged" in caplog.text
        assert store.lookup(as_damaged).identical == ()
        append, image = store.check().problems
        assert append.part == "pixels/00000001.blobs"
        assert image.what == "the kept pixels of image 2 are damaged or lost"

    os.truncate(blobs, HEADER_BYTES + place.offset)
    with Store.open(where) as store:
        assert only(store.lookup(mask(0)))[::2] == (1, "bytes")
        assert only(store.lookup(mask(1)))[::2] == (2, "digest")
        assert not store.check().ok


# --- the similar tier -----------------------------------------------------------------------------


def shade(level: int) -> np.ndarray:
    """Pictures that an encoder of mean colours orders by their level."""
    array = np.full((16, 16, 3), 128, np.uint8)
    array[:8, :, 0] = level
    array[8:, :, 1] = 255 - level
    return array


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A store of ten pictures, each a little unlike the one before, with their vectors."""
    folder = tmp_path_factory.mktemp("shades")
    for i in range(10):
        save(folder / f"{i}.png", shade(20 * i))
    with Store.open(folder / "store", create=True, encoder=str(tiny_encoder)) as store:
        assert store.ingest(folder).added == 10
    return folder


@pytest.mark.slow
def test_similar_images_come_best_first(shades: Path) -> None:
    with Store.open(shades / "store") as store:
        result = store.lookup(shade(63), k=10)
    assert result.identical == ()
    assert result.searched == ("identical", "near", "similar")
    scores = [hit.score for hit in result.similar]
    assert scores == sorted(scores, reverse=True)
    assert result.similar[0].sources == (f"{shades}/3.png",)
    assert all(-1 <= score <= 1 for score in scores)


def test_an_image_is_listed_in_its_strictest_tier_only(shades: Path) -> None:
    with Store.open(shades / "store") as store:
        result = store.lookup(shades / "3.png", k=10)
    identical = {hit.id for hit in result.identical}
    assert identical == {4}
    assert {hit.id for hit in result.similar} == set(range(1, 11)) - identical


def test_without_the_identical_tier_the_image_itself_is_the_most_similar(shades: Path) -> None:
    with Store.open(shades / "store") as store:
        result = store.lookup(shades / "3.png", k=1, tiers=["similar"])
    assert result.searched == ("similar",)
    assert result.identical == ()
    assert result.similar[0].id == 4
    assert result.similar[0].score == pytest.approx(1, abs=1e-5)


def test_only_the_identical_tier_encodes_nothing(shades: Path) -> None:
    with Store.open(shades / "store") as store:
        result = store.lookup(shade(63), tiers=["identical"])
    assert result.similar == ()
    assert "encode" not in result.milliseconds


@pytest.mark.parametrize("query", ["3.png", "a picture that is not there"])
def test_k_bounds_the_similar_images(shades: Path, query: str) -> None:
    found: str | np.ndarray = f"{shades}/3.png" if query == "3.png" else shade(63)
    with Store.open(shades / "store") as store:
        sizes = {k: len(store.lookup(found, k=k).similar) for k in (1, 4, 1000, 10**12)}
    most = 9 if query == "3.png" else 10
    assert sizes == {1: 1, 4: 4, 1000: most, 10**12: most}


def test_min_score_leaves_out_what_is_less_alike(shades: Path) -> None:
    with Store.open(shades / "store") as store:
        every = store.lookup(shade(63)).similar
        some = store.lookup(shade(63), min_score=every[4].score - 1e-6).similar
        assert some == every[:5]
        assert store.lookup(shade(63), min_score=1.0).similar == ()


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [{7}, {2, 4, 9}, set(range(1, 6)), set(range(1, 11)), {4}])
def test_the_most_similar_among_some_are_all_there(shades: Path, wanted: set[int]) -> None:
    with Store.open(shades / "store") as store:
        for query in (f"{shades}/3.png", shade(63)):
            every = store.lookup(query, k=10)
            for k in (1, 2, 3, 10, 1000):
                some = store.lookup(query, k=k, ids=wanted)
                assert some.searched == every.searched
                assert some.identical == tuple(h for h in every.identical if h.id in wanted)
                assert some.similar == tuple(h for h in every.similar if h.id in wanted)[:k]
            least = every.similar[4].score - 1e-6
            some = store.lookup(query, ids=wanted, min_score=least)
            assert some.similar == tuple(h for h in every.similar[:5] if h.id in wanted)


def test_near_images_are_among_some_only(tmp_path: Path) -> None:
    query = mask(0, 32, 32)
    copies = np.stack([query] * 6)
    for i, copy in enumerate(copies):
        copy.reshape(-1)[: 7 * i] ^= True
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(copies, name="copies")
        store.remove(ids=[3])
        every = store.lookup(query)
        assert ([hit.id for hit in every.identical], len(every.near)) == ([1], 4)
        for wanted in ({1}, {2, 5}, {3, 6}, {3}, set(range(1, 7))):
            some = store.lookup(query, ids=wanted)
            assert some.identical == tuple(hit for hit in every.identical if hit.id in wanted)
            assert some.near == tuple(hit for hit in every.near if hit.id in wanted)


def test_an_image_that_shares_a_key_with_one_outside_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "key", lambda canonical, seed: bytes(16))
        patch.setattr(hashing, "keys", lambda many, seed: [bytes(16)] * len(many))
        with Store.open(tmp_path / "store", create=True, encoder="none") as store:
            store.ingest(np.stack([mask(i) for i in range(4)]), name="alike")
            for seed in range(4):
                for id_ in range(1, 5):
                    hits = store.lookup(mask(seed), tiers=["identical"], ids=[id_]).identical
                    assert [hit.id for hit in hits] == [id_] * (id_ == seed + 1)


def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path, tiny_encoder: Path) -> None:
    rows = tmp_path / "rows.npy"
    flat = np.full((6, 16, 16, 3), 200, np.uint8)
    flat[np.arange(6), 0, 0, 0] += np.arange(6, dtype=np.uint8)  # one value: hardly another vector
    np.save(rows, flat)
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(rows)
        hits = store.lookup(np.full((16, 16, 3), 90, np.uint8), tiers=["similar"]).similar
    assert sorted(hit.id for hit in hits) == [1, 2, 3, 4, 5, 6]
    assert [hit.id for hit in hits] == [
        hit.id for hit in sorted(hits, key=lambda hit: (-hit.score, hit.id))
    ]


# --- what can be asked ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": 0}, "k must be 1 or more, not 0"),
        ({"k": -3}, "k must be 1 or more, not -3"),
        ({"tiers": ["best"]}, "no tier 'best'"),
        ({"max_distance": -1}, "max_distance= is a number of bits, 0 to 256, not -1"),
        ({"max_distance": 257}, "0 to 256, not 257"),
        ({"max_distance": 31.5}, "0 to 256, not 31.5"),
        ({"max_distance": None}, "0 to 256, not None"),
        ({"k": "a"}, "k must be 1 or more, not 'a'"),
        ({"tiers": "near"}, "tiers is a list of identical, near, similar, not 'near'"),
        ({"tiers": 3}, "tiers is a list of .*, not 3"),
        ({"min_score": 1.5}, "between -1 and 1"),
        ({"min_score": "a"}, "min_score= is a number, or a percentage .* such as 99%.* not 'a'"),
        ({"min_score": float("nan")}, "between -1 and 1"),
        (
            {"tiers": ["near"], "recall": 0.9},
            "recall= is of the similar tier, which is not searched",
        ),
        ({"tiers": ["identical"], "min_score": 0.5}, "min_score= is of the similar tier"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    shades: Path, arguments: dict[str, object], says: str
) -> None:
    with Store.open(shades / "store") as store, pytest.raises(UsageError, match=says):
        store.lookup(shade(0), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", [None, True, {}])
def test_what_is_no_image_at_all_is_a_usage_error(masks: Path, query: object) -> None:
    says = f"a query is a path, .* not {type(query).__name__}$"
    with Store.open(masks / "store") as store, pytest.raises(UsageError, match=says):
        store.lookup(query)  # type: ignore[arg-type]


def test_tiers_may_be_any_iterable(masks: Path) -> None:
    with Store.open(masks / "store") as store:
        result = store.lookup(mask(0), tiers=(name for name in ["near"]))  # type: ignore[arg-type]
    assert result.searched == ("near",)


def test_a_tier_that_the_store_lacks_is_an_error_that_says_how_to_get_it(masks: Path) -> None:
    with Store.open(masks / "store") as store:
        with pytest.raises(UsageError, match="has no similar tier"):
            store.lookup(mask(0), tiers=["similar"])
        assert store.lookup(mask(0)).searched == ("identical", "near")


def test_an_empty_store_finds_nothing(tmp_path: Path, tiny_encoder: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        result = store.lookup(picture(0), k=5)
    assert result.error is None
    assert (result.identical, result.near, result.similar) == ((), (), ())
    assert result.searched == ("identical", "near", "similar")


def test_a_query_that_is_no_image_is_an_image_error(masks: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    with Store.open(masks / "store") as store:
        for broken in (text, b"not an image", b"", tmp_path / "gone.png", f"{masks}/masks.npy#20"):
            with pytest.raises(ImageError):
                store.lookup(broken)
        with pytest.raises(UsageError, match="holds more than one image"):
            store.lookup(masks / "masks.npy")
        with pytest.raises(UsageError, match="dtype"):
            store.lookup(np.zeros((4, 4, 3), np.float32))
        assert only(store.lookup(mask(0)))[0] == 1  # and the store goes on


def test_many_lookups_go_on_after_one_that_cannot_be_read(masks: Path) -> None:
    queries = [f"{masks}/masks.npy#2", f"{masks}/gone.png", f"{masks}/masks.npy"]
    with Store.open(masks / "store") as store:
        results = list(store.lookup_many(queries))
    assert [bool(result.identical) for result in results] == [True, False] + [True] * 20
    assert results[1].error is not None
    assert [result.query for result in results[2:]] == [
        f"{masks}/masks.npy#{row}" for row in range(20)
    ]


def test_lookups_fail_plainly_where_the_keys_are_damaged(masks: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "store"
    shutil.copytree(masks / "store", copy)
    for table in (copy / "keys").glob("*.sst"):
        table.write_bytes(b"\0" * table.stat().st_size)
    with pytest.raises(StoreDamagedError, match="engine check"), Store.open(copy) as store:
        store.lookup(mask(0))


def test_a_file_known_by_its_bytes_is_found_even_where_it_cannot_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(path)

        def refuse(*_: object, **__: object) -> None:
            raise ImageError("too large")

        monkeypatch.setattr("engine.sources.query.decode", refuse)
        for tiers in (None, ["identical"]):
            assert [hit.id for hit in store.lookup(path, tiers=tiers).identical] == [1]
        with pytest.raises(ImageError, match="too large"):
            store.lookup(path.read_bytes() + b"more")


@pytest.mark.slow
def test_identical_images_are_found_without_the_encoder_and_that_is_said(
    tmp_path: Path, tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(tmp_path / "a.png")
    for path in (tmp_path / "store" / "encoder" / "1").iterdir():
        path.unlink()
    with Store.open(tmp_path / "store") as store:
        result = store.lookup(image)
        assert [hit.id for hit in result.identical] == [1]
        assert result.searched == ("identical", "near")
        assert "similar tier was not searched" in caplog.text
        with pytest.raises(EncoderError):
            store.lookup(image, tiers=["similar"])


# --- many at once ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("keep_pixels", ["auto", "no"])
def test_many_are_found_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_pixels: str, cold: bool
) -> None:
    limits = Limits(lookup_rows=50, lookup_probe=4)
    if cold:  # as if nothing were in memory: keys are asked for by many threads
        limits = replace(limits, cold_key_seconds=0)
        monkeypatch.setattr(os, "RWF_NOWAIT", 1 << 30)  # an error at each read, as if it must wait
    images = np.stack([mask(i) for i in range(120)])
    with Store.open(tmp_path / "store", create=True, encoder="none", limits=limits) as store:
        store.ingest(images[:100], name="x", keep_pixels=keep_pixels)
        flipped = images[:100].copy()
        flipped[:, 0, 0, 0] ^= True
        for queries, expected in (
            (images, [*range(1, 101), *[-1] * 20]),
            (flipped, [-1] * 100),
            (images[::-1], [*[-1] * 20, *range(100, 0, -1)]),
            (images[:1], [1]),
        ):
            assert store.find_identical(queries).tolist() == expected
            assert store.find_identical(PackedBits.pack(queries)).tolist() == expected
            one_by_one = [store.lookup(PackedBits.pack(query[None])) for query in queries]
            assert [hit.identical[0].id if hit.identical else -1 for hit in one_by_one] == expected


def test_many_that_share_a_key_or_are_damaged_are_never_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_key(monkeypatch, two_keys)
    images = np.stack([mask(i) for i in range(12)])
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(images[:10], name="x")
        assert store.find_identical(images).tolist() == [*range(1, 11), -1, -1]
        place = store.get(3).place
    assert place is not None
    flip(tmp_path / "store" / "pixels" / "00000001.blobs", HEADER_BYTES + place.offset + 20)
    with Store.open(tmp_path / "store") as store:
        assert store.find_identical(images).tolist() == [*range(1, 11), -1, -1]
        assert "image 3: its kept pixels are damaged" in caplog.text
    os.truncate(tmp_path / "store" / "pixels" / "00000001.blobs", HEADER_BYTES)
    with Store.open(tmp_path / "store") as store:
        assert store.find_identical(images).tolist() == [*range(1, 11), -1, -1]


def test_sources_are_whole_however_an_image_came_by_them(tmp_path: Path) -> None:
    """Rows of runs of several, of runs of one, files: in every order, and told with and without."""
    images = np.stack([mask(i) for i in range(6)])
    scattered = np.stack([images[4], images[1], images[1], mask(9)])
    save(tmp_path / "two.png", images[2])
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(images, name="run")
        assert only(store.lookup(images[2]))[1] == ("memory:run#2",)
        store.ingest(scattered, name="scattered")
        store.ingest(tmp_path / "two.png")
        store.ingest(images, name="again")
        expected = {i: {f"memory:run#{i}", f"memory:again#{i}"} for i in range(6)}
        expected[4].add("memory:scattered#0")
        expected[1] |= {"memory:scattered#1", "memory:scattered#2"}
        expected[2].add(str(tmp_path / "two.png"))
        for i, names in expected.items():
            _, found, _ = only(store.lookup(images[i]))
            assert set(found) == names == set(store.sources(i + 1))
        assert store.check().problems == ()


def test_a_pil_image_is_read_within_the_memory_of_its_store(masks: Path) -> None:
    large = Image.new("RGB", (2000, 2000))
    with (
        Store.open(masks / "store", memory=128 << 20, read_only=True) as store,
        pytest.raises(ImageError, match="raise memory="),
    ):
        store.lookup(large)
    with Store.open(masks / "store", read_only=True) as store:
        assert store.lookup(large).identical == ()


def test_a_pil_image_that_cannot_be_read_is_an_image_error(masks: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), 700, np.uint16)).save(file, "PNG")
    closed = Image.open(file)
    closed.close()
    file.close()
    with (
        Store.open(masks / "store", read_only=True) as store,
        pytest.raises(ImageError, match="a PIL image that cannot be read"),
    ):
        store.lookup(closed)
