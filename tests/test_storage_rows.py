"""How rows are laid out among the keys: every row is read as it was written, and sorts as it must."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.records import Kind, Pixels, Place
from engine.storage.image_rows import ImageRow, ImageRows, pack_images
from engine.storage.record_rows import (
    RECORD_BLOCK,
    RecordRow,
    images_in,
    pack_records,
    record_ids,
    record_in,
    record_keys,
    record_without,
    unpack_records,
)
from engine.storage.rows import RowError, u64
from engine.storage.runs import BUCKET_BITS, ONE, Run, bucket_prefix
from engine.storage.source_rows import ArrayRow, NameRow

BUCKET = 1 << BUCKET_BITS
u32s, u64s = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
times = st.integers(-(1 << 63), (1 << 63) - 1)
words = st.text(string.ascii_letters + string.digits + "-.", max_size=20)
proofs = st.binary(min_size=32, max_size=32)
u24s, u40s = st.integers(1, (1 << 24) - 1), st.integers(0, (1 << 40) - 1)
places = st.none() | st.builds(Place, u24s, u40s, st.integers(1, (1 << 32) - 1))
ids = st.integers(1, (1 << 48) - 1)
image_rows = st.builds(ImageRow, ids, proofs, places, st.booleans(), st.booleans(), st.booleans())
runs = st.builds(
    Run,
    array=st.integers(1, 3),
    row=st.integers(0, 1 << 40),
    count=st.integers(1, 3 * BUCKET),
    step=st.integers(0, 1),
    id=st.integers(1, 3 * BUCKET),
)


def same(row: object) -> None:
    assert type(row).unpack(row.pack()) == row  # type: ignore[attr-defined]


@given(image_rows)
def test_image_rows_are_read_as_written(row: ImageRow) -> None:
    same(row)


@given(st.lists(st.none() | image_rows, max_size=20))
def test_image_rows_are_read_by_the_column_as_one_by_one(rows: list[ImageRow | None]) -> None:
    columns = ImageRows.unpack([row.pack() if row else None for row in rows])
    there = [row for row in rows if row]
    assert columns.found.tolist() == [row is not None for row in rows]
    assert columns.ids.tolist() == [row.id for row in there]
    assert [proof.tobytes() for proof in columns.proofs] == [row.proof for row in there]
    assert columns.shared.tolist() == [row.shared for row in there]
    assert columns.in_runs.tolist() == [row.in_runs for row in there]
    assert columns.canonical.tolist() == [row.canonical for row in there]
    assert columns.kept.tolist() == [row.place is not None for row in there]
    for i, row in enumerate(there):
        if row.place:
            place = Place(int(columns.extents[i]), int(columns.offsets[i]), int(columns.lengths[i]))
            assert place == row.place


@given(
    st.integers(1, 1 << 47),
    st.lists(
        st.tuples(st.binary(min_size=16, max_size=16), proofs, st.booleans()),
        min_size=1,
        max_size=20,
    ),
    st.none() | st.builds(Place, u24s, st.integers(0, 1 << 39), st.integers(1, 1 << 16)),
)
def test_image_rows_are_packed_by_the_column_as_one_by_one(
    first_id: int, rows: list[tuple[bytes, bytes, bool]], first: Place | None
) -> None:
    flags = np.array([in_runs for _, _, in_runs in rows])
    keys, values = pack_images(first_id, [r[0] for r in rows], [r[1] for r in rows], first, flags)
    expected = []
    for i, (key, proof, in_runs) in enumerate(rows):
        place = None
        if first is not None:
            place = Place(first.extent, first.offset + i * first.length, first.length)
        row = ImageRow(first_id + i, proof, place, in_runs=in_runs, canonical=place is not None)
        expected.append((key, row.pack()))
    assert sorted(zip(keys, values, strict=True)) == sorted(expected)
    assert [key[:8] for key in keys] == sorted(key[:8] for key in keys)


@given(st.integers(1, 1 << 47), st.integers(1, 3 * RECORD_BLOCK), st.integers(0, 1 << 20))
def test_records_of_rows_are_read_as_written(first_id: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = [rng.bytes(16) for _ in range(count)]
    qualities = rng.integers(0, 101, count).astype(np.uint8)
    shape = Pixels(Kind.U8, 3, 4, 3, 1, b"")
    packed = pack_records(first_id, shape, keys, qualities)
    read = [found for key, value in packed for found in unpack_records(key, value)]
    assert [id_ for id_, _ in read] == list(range(first_id, first_id + count))
    assert [record.key for _, record in read] == keys
    assert [record.quality for _, record in read] == qualities.tolist()
    assert {(r.kind, r.height, r.width, r.channels) for _, r in read} == {(Kind.U8, 3, 4, 3)}
    key, value = packed[-1]
    last = first_id + count - 1
    assert record_in(key, value, last) == read[-1][1]
    assert record_in(key, value, last + 1) is None
    assert record_in(key, value, int.from_bytes(key, "big") - 1) is None
    assert images_in(value) == len(record_ids(key, value))


@given(st.integers(1, 1 << 47), st.integers(1, 3 * RECORD_BLOCK), st.data())
def test_records_of_vectors_take_a_byte_each_and_go_one_by_one(
    first_id: int, count: int, data: st.DataObject
) -> None:
    packed = pack_records(
        first_id, Pixels(Kind.VECTOR, 1, 77, 1, 1, b""), [], np.zeros(count, np.uint8)
    )
    assert sum(len(value) for _, value in packed) <= count + 24 * len(packed)
    every = range(first_id, first_id + count)
    gone = data.draw(st.sets(st.sampled_from(every)))
    found = []
    for key, value in packed:
        assert images_in(value) == 0
        mine = [id_ for id_ in record_ids(key, value).tolist() if id_ in gone]
        left = record_without(key, value, mine)
        if left is None:
            assert len(mine) == len(record_ids(key, value))
            continue
        assert len(left) == len(value)
        assert all(record_in(key, left, id_) is None for id_ in mine)
        found += unpack_records(key, left)
        assert list(record_keys(key, left)) == [(i, b"") for i in record_ids(key, left).tolist()]
    assert [id_ for id_, _ in found] == sorted(set(every) - gone)
    assert {(r.kind, r.height, r.width, r.key) for _, r in found} <= {(Kind.VECTOR, 1, 77, b"")}


@pytest.mark.slow
@given(
    st.builds(
        RecordRow,
        kind=st.sampled_from(Kind),
        height=u32s,
        width=u32s,
        channels=st.integers(3, 4),
        frames=u32s,
        quality=st.integers(0, 100),
        file_bytes=u64s,
        key=st.binary(min_size=16, max_size=16),
        file_hash=st.just(b"") | proofs,
        container=words,
        decoder=words,
        metadata=st.none() | st.dictionaries(st.text(), st.text() | st.integers(), min_size=1),
    )
)
def test_record_rows_are_read_as_written(row: RecordRow) -> None:
    same(row)


@given(st.builds(NameRow, ids, times, u64s))
def test_name_rows_are_read_as_written(row: NameRow) -> None:
    same(row)


@given(st.builds(ArrayRow, u32s, times, u64s, u64s, st.sampled_from(Kind)))
def test_array_rows_are_read_as_written(row: ArrayRow) -> None:
    same(row)


@given(runs)
def test_runs_are_read_as_written_by_row_and_by_id(run: Run) -> None:
    for piece in run.pieces():
        assert Run.from_row(*piece.by_row) == piece
        assert Run.from_id(*piece.by_id) == piece


@pytest.mark.parametrize(
    "run",
    [
        Run(1, 0, (1 << 32) - 1, 1, 1),
        Run(1, 0, 4097, 1, 4096),
        Run(1, 0, 2, 1, 4095),
        Run(1, 0, 0, 1, 7),
        Run(1, 0, 3, 2, 7),
        Run(1, 0, 1, 1, 1 << 48),
        Run(1, 0, 1, 1, (1 << 64) - 1),
        Run(1, (1 << 64) - 1, 1, 1, 7),
    ],
)
def test_a_run_that_no_store_has_is_refused_when_it_is_read(run: Run) -> None:
    with pytest.raises(RowError, match="a malformed row"):
        Run.from_row(*run.by_row)
    with pytest.raises(RowError, match="a malformed row"):
        Run.from_id(*run.by_id)


def test_a_run_under_the_key_of_another_image_is_refused_when_it_is_read() -> None:
    one, several = Run(1, 0, 1, 1, 7), Run(1, 0, 2, 1, 7)
    (key, value), (key_of_one, value_of_one) = several.by_id, one.by_id
    rest = key_of_one[len(ONE) :]
    other = bucket_prefix(5 * BUCKET) + rest
    for wrong, its in ((other, value), (key, value_of_one), (ONE + rest, value)):
        with pytest.raises(RowError, match="a malformed row"):
            Run.from_id(wrong, its)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (u64(7), b""),
        (u64(7), b"\x02"),
        (u64(7), b"\x02" + bytes(19) + b"\x05" + bytes(11)),
        (u64(1 << 48), b"\x01" * 100),
        (bytes(9), b"\x01" * 100),
    ],
)
def test_a_record_that_no_store_has_is_refused_when_it_is_read(key: bytes, value: bytes) -> None:
    for read in (record_keys, unpack_records):
        with pytest.raises(RowError, match="a malformed row"):
            list(read(key, value))


@given(u64s, u64s)
def test_numbers_sort_as_bytes(a: int, b: int) -> None:
    assert (a < b) == (u64(a) < u64(b))


def images_of(run: Run) -> list[tuple[int, int]]:
    """Row and image, for each row of a run."""
    return [(run.row + i, run.id + i * run.step) for i in range(run.count)]


@given(runs)
def test_the_pieces_of_a_run_say_what_it_says(run: Run) -> None:
    pieces = run.pieces()
    assert [pair for piece in pieces for pair in images_of(piece)] == images_of(run)
    for piece in pieces:  # each lies in one bucket, under which all that may cover an id are found
        ids = [id_ for _, id_ in images_of(piece)]
        assert ids[0] // BUCKET == ids[-1] // BUCKET
        several = len(set(ids)) > 1
        prefix = bucket_prefix(ids[-1]) if several else ONE + u64(ids[0])
        assert piece.by_id[0].startswith(prefix)
        assert Run.from_id(*piece.by_id) == piece


@given(runs, st.integers(-2, 2))
def test_the_rows_of_an_image_are_found(run: Run, beside: int) -> None:
    for id_ in {run.id + beside, run.id + run.count - 1 + beside, run.id + run.count // 2}:
        expected = [row for row, image in images_of(run) if image == id_]
        assert list(run.rows_of(id_)) == expected


@given(st.lists(st.integers(0, 4 * BUCKET), min_size=2, max_size=20))
def test_runs_of_a_bucket_sort_by_their_first_image(ids: list[int]) -> None:
    rows = [Run(1, row, 1, 1, id_).by_id for row, id_ in enumerate(ids)]
    assert [Run.from_id(*row).id for row in sorted(rows)] == sorted(ids)
