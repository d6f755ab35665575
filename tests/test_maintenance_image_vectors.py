"""Check and repair of the vectors of images: made whole, or named as lost; never another's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import flip
from helpers import encoded, mask, sized

from engine import Store
from engine.config import Limits
from engine.images import hashing
from engine.storage.extents import HEADER_BYTES
from engine.storage.rows import u64

DIM = 6
COUNT = 24
ROWS = np.random.default_rng(3).standard_normal((COUNT, DIM)).astype(np.float32)
UNITS = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
# The images that come with a vector; the others are between them.
OWNERS = [n for n in range(COUNT) if n % 4 != 1]
LIMITS = Limits(chunk_files=8, extent_rows=100)
VECTORS, IDS = "vectors/1/00000001.f32", "vectors/1/00000001.ids"


def from_stream(path: Path) -> str:
    images = ((f"{n}", mask(n), None, ROWS[n] if n in OWNERS else None) for n in range(COUNT))
    with Store.open(path, create=True, encoder="none", limits=LIMITS) as store:
        store.ingest(images, normalize=True)
    return ""


def from_table(path: Path) -> str:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    vectors = [ROWS[n].tolist() if n in OWNERS else None for n in range(COUNT)]
    column = pa.array(vectors, pa.list_(pa.float32()))
    images = pa.array([encoded(mask(n)) for n in range(COUNT)])
    pq.write_table(pa.table({"image": images, "emb": column}), path.with_name("t.parquet"))
    source = f"{path.with_name('t.parquet')}?vector=emb"
    with Store.open(path, create=True, encoder="none", limits=LIMITS) as store:
        store.ingest(source, normalize=True)
    return source


def check(path: Path) -> list[str]:
    with Store.open(path, read_only=True) as store:
        return [problem.what for problem in store.check().problems]


def fix(path: Path) -> list[str]:
    """What a repair reports; all is whole behind it."""
    with Store.open(path, limits=LIMITS) as store:
        report = store.check(fix=True)
        assert report.ok and all(problem.fixed for problem in report.problems)
        assert store.check().problems == ()
    return [problem.what for problem in report.problems]


def found(path: Path) -> np.ndarray:
    """The vector of each image, found by its pixels, NaN without one: (COUNT, DIM)."""
    with Store.open(path, read_only=True) as store:
        ids = [store.lookup(mask(n), tiers=["identical"]).identical[0].id for n in range(COUNT)]
        return store.vectors(ids)


def none_is_anothers(vectors: np.ndarray, tolerance: float = 1e-5) -> set[int]:
    """The images that have a vector, each of which has its own."""
    there = {n for n in range(COUNT) if not np.isnan(vectors[n]).any()}
    assert there <= set(OWNERS)
    for n in there:
        assert np.allclose(vectors[n], UNITS[n], atol=tolerance), n
    return there


@pytest.mark.slow
@pytest.mark.parametrize("row", sized([0, 17], [0, 1, 5, 11, 17]))
@pytest.mark.parametrize("bit", [0x40, 0x01])
def test_a_flipped_vector_is_read_again_from_its_table(tmp_path: Path, row: int, bit: int) -> None:
    where = tmp_path / "store"
    from_table(where)
    flip(where / VECTORS, HEADER_BYTES + 4 * DIM * row + 3, bit)
    assert check(where)
    fix(where)
    assert none_is_anothers(found(where)) == set(OWNERS)


@pytest.mark.slow
def test_a_vector_that_is_lost_is_named_and_may_come_again(tmp_path: Path) -> None:
    where = tmp_path / "store"
    from_stream(where)
    flip(where / VECTORS, HEADER_BYTES + 4 * DIM * 3 + 3, 0x40)
    lost = OWNERS[3]
    told = "\n".join(fix(where))
    assert f"image {lost + 1}: no vector is left" in told
    assert "a vector may be wrong" in told
    assert none_is_anothers(found(where)) == set(OWNERS) - {lost}
    with Store.open(where, limits=LIMITS) as store:
        report = store.ingest([(f"{lost}", mask(lost), None, ROWS[lost])])
        assert (report.unchanged, report.image_vectors) == (1, 1)
        assert store.check().problems == ()
        store.optimize()
        assert store.check().problems == ()
    assert none_is_anothers(found(where)) == set(OWNERS)


@pytest.mark.slow
def test_a_table_that_has_changed_gives_no_vectors(tmp_path: Path) -> None:
    where = tmp_path / "store"
    from_table(where)
    path = tmp_path / "t.parquet"
    os.utime(path, ns=(1, 1))
    flip(where / VECTORS, HEADER_BYTES + 3, 0x40)
    # It still has the vectors that the checksum proves.
    fix(where)
    assert none_is_anothers(found(where)) == set(OWNERS)
    path.unlink()
    flip(where / VECTORS, HEADER_BYTES + 3, 0x40)
    assert any(f"image {OWNERS[0] + 1}: no vector is left" in what for what in fix(where))
    assert none_is_anothers(found(where)) == set(OWNERS[1:])


DAMAGED_IDS: dict[str, Callable[[int], int]] = {
    "another image's": lambda id_: id_ ^ 1,
    "unknown": lambda id_: id_ | 1 << 40,
    "another owner's": lambda id_: id_ ^ 4,
    "zero": lambda id_: 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGED_IDS)
@pytest.mark.parametrize("make", [from_stream, from_table])
def test_a_damaged_id_is_restored_by_the_checksum(
    tmp_path: Path, make: Callable[[Path], str], what: str
) -> None:
    where = tmp_path / "store"
    make(where)
    for at in sized((0, 10), range(len(OWNERS))):
        data = bytearray((where / IDS).read_bytes())
        ids = np.frombuffer(data, np.int64, offset=HEADER_BYTES)
        assert ids[at] == OWNERS[at] + 1
        ids[at] = DAMAGED_IDS[what](int(ids[at]))
        (where / IDS).write_bytes(data)
        assert check(where)
        fix(where)
        assert none_is_anothers(found(where)) == set(OWNERS)


@pytest.mark.slow
@pytest.mark.parametrize("make", [from_stream, from_table])
def test_ids_that_cannot_be_known_give_no_image_the_vector_of_another(
    tmp_path: Path, make: Callable[[Path], str]
) -> None:
    """Many ids of a commit are those of other images, which have no vector or another one."""
    where = tmp_path / "store"
    source = make(where)
    data = bytearray((where / IDS).read_bytes())
    ids = np.frombuffer(data, np.int64, offset=HEADER_BYTES)
    ids[:6] = [2, 6, 1, 4, 3, 7]
    (where / IDS).write_bytes(data)
    told = fix(where)
    there = none_is_anothers(found(where))
    assert there >= set(OWNERS[6:])
    if source:
        # Their table says whose they are.
        assert there == set(OWNERS)
    else:
        assert any("of 6 vectors are lost" in what for what in told)
        with Store.open(where, limits=LIMITS) as store:
            store.ingest((f"{n}", mask(n), None, ROWS[n]) for n in OWNERS)
            assert store.check().problems == ()
        assert none_is_anothers(found(where)) == set(OWNERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [VECTORS, IDS])
def test_files_that_are_gone(tmp_path: Path, name: str) -> None:
    for make in (from_table, from_stream):
        where = tmp_path / make.__name__
        where.mkdir()
        where = where / "store"
        source = make(where)
        (where / name).unlink()
        fix(where)
        there = none_is_anothers(found(where))
        assert there == (set(OWNERS) if source else set())


@pytest.mark.slow
@pytest.mark.parametrize("table", ["records", "images"])
def test_an_image_whose_row_is_lost_keeps_its_vector(tmp_path: Path, table: str) -> None:
    where = tmp_path / "store"
    from_stream(where)
    lost = OWNERS[2] + 1
    with Store.open(where, limits=LIMITS) as store:
        store.session.become_writer()
        key = u64(lost) if table == "records" else store.session.snapshot.get(lost).key
        store.session.writer.put_rows([(table, key, None)])
    assert check(where)
    fix(where)
    assert none_is_anothers(found(where)) == set(OWNERS)


@pytest.mark.slow
def test_an_image_that_is_lost_for_good_leaves_no_row_without_pixels(tmp_path: Path) -> None:
    where = tmp_path / "store"
    from_stream(where)
    bare = np.random.default_rng(9).standard_normal((10, DIM)).astype(np.float32)
    with Store.open(where, limits=LIMITS) as store:
        store.ingest(bare, name="bare")
        lost = OWNERS[2] + 1
        record = store.session.snapshot.get(lost)
        (row,) = store.session.snapshot.image_of(record.key)
        names = [(u64(lost), None), (record.key, None)]
        store.session.writer.put_rows(
            [("records", names[0][0], None), ("images", names[1][0], None)]
        )
        first = COUNT + 1
        store.session.writer.put_rows([("records", u64(first), None)])
        assert row.id == lost
    fix(where)
    with Store.open(where) as store:
        assert lost not in store
        # Those of the array are made again, and nothing else is a vector without pixels.
        assert len(store) == COUNT - 1 + 10
        assert [store.get(first + n).kind.name for n in range(10)] == ["VECTOR"] * 10
        assert hashing.proof(b"") is not None


@pytest.mark.slow
def test_missing_sources_are_looked_up_without_the_column(tmp_path: Path) -> None:
    where = tmp_path / "store"
    from_table(where)
    with Store.open(where) as store:
        assert store.remove(missing=True, yes=True).images == 0
        (tmp_path / "t.parquet").rename(tmp_path / "u.parquet")
        assert store.remove(missing=True, yes=True).images == COUNT
        assert store.check().problems == ()
