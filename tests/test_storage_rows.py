"""How rows are laid out among the keys: every row is read as it was written, and sorts as it must."""

import string

from hypothesis import given
from hypothesis import strategies as st

from engine.records import Kind, Place
from engine.storage.rows import (
    BUCKET_BITS,
    ONE,
    ArrayRow,
    ImageRow,
    NameRow,
    RecordRow,
    Run,
    bucket_prefix,
    u64,
)

BUCKET = 1 << BUCKET_BITS
u32s, u64s = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
times = st.integers(-(1 << 63), (1 << 63) - 1)
words = st.text(string.ascii_letters + string.digits + "-.", max_size=20)
proofs = st.binary(min_size=32, max_size=32)
places = st.none() | st.builds(Place, st.integers(1, (1 << 32) - 1), u64s, u32s)
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


@given(st.builds(ImageRow, u64s, proofs, places, st.booleans()))
def test_image_rows_are_read_as_written(row: ImageRow) -> None:
    same(row)


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


@given(st.builds(NameRow, u64s, times, u64s))
def test_name_rows_are_read_as_written(row: NameRow) -> None:
    same(row)


@given(st.builds(ArrayRow, u32s, times, u64s, u64s, st.sampled_from(Kind)))
def test_array_rows_are_read_as_written(row: ArrayRow) -> None:
    same(row)


@given(runs)
def test_runs_are_read_as_written_by_row_and_by_id(run: Run) -> None:
    assert Run.from_row(*run.by_row) == run
    assert Run.from_id(*run.by_id) == run


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
    keys = [Run(1, row, 1, 1, id_).by_id[0] for row, id_ in enumerate(ids)]
    assert [Run.from_id(key, b"\0" * 5).id for key in sorted(keys)] == sorted(ids)
