"""Vectors that images come with: in a stream, in a column of a table, or from a file beside them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from children import report_commits
from helpers import encoded, picture, save, sized
from typer.testing import CliRunner

from engine import Store, UsageError
from engine.cli.app import app
from engine.config import Limits, parse_memory
from engine.errors import SourceError
from engine.sources.source_stream import Sources
from engine.sources.sources_with_vectors import SourcesWithVectors
from engine.sources.vector_files import open_vectors
from engine.storage.changeset import Chunk
from engine.storage.manifest import load
from engine.storage.writer import Writer

DIM = 6
COUNT = 20
ROWS = np.random.default_rng(3).standard_normal((COUNT, DIM)).astype(np.float32)
NAMES = [f"{n:02}.png" for n in range(COUNT)]
LIMITS = Limits(chunk_files=3, extent_rows=8, removal_batch=4, compact_batch=5)


def opened(path: Path, **options) -> Store:
    return Store.open(path, create=True, encoder="none", limits=LIMITS, **options)


def stream(numbers=range(COUNT), rows=ROWS, prefix="i"):
    return ((f"{prefix}{n}", picture(n), None, rows[n]) for n in numbers)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for n, name in enumerate(NAMES):
        save(tmp_path / "photos" / ("more" if n >= 15 else "") / name, picture(n))
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def named(path: Path, names=None, rows=ROWS, **others) -> Path:
    whole = [f"more/{name}" if n >= 15 else name for n, name in enumerate(NAMES)]
    np.savez(path, names=np.array(whole if names is None else names), vectors=rows, **others)
    return path


def id_of(store: Store, number: int) -> int:
    (hit,) = store.lookup(picture(number), tiers=["identical"]).identical
    return hit.id


def vectors_of(store: Store, numbers=range(COUNT)) -> np.ndarray:
    """The vector of each picture, found by its pixels; NaN without one."""
    return store.vectors([id_of(store, number) for number in numbers])


def is_whole(store: Store) -> bool:
    report = store.check()
    assert report.problems == ()
    return report.leftover_bytes == 0


# --- ways in --------------------------------------------------------------------------------------


def table(path: Path, column, groups: int = 7, **columns) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = pa.array([encoded(picture(n)) for n in range(len(column))])
    made = pa.table({"image": images, "emb": column, **columns})
    pq.write_table(made, path, row_group_size=groups)
    return path


def of_type(kind: str, rows=ROWS):
    pa = pytest.importorskip("pyarrow")
    values = {"half": pa.float16(), "double": pa.float64()}.get(kind, pa.float32())
    if kind == "half":
        return pa.array([list(row.astype(np.float16)) for row in rows], pa.list_(values))
    if kind == "tensor":
        flat = pa.array(rows.tolist(), pa.list_(values, DIM))
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(values, [DIM]), flat)
    made = {"fixed": lambda v: pa.list_(v, DIM), "large": pa.large_list}.get(kind, pa.list_)
    return pa.array(rows.tolist(), made(values))


@pytest.mark.parametrize("kind", ["list", "large", "fixed", "half", "double", "tensor"])
def test_a_column_of_a_table_has_the_vectors_of_its_images(tmp_path: Path, kind: str) -> None:
    path = table(tmp_path / "t.parquet", of_type(kind), label=list(range(COUNT)))
    source = f"{path}?vector=emb"
    with opened(tmp_path / "store") as store:
        report = store.ingest(source)
        assert (report.added, report.image_vectors, report.rejected) == (COUNT, COUNT, 0)
        expected = ROWS.astype(np.float16).astype(np.float32) if kind == "half" else ROWS
        assert np.array_equal(vectors_of(store), expected)
        assert store.get(5).metadata == {"label": 4}
        assert store.sources(5) == [f"{source}#4"]
        assert store.lookup(store.sources(5)[0]).identical[0].id == 5
        again = store.ingest(source)
        assert (again.unchanged, again.image_vectors) == (COUNT, 0)
        assert is_whole(store)


def test_a_stream_brings_vectors_and_some_images_have_none(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        some = [(f"i{n}", picture(n), {"n": n}, ROWS[n] if n % 3 else None) for n in range(COUNT)]
        report = store.ingest(some)
        assert (report.added, report.image_vectors) == (COUNT, sum(n % 3 > 0 for n in range(COUNT)))
        found = vectors_of(store)
        for n in range(COUNT):
            assert np.array_equal(found[n], ROWS[n]) if n % 3 else np.isnan(found[n]).all()
        record = store.get(2, vector=True)
        assert np.array_equal(record.vector, ROWS[1]) and record.vector.dtype == np.float32
        assert record == store.get(2) and store.get(2).vector is None
        assert record.metadata == {"n": 1} and store.get(1, vector=True).vector is None
        assert store.info().vectors == report.image_vectors
        assert is_whole(store)
    assert load(tmp_path / "store").space.features == ["vectors", "image-vectors"]


def test_a_store_without_vectors_says_none_for_a_vector(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        store.ingest((f"i{n}", picture(n)) for n in range(2))
        assert store.get(1, vector=True).vector is None


def test_row_i_belongs_to_the_image_i_of_the_sources(tmp_path: Path, photos: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    # Files of a folder come first, then its subfolders: the order of the names here.
    with opened(tmp_path / "store") as store:
        report = store.ingest(photos, vectors=tmp_path / "v.npy")
        assert (report.added, report.image_vectors, report.skipped) == (COUNT, COUNT, 1)
        assert np.array_equal(vectors_of(store), ROWS)
        again = store.ingest(photos, vectors=tmp_path / "v.npy")
        assert (again.unchanged, again.image_vectors) == (COUNT, 0)
        assert is_whole(store)


def test_several_sources_go_by_order_as_they_are_named(tmp_path: Path, photos: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS[[16, *range(10)]])
    with opened(tmp_path / "store") as store:
        store.ingest(
            photos / "more/16.png",
            photos,
            exclude=["1*.png"],
            vectors=tmp_path / "v.npy",
        )
        assert np.array_equal(vectors_of(store, [16, *range(10)]), ROWS[[16, *range(10)]])


def test_a_file_that_is_no_image_has_a_row_too(tmp_path: Path, photos: Path) -> None:
    (photos / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    np.save(tmp_path / "v.npy", ROWS)
    others = [n for n in range(COUNT) if n != 7]
    with opened(tmp_path / "store") as store:
        report = store.ingest(photos, vectors=tmp_path / "v.npy")
        assert (report.added, report.rejected) == (COUNT - 1, 1)
        assert np.array_equal(vectors_of(store, others), ROWS[others])


@pytest.mark.parametrize("whole", ["absolute", "below", "here", "dotted", "big-endian"])
def test_names_are_whole_or_below_the_source_or_the_current_folder(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    monkeypatch.chdir(tmp_path)
    below = [f"more/{name}" if n >= 15 else name for n, name in enumerate(NAMES)]
    prefix = {"absolute": f"{photos}/", "here": "photos/", "dotted": "./photos/"}.get(whole, "")
    order = np.random.default_rng(0).permutation(COUNT)
    names = np.array([f"{prefix}{below[n]}" for n in order])
    kind = names.dtype.newbyteorder(">") if whole == "big-endian" else names.dtype
    named(tmp_path / "v.npz", names.astype(kind), ROWS[order].astype(">f4"))
    with opened(tmp_path / "store") as store:
        report = store.ingest("photos", vectors="v.npz")
        assert (report.image_vectors, report.notes) == (COUNT, {})
        assert np.array_equal(vectors_of(store), ROWS)


def test_images_that_are_not_named_get_no_vector_until_they_are(
    tmp_path: Path, photos: Path
) -> None:
    few = named(tmp_path / "few.npz", NAMES[:8], ROWS[:8])
    with opened(tmp_path / "store") as store:
        report = store.ingest(photos, vectors=few)
        assert (report.added, report.image_vectors) == (COUNT, 8)
        assert list(report.notes.values()) == [12]
        assert np.isnan(vectors_of(store)[8:]).all()
        later = store.ingest(photos, vectors=named(tmp_path / "all.npz"))
        assert (later.unchanged, later.image_vectors, later.added) == (COUNT, 12, 0)
        assert np.array_equal(vectors_of(store), ROWS)
        assert is_whole(store)


def test_members_of_an_archive_go_by_their_names(tmp_path: Path, photos: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n, name in enumerate(NAMES):
            tar.add(photos / ("more" if n >= 15 else "") / name, f"in/{name}")
    named(tmp_path / "v.npz", [f"in/{name}" for name in NAMES])
    with opened(tmp_path / "store") as store:
        report = store.ingest(tmp_path / "a.tar", vectors=tmp_path / "v.npz")
        assert report.image_vectors == COUNT
        assert np.array_equal(vectors_of(store), ROWS)


def test_two_rows_that_name_one_image_are_a_reject(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named(tmp_path / "v.npz", ["photos/00.png", "00.png"], ROWS[:2])
    with opened(tmp_path / "store") as store:
        report = store.ingest("photos", vectors="v.npz")
        assert (report.rejected, report.image_vectors) == (1, 0)
    assert "both name it" in (tmp_path / "store/rejects.jsonl").read_text()


# --- which vectors an image gets ------------------------------------------------------------------


def test_an_image_keeps_its_first_vector(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        store.ingest(stream(range(4)))
        report = store.ingest(stream(range(4), -ROWS, "again"))
        assert (report.duplicates, report.image_vectors) == (4, 0)
        assert np.array_equal(vectors_of(store, range(4)), ROWS[:4])
        # The same image twice in one commit.
        pairs = [("a", picture(9), None, ROWS[9]), ("b", picture(9), None, ROWS[8])]
        assert store.ingest(pairs).image_vectors == 1
        assert np.array_equal(vectors_of(store, [9]), ROWS[[9]])
        twice = [("c", picture(10)), ("d", picture(10), None, ROWS[10])]
        assert store.ingest(twice).image_vectors == 1
        assert np.array_equal(vectors_of(store, [10]), ROWS[[10]])
        assert is_whole(store)


def test_a_stored_image_without_a_vector_gets_the_one_it_comes_with(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        store.ingest((f"i{n}", picture(n)) for n in range(COUNT))
        store.ingest(np.stack([picture(n) for n in range(30, 34)]), name="rows")
        report = store.ingest(stream(range(COUNT), ROWS, "later"))
        assert (report.added, report.duplicates, report.image_vectors) == (0, COUNT, COUNT)
        assert np.array_equal(vectors_of(store), ROWS)
        one_row = [("r", picture(31), None, ROWS[0])]
        assert store.ingest(one_row).image_vectors == 1
        assert np.array_equal(vectors_of(store, [31]), ROWS[[0]])
        assert is_whole(store)


def test_a_removed_image_comes_back_with_its_vector(tmp_path: Path, photos: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    with opened(tmp_path / "store") as store:
        store.ingest(photos, vectors=tmp_path / "v.npy")
        store.remove(ids=[3, 4, 5, 18])
        assert is_whole(store)
        store.optimize()
        assert is_whole(store)
        left = [n for n in range(COUNT) if n not in (2, 3, 4, 17)]
        assert np.array_equal(vectors_of(store, left), ROWS[left])
        report = store.ingest(photos, vectors=tmp_path / "v.npy")
        assert (report.added, report.image_vectors) == (4, 4)
        assert np.array_equal(vectors_of(store), ROWS)
        store.backup(tmp_path / "copy")
        store.export(tmp_path / "out")
    with Store.open(tmp_path / "copy") as copy:
        assert np.array_equal(vectors_of(copy), ROWS) and is_whole(copy)
        ids = np.load(tmp_path / "out/vector_ids.npy")
        assert np.array_equal(np.load(tmp_path / "out/vectors.npy"), copy.vectors(ids))


def test_rows_without_pixels_and_vectors_of_images_share_a_store(tmp_path: Path) -> None:
    bare = np.random.default_rng(8).standard_normal((30, DIM)).astype(np.float32)
    with opened(tmp_path / "store") as store:
        store.ingest(bare[:15], name="bare")
        assert load(tmp_path / "store").space.features == ["vectors"]
        store.ingest(stream())
        store.ingest(bare, name="bare")
        assert is_whole(store)
        assert store.info().vectors == 30 + COUNT
        assert np.array_equal(vectors_of(store), ROWS)
        scores, ids = store.search_vectors(ROWS, k=1, recall=1)
        every = np.concatenate([ROWS, bare])
        assert np.allclose(scores[:, 0], (ROWS @ every.T).max(axis=1), atol=1e-5)
        store.remove(sources=["memory:bare"], ids=[int(ids[0, 0])])
        store.optimize()
        assert is_whole(store)


def test_normalized_vectors_have_length_1_and_a_zero_is_a_reject(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[4] = 0
    with opened(tmp_path / "store") as store:
        report = store.ingest(stream(rows=rows), normalize=True)
        assert (report.added, report.rejected) == (COUNT - 1, 1)
        others = [n for n in range(COUNT) if n != 4]
        expected = rows[others] / np.linalg.norm(rows[others], axis=1, keepdims=True)
        assert np.allclose(vectors_of(store, others), expected, atol=1e-6)
        # The store's own rule counts from now on.
        store.ingest([("later", picture(50), None, 9 * ROWS[0])])
        assert np.linalg.norm(vectors_of(store, [50])) == pytest.approx(1, abs=1e-5)


# --- lookups --------------------------------------------------------------------------------------


def test_lookups_by_an_id_or_a_vector_find_similar_images(tmp_path: Path, photos: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    with opened(tmp_path / "store") as store:
        store.ingest(photos, vectors=tmp_path / "v.npy", normalize=True)
        nearest = np.argsort(-(store.vectors(range(1, 21)) @ store.vectors([6])[0]))[1:4] + 1
        by_id = store.lookup(6, k=3)
        assert by_id.searched == ("identical", "near", "similar")
        assert [hit.id for hit in by_id.identical] == [6]
        assert [hit.id for hit in by_id.similar] == nearest.tolist()
        (many,) = store.lookup_many([6], k=3)
        assert many.similar == by_id.similar
        for query in (ROWS[5], f"{tmp_path}/v.npy#5"):
            found = store.lookup(query, k=4)
            assert [hit.id for hit in found.similar] == [6, *nearest]
        image = store.lookup(photos / "05.png")
        assert image.searched == ("identical", "near") and image.identical[0].id == 6
        with pytest.raises(UsageError, match="the id of an image that has one"):
            store.lookup(photos / "05.png", tiers=["similar"])
        assert [hit.id for hit in store.lookup(6, tiers=["similar"], k=1).similar] == [6]


# --- what is refused ------------------------------------------------------------------------------

BAD = {
    "another length": ROWS[0][:4],
    "nan": np.full(DIM, np.nan),
    "infinite": np.full(DIM, np.inf, np.float32),
    "too large": np.full(DIM, 1e300),
    "integers": np.arange(DIM),
    "a matrix": ROWS,
    "a scalar": np.float32(3),
    "empty": np.empty(0, np.float32),
    "text": "0.1 0.2",
    "objects": np.array([None] * DIM),
    "ragged": [[1.0], [2.0, 3.0]],
    "complex": np.zeros(DIM, np.complex64),
    "long": np.zeros(70_000, np.float32),
}


def test_a_bad_vector_is_a_reject_of_its_image_alone(tmp_path: Path) -> None:
    some = [("first", picture(0), None, ROWS[0])]
    some += [(what, picture(100 + n), None, bad) for n, (what, bad) in enumerate(BAD.items())]
    some += [("last", picture(1), None, ROWS[1])]
    with opened(tmp_path / "store") as store:
        report = store.ingest(iter(some))
        assert (report.added, report.rejected) == (2, len(BAD))
        assert np.array_equal(vectors_of(store, [0, 1]), ROWS[:2])
        lines = [json.loads(line) for line in (tmp_path / "store/rejects.jsonl").open()]
        assert [line["source"] for line in lines] == [f"memory:{what}" for what in BAD]
        assert all("vector" in line["reason"] for line in lines)
        # A vector that was mended is not rejected again.
        mended = [(what, picture(100 + n), None, ROWS[n]) for n, what in enumerate(BAD)]
        assert store.ingest(iter(mended)).added == len(BAD)
        assert store.info().rejects == 0
        assert is_whole(store)


def test_a_store_of_an_encoder_refuses_vectors_and_says_what_to_do(
    tmp_path: Path, photos: Path, tiny_encoder: Path
) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest([("i", picture(40))])
        sources: list[Callable[[], object]] = [
            lambda: store.ingest(photos, vectors=tmp_path / "v.npy"),
            lambda: store.ingest(stream()),
            lambda: store.ingest(f"{table(tmp_path / 't.parquet', of_type('list'))}?vector=emb"),
        ]
        for call in sources:
            with pytest.raises(UsageError, match="make another store for vectors of your own"):
                call()
        assert len(store) == 1
        # Behind another source it is a reject, and the images before are there.
        report = store.ingest(photos / "00.png", f"{tmp_path}/t.parquet?vector=emb")
        assert (report.added, report.rejected) == (1, 1)
        assert is_whole(store)


def test_the_encoder_of_a_store_without_vectors_gives_way(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        some = [("plain", picture(90)), *stream(range(5))]
        report = store.ingest(iter(some))
        assert (report.added, report.image_vectors) == (6, 5)
        assert not store.has_encoder and store.has_given_vectors
        assert np.array_equal(vectors_of(store, range(5)), ROWS[:5])
        assert not (tmp_path / "store/encoder").exists()
        assert is_whole(store)


WRONG_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "few": ("v.npy", lambda p: np.save(p, ROWS[:7]), "7 vectors for 20 images"),
    "many": ("v.npy", lambda p: np.save(p, np.zeros((21, 3), np.float32)), "21 vectors for 20"),
    "one": ("v.npy", lambda p: np.save(p, ROWS[0]), r"shape \(6,\)"),
    "cube": ("v.npy", lambda p: np.save(p, np.zeros((20, 2, 3), np.float32)), "shape"),
    "no columns": ("v.npy", lambda p: np.save(p, np.zeros((20, 0), np.float32)), "shape"),
    "bytes": ("v.npy", lambda p: np.save(p, np.zeros((20, 3), np.uint8)), "dtype uint8"),
    "objects": ("v.npy", lambda p: np.save(p, np.full((20, 3), None)), "never loaded"),
    "fortran": ("v.npy", lambda p: np.save(p, np.asfortranarray(ROWS)), "Fortran"),
    "no array": ("v.npy", lambda p: p.write_bytes(b"nothing"), "not an .npy array"),
    "suffix": ("v.txt", lambda p: p.write_text("1 2 3"), "are a .npy file"),
    "missing": ("v.npy", lambda p: None, "No such file"),
    "a folder": ("v.npz", lambda p: p.mkdir(), "v.npz"),
    "objects in npz": ("v.npz", lambda p: named(p, np.array(NAMES, object)), "never loaded"),
    "bytes as names": ("v.npz", lambda p: named(p, np.array(NAMES, "S")), "text of shape"),
    "names twice": ("v.npz", lambda p: named(p, [*NAMES[:-1], NAMES[3]]), "'03.png' twice"),
    "few names": ("v.npz", lambda p: named(p, NAMES[:3]), "3 names and 20 vectors"),
    "a matrix of names": ("v.npz", lambda p: named(p, [NAMES]), "text of shape"),
    "no vectors": ("v.npz", lambda p: np.savez(p, names=NAMES), "needs the arrays"),
    "compressed": (
        "v.npz",
        lambda p: np.savez_compressed(p, names=NAMES, vectors=ROWS),
        "numpy.savez",
    ),
    "no zip": ("v.npz", lambda p: p.write_bytes(b"PK\3\4 no archive"), "v.npz"),
    "half a pair": ("v.npz", lambda p: named(p, ["\ud800", *NAMES[1:]]), "not text"),
    "names that are no text": (
        "v.npz",
        lambda p: named(p, np.full(20, 0x7FFFFFFF, np.uint32).view("U1")),
        "not text",
    ),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_wrong_file_of_vectors_is_refused_before_anything_is_written(
    tmp_path: Path, photos: Path, what: str
) -> None:
    name, make, message = WRONG_FILES[what]
    make(tmp_path / name)
    with opened(tmp_path / "store") as store:
        before = store.session.snapshot.state.commit
        with pytest.raises(UsageError, match=message) as caught:
            store.ingest(photos, vectors=tmp_path / name)
        assert "\n" not in str(caught.value)
        assert store.session.snapshot.state.commit == before and not len(store)
        with pytest.raises(UsageError, match=message):
            Store.plan(tmp_path / "store", photos, vectors=tmp_path / name)


@pytest.mark.parametrize("shape", [(20, 6), (1 << 40, 6), (20, 1 << 40), (1 << 62, 1 << 62)])
def test_a_header_that_promises_more_than_there_is_costs_nothing(
    tmp_path: Path, photos: Path, shape: tuple[int, int]
) -> None:
    with (tmp_path / "v.npy").open("wb") as file:
        said = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, said)
        file.write(ROWS.tobytes()[:-3])
    with (
        opened(tmp_path / "store") as store,
        pytest.raises(UsageError, match=r"cut short|vectors are \(N, d\)"),
    ):
        store.ingest(photos, vectors=tmp_path / "v.npy")


@pytest.mark.parametrize("at", [0, 4, 30, 200, -30, -100])
def test_a_damaged_archive_of_vectors_gives_no_image_another_ones(
    tmp_path: Path, photos: Path, at: int
) -> None:
    data = bytearray(named(tmp_path / "v.npz").read_bytes())
    for bit in range(0, 8, 3):
        data[at] ^= 1 << bit
        (tmp_path / "v.npz").write_bytes(data)
        with opened(tmp_path / f"store{bit}") as store:
            try:
                store.ingest(photos, vectors=tmp_path / "v.npz")
            except (UsageError, SourceError) as error:
                assert "\n" not in str(error)
                assert not len(store)
            else:
                found = vectors_of(store)
                got = ~np.isnan(found).any(axis=1)
                assert np.array_equal(found[got], ROWS[got])


def test_names_too_many_for_the_memory_are_refused(tmp_path: Path) -> None:
    path = named(tmp_path / "v.npz")
    with pytest.raises(UsageError, match=r"20 names, which are too many: raise memory="):
        open_vectors(path, 8 * COUNT - 1)
    open_vectors(path, parse_memory(None).block).close()


def test_other_arguments_that_do_not_go_together_are_refused(tmp_path: Path, photos: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    np.save(tmp_path / "masks.npy", np.zeros((COUNT, 9, 9), np.bool_))
    (tmp_path / "list.txt").write_text(f"{photos}\n")
    vectors = tmp_path / "v.npy"
    with opened(tmp_path / "store") as store:
        with pytest.raises(UsageError, match="encoder= makes others"):
            store.ingest(photos, vectors=vectors, encoder="simclr")
        with pytest.raises(UsageError, match="bring theirs in a stream"):
            store.ingest(stream(), vectors=vectors)
        with pytest.raises(UsageError, match="not an image file or a folder"):
            store.ingest(tmp_path / "masks.npy", vectors=vectors)
        with pytest.raises(UsageError, match="a list can be read only once"):
            store.ingest(files_from=tmp_path / "list.txt", vectors=vectors)
        assert not len(store)
        store.ingest(photos, vectors=vectors)
        np.save(vectors, ROWS[:, :4])
        with pytest.raises(UsageError, match="vectors of 4 dimensions do not go with"):
            store.ingest(photos, vectors=vectors)
        listed = store.ingest(files_from=tmp_path / "list.txt", vectors=named(tmp_path / "v.npz"))
        assert listed.unchanged == COUNT
        refused = store.ingest(photos, tmp_path / "masks.npy", vectors=tmp_path / "v.npz")
        assert (refused.unchanged, refused.rejected) == (COUNT, 1)


def test_a_folder_that_changes_while_it_is_read_ends_the_ingest(
    tmp_path: Path, photos: Path
) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    given = SourcesWithVectors(Sources([str(photos)]), open_vectors(tmp_path / "v.npy", 1 << 20))
    save(photos / "000.png", picture(99))
    with pytest.raises(SourceError, match="changed while they were read"):
        list(given)


def test_rows_of_a_table_whose_vectors_are_bad_are_rejects(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = [list(map(float, row)) for row in ROWS[:6]]
    rows[1] = None  # has no vector
    rows[2][0] = float("nan")
    rows[3][1] = None
    rows[4] = rows[4][:3]
    rows[5] = []
    path = table(tmp_path / "t.parquet", pa.array(rows, pa.list_(pa.float32())))
    with opened(tmp_path / "store") as store:
        report = store.ingest(f"{path}?vector=emb")
        assert (report.added, report.image_vectors, report.rejected) == (2, 1, 4)
        assert np.array_equal(vectors_of(store, [0]), ROWS[:1])
        assert np.isnan(vectors_of(store, [1])).all()
        commit = store.session.snapshot.state.commit
        again = store.ingest(f"{path}?vector=emb")
        assert (again.unchanged, again.rejected) == (2, 4)
        assert store.session.snapshot.state.commit == commit


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("vector=none", "has no column 'none'"),
        ("vector=label", "holds no vectors"),
        ("vector=image", "holds no vectors"),
        ("vector=whole", "holds no vectors"),
        ("vector=deep", "holds no vectors"),
        ("vector=wide", "1 to 65,536 values"),
        ("vector=", "has no column ''"),
        ("vectors=emb", "write"),
    ],
)
def test_a_column_that_holds_no_vectors_is_refused(
    tmp_path: Path, query: str, message: str
) -> None:
    pa = pytest.importorskip("pyarrow")
    path = table(
        tmp_path / "t.parquet",
        of_type("list", ROWS[:2]),
        label=[1, 2],
        whole=pa.array([[1], [2]]),
        deep=pa.array([[[1.0]], [[2.0]]]),
        wide=pa.array([None, None], pa.list_(pa.float32(), 70_000)),
    )
    with opened(tmp_path / "store") as store, pytest.raises(UsageError, match=message):
        store.ingest(f"{path}?{query}")


def test_a_small_table_of_huge_vectors_takes_no_memory(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    huge = pa.array([[0.0] * 5_000_000, [1.0]], pa.list_(pa.float32()))
    path = table(tmp_path / "t.parquet", huge)
    assert path.stat().st_size < 1 << 20
    with opened(tmp_path / "store", memory="128M") as store:
        report = store.ingest(f"{path}?vector=emb")
        assert (report.added, report.rejected) == (0, 1)
    assert "5,000,001 values in the column emb" in (tmp_path / "store/rejects.jsonl").read_text()


def test_one_list_that_is_too_long_is_a_reject(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = [ROWS[0].tolist(), [0.5] * 70_000, ROWS[2].tolist()]
    path = table(tmp_path / "t.parquet", pa.array(rows, pa.list_(pa.float32())))
    with opened(tmp_path / "store") as store:
        report = store.ingest(f"{path}?vector=emb")
        assert (report.added, report.rejected) == (2, 1)
        assert np.array_equal(vectors_of(store, [0, 2]), ROWS[[0, 2]])


# --- the command ----------------------------------------------------------------------------------


def test_the_command_takes_vectors_and_makes_no_store_for_wrong_ones(
    tmp_path: Path, photos: Path
) -> None:
    np.save(tmp_path / "few.npy", ROWS[:3])
    np.save(tmp_path / "v.npy", ROWS)
    store = str(tmp_path / "store")

    def run(*arguments: str):
        return CliRunner().invoke(app, [*arguments, "--store", store])

    wrong = run("ingest", str(photos), "--vectors", str(tmp_path / "few.npy"))
    assert isinstance(wrong.exception, UsageError)
    assert not Path(store).exists()
    planned = run("ingest", str(photos), "--vectors", str(tmp_path / "v.npy"), "--dry-run")
    assert planned.exit_code == 0 and not Path(store).exists()
    done = run("ingest", str(photos), "--vectors", str(tmp_path / "v.npy"), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["image_vectors"] == COUNT
    found = json.loads(run("lookup", "--id", "3", "-k", "2", "--json").stdout)
    assert found["searched"] == ["identical", "near", "similar"] and len(found["similar"]) == 2
    assert run("check").exit_code == 0


# --- a model, and kills ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(sized(4, 40)))
def test_any_changes_leave_each_image_its_first_vector(tmp_path: Path, seed: int) -> None:
    """A random walk beside a dict from each stored picture to its vector, or None."""
    rng = random.Random(seed)
    model: dict[int, np.ndarray | None] = {}
    store = opened(tmp_path / "store")
    bare = 0
    for step in range(25):
        what = rng.choice(["ingest"] * 5 + ["remove", "optimize", "reopen", "bare"])
        if what == "ingest":
            numbers = rng.choices(range(COUNT), k=rng.randint(1, 9))
            some = []
            for n in numbers:
                row = np.random.default_rng(rng.randint(0, 999)).standard_normal(DIM)
                vector = row.astype(np.float32) if rng.random() < 0.7 else None
                if vector is not None and rng.random() < 0.1:
                    vector[0] = np.nan
                some.append((f"{step}-{len(some)}", picture(n), None, vector))
                if vector is not None and np.isnan(vector).any():
                    continue
                model[n] = vector if model.get(n) is None else model[n]
            store.ingest(iter(some))
        elif what == "remove" and model:
            gone = rng.sample(sorted(model), rng.randint(1, min(3, len(model))))
            store.remove(ids=[id_of(store, n) for n in gone])
            for n in gone:
                del model[n]
        elif what == "optimize":
            store.optimize()
        elif what == "reopen":
            store.close()
            store = opened(tmp_path / "store")
        elif what == "bare":
            bare += 3
            store.ingest(np.full((3, DIM), step + 1, np.float32), name=f"bare{step}")
        assert len(store) == len(model) + bare
        if store.session.snapshot.space.exists and model:
            found = vectors_of(store, sorted(model))
            for n, vector in zip(sorted(model), found, strict=True):
                expected = model[n]
                assert np.isnan(vector).all() if expected is None else (vector == expected).all()
    assert is_whole(store)
    store.close()


def child(store: str, vectors: str, sources: list[str]) -> None:
    """Ingest sources with vectors, and say each commit."""

    def report(files: Writer, chunk: Chunk) -> None:
        if chunk.images:
            print(files.state.images, flush=True)

    report_commits(report)
    with Store.open(store, limits=LIMITS) as writer:
        writer.ingest(*sources, vectors=vectors or None)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["order", "name", "column"])
def test_a_killed_ingest_goes_on_and_each_image_has_its_own_vector(
    tmp_path: Path, photos: Path, way: str
) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    vectors = {"order": str(tmp_path / "v.npy"), "name": str(named(tmp_path / "v.npz"))}.get(way)
    source = str(photos)
    if way == "column":
        source = f"{table(tmp_path / 't.parquet', of_type('fixed'))}?vector=emb"
    for after in sized((1, 4), (1, 2, 3, 4, 5, 6)):
        store = tmp_path / f"store{after}"
        opened(store).close()
        with subprocess.Popen(
            [sys.executable, __file__, str(store), vectors or "", source],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        ) as run:
            assert run.stdout is not None
            for _ in range(after):
                assert run.stdout.readline()
            run.kill()
        with Store.open(store, limits=LIMITS) as writer:
            assert writer.check().problems == ()
            done = len(writer)
            numbers = [n for n in range(COUNT) if writer.lookup(picture(n)).identical]
            assert len(numbers) == done >= after
            assert np.array_equal(vectors_of(writer, numbers), ROWS[numbers])
            report = writer.ingest(source, vectors=vectors)
            assert (report.unchanged, report.added) == (done, COUNT - done)
            assert np.array_equal(vectors_of(writer), ROWS)
            assert is_whole(writer)


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], sys.argv[3:])
