"""Extents: append-only files that are read exactly as committed, or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import Store, StoreDamagedError
from engine.config import Limits
from engine.images import hashing
from engine.records import Place
from engine.storage import extents
from engine.storage.extent_reader import ExtentReader
from engine.storage.extent_writer import ExtentWriter
from engine.storage.extents import HEADER_BYTES, PIXELS

UUID = bytes(range(16))
ROWS = extents.Family("rows", ".bin", 8)


def writer(store: Path, family: extents.Family = PIXELS) -> ExtentWriter:
    """A writer at the beginning of extent 1."""
    extents.create(store, family, 1, UUID)
    return ExtentWriter(store, family, 1, 0)


def write(log: ExtentWriter, data: bytes) -> Place:
    place = log.put(data)
    log.flush()
    return place


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.lists(st.binary(max_size=100), max_size=5), min_size=1, max_size=5))
def test_blobs_are_read_back_where_they_were_put(
    tmp_path: Path, appends: list[list[bytes]]
) -> None:
    log = writer(tmp_path)
    kept: list[tuple[Place, bytes]] = []
    for blobs in appends:
        before = log.end
        places = [log.put(blob) for blob in blobs]
        done = log.flush()
        assert (done is None) == (not blobs)
        if done:
            assert (done.offset, done.length) == (before, sum(map(len, blobs)))
            assert done.xxh64 == hashing.checksum(b"".join(blobs))
        assert log.flush() is None
        kept += zip(places, blobs, strict=True)
    log.close()
    reader = ExtentReader(tmp_path, PIXELS)
    for place, blob in kept:
        assert reader.read(place) == blob
    reader.close()


def test_rows_are_mapped_as_an_array(tmp_path: Path) -> None:
    log = writer(tmp_path, ROWS)
    values = np.arange(20, dtype=np.int64)
    write(log, values[:12].tobytes())
    reader = ExtentReader(tmp_path, ROWS)
    assert reader.rows(1, 12, np.int64)[:, 0].tolist() == list(range(12))
    write(log, values[12:].tobytes())  # and grow
    assert reader.rows(1, 20, np.int64)[:, 0].tolist() == list(range(20))
    assert not reader.rows(1, 20, np.int64).flags.writeable


def test_a_writer_goes_on_at_the_committed_length(tmp_path: Path) -> None:
    log = writer(tmp_path)
    write(log, b"committed")
    write(log, b"not committed, and longer")
    log.close()
    again = ExtentWriter(tmp_path, PIXELS, 1, 9)
    assert write(again, b"next") == Place(1, 9, 4)
    assert ExtentReader(tmp_path, PIXELS).read(Place(1, 0, 13)) == b"committednext"


def test_what_is_cut_or_gone_is_damage_and_never_zeros(tmp_path: Path) -> None:
    log = writer(tmp_path, ROWS)
    write(log, bytes(80))
    path = ROWS.path(tmp_path, 1)
    os.truncate(path, HEADER_BYTES + 79)
    reader = ExtentReader(tmp_path, ROWS)
    assert reader.read(Place(1, 0, 72)) == bytes(72)
    with pytest.raises(StoreDamagedError, match=r"cut short; run 'engine check'"):
        reader.read(Place(1, 72, 8))
    with pytest.raises(StoreDamagedError, match="engine check"):
        reader.rows(1, 10, np.int64)
    with pytest.raises(StoreDamagedError, match="No such file"):
        reader.read(Place(2, 0, 8))
    with pytest.raises(StoreDamagedError, match="engine check"):
        reader.rows(2, 1, np.int64)


# --- headers --------------------------------------------------------------------------------------


def test_a_good_header_has_no_problem(tmp_path: Path) -> None:
    for family in (PIXELS, extents.FINGERPRINTS, extents.vectors(1, 16), extents.vector_ids(1)):
        extents.create(tmp_path, family, 1, UUID)
        assert extents.header_problem(tmp_path, family, 1, UUID) is None
        assert family.path(tmp_path, 1).stat().st_size == HEADER_BYTES


@pytest.mark.parametrize("offset", [0, 8, 24, 28, 32, 36, 67, 70])
def test_each_byte_of_a_header_counts(tmp_path: Path, offset: int) -> None:
    extents.create(tmp_path, PIXELS, 1, UUID)
    path = PIXELS.path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    assert extents.header_problem(tmp_path, PIXELS, 1, UUID) == "its header is damaged"


def test_an_extent_in_the_wrong_place_is_noticed(tmp_path: Path) -> None:
    extents.create(tmp_path, PIXELS, 1, UUID)
    path = PIXELS.path(tmp_path, 1)
    assert extents.header_problem(tmp_path, PIXELS, 1, bytes(16)) == "it belongs to another store"
    second = PIXELS.path(tmp_path, 2)
    second.write_bytes(path.read_bytes())
    assert extents.header_problem(tmp_path, PIXELS, 2, UUID) == "its header is another extent's"
    other = extents.FINGERPRINTS.path(tmp_path, 1)
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    problem = extents.header_problem(tmp_path, extents.FINGERPRINTS, 1, UUID)
    assert problem == "its header is another extent's"


def test_a_header_that_is_cut_or_gone_is_noticed(tmp_path: Path) -> None:
    extents.create(tmp_path, PIXELS, 1, UUID)
    os.truncate(PIXELS.path(tmp_path, 1), HEADER_BYTES - 1)
    assert extents.header_problem(tmp_path, PIXELS, 1, UUID) == "its header is cut short"
    PIXELS.path(tmp_path, 1).unlink()
    assert "No such file" in str(extents.header_problem(tmp_path, PIXELS, 1, UUID))


def test_making_an_extent_again_empties_what_a_crash_left(tmp_path: Path) -> None:
    PIXELS.path(tmp_path, 1).parent.mkdir()
    PIXELS.path(tmp_path, 1).write_bytes(b"left by a crash" * 1000)
    extents.create(tmp_path, PIXELS, 1, UUID)
    assert PIXELS.path(tmp_path, 1).stat().st_size == HEADER_BYTES
    assert extents.header_problem(tmp_path, PIXELS, 1, UUID) is None


# --- many extents ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_go_on_in_a_new_extent_where_one_is_full(tmp_path: Path, tiny_encoder: Path) -> None:
    limits = Limits(extent_rows=7, extent_bytes=3 * 3766 + 1)
    encoder = str(tiny_encoder)
    with Store.open(tmp_path / "a", create=True, encoder=encoder, limits=limits) as store:
        for n in (5, 7, 8, 29):  # ends before, at, behind an edge, and far behind
            store.ingest(f"synthetic:bits?n={n}")
        assert store.check().problems == ()
        names = {path.name for path in (tmp_path / "a" / "fingerprints").iterdir()}
        assert names == {f"0000000{number}.pdq" for number in range(1, 6)}
        for path in (*(tmp_path / "a" / "fingerprints").iterdir(),):
            assert path.stat().st_size <= HEADER_BYTES + 7 * 32
        assert len(list((tmp_path / "a" / "pixels").iterdir())) > 1
    with Store.open(tmp_path / "a", read_only=True) as store:
        for row in range(29):
            query = f"synthetic:bits?seed=0#{row}"
            (hit,) = store.lookup(query, tiers=["identical"]).identical
            assert (hit.id, hit.verified) == (row + 1, "bytes")
            (like,) = store.lookup(query, tiers=["similar"], k=1).similar
            assert like.id == row + 1
        assert store.info().vectors == 29


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3 * 4096)), min_size=1, max_size=8))
def test_zeros_are_read_and_checked_like_what_was_written(
    tmp_path: Path, appends: list[tuple[bool, int]]
) -> None:
    log = writer(tmp_path)
    kept = []
    for are_zeros, length in appends:
        data = bytes(length) if are_zeros else b"x" * length
        place = Place(1, log.end, length)
        if are_zeros:
            log.put_zeros(length)
        else:
            assert log.put(data) == place
        done = log.flush()
        assert done is not None
        assert (done.offset, done.length) == (place.offset, length)
        assert done.xxh64 == hashing.checksum(data)
        kept.append((place, data))
    log.close()
    reader = ExtentReader(tmp_path, PIXELS)
    written = bytearray(log.end)  # a byte that is 1 is in no hole
    for start, end in reader.written(1, log.end):
        written[start:end] = b"\1" * (end - start)
    for place, data in kept:
        assert reader.read(place) == data
        if data[0]:
            assert all(written[place.offset : place.offset + place.length])
    reader.close()


def test_zeros_take_no_room(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.put_zeros(50 << 20)
    log.flush()
    write(log, b"behind them")
    log.close()
    status = PIXELS.path(tmp_path, 1).stat()
    assert status.st_size == HEADER_BYTES + (50 << 20) + 11
    if status.st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no holes")
    reader = ExtentReader(tmp_path, PIXELS)
    assert sum(end - start for start, end in reader.written(1, log.end)) < 1 << 20
    assert list(reader.written(1, 10 << 20)) == []
    reader.close()


def test_zeros_that_were_not_flushed_are_forgotten(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.put_zeros(100)
    log.close()
    assert log.flush() is None
    assert PIXELS.path(tmp_path, 1).stat().st_size == HEADER_BYTES
