"""A set of ids is a Python set of ints, in a bit each; the removed ones are kept among the keys so."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import MemoryBudget
from engine.storage import tombstones
from engine.storage.bitmap import IdSet
from engine.storage.rocks import database, opening
from engine.storage.rows import u64

SIZES = st.integers(0, 70) | st.integers((1 << 19) - 9, (1 << 19) + 70)
IDS = st.integers(-(1 << 63), (1 << 63) - 1)


def array(ids: set[int] | list[int]) -> np.ndarray:
    return np.array(sorted(ids), np.int64)


def near(size: int) -> st.SearchStrategy[int]:
    """Ids at the edges of a set, inside of it, and anywhere."""
    return st.integers(-9, 80) | st.integers(size - 80, size + 9) | IDS


@st.composite
def sets(draw: st.DrawFn) -> tuple[IdSet, set[int]]:
    size = draw(SIZES)
    ids = draw(st.sets(near(size), max_size=40))
    made = IdSet.of(array(ids), size)
    want = {id_ for id_ in ids if 0 <= id_ < size}
    for _ in range(draw(st.integers(0, 2))):
        first, count = draw(near(size)), draw(st.integers(-3, 200))
        made.add_span(first, count)
        want |= {id_ for id_ in range(first, first + count) if 0 <= id_ < size}
    return made, want


@pytest.mark.slow
@given(sets(), st.data())
def test_it_has_what_was_put_in_and_nothing_else(
    both: tuple[IdSet, set[int]], data: st.DataObject
) -> None:
    made, want = both
    asked = data.draw(st.lists(near(made.size), max_size=40)) + sorted(want)
    assert made.has(np.array(asked, np.int64)).tolist() == [id_ in want for id_ in asked]
    assert (len(made), made.ids().tolist()) == (len(want), sorted(want))
    assert all(len(block) <= 1 << 19 for block in made.blocks())
    assert (made.bits.dtype, made.bits.shape) == (np.uint8, (-(-made.size // 8),))
    flags = np.unpackbits(made.bits, bitorder="little")
    assert np.flatnonzero(flags).tolist() == sorted(want)  # and no bit behind the size


@pytest.mark.slow
@given(sets(), sets())
def test_two_are_put_together_as_sets_are(
    one: tuple[IdSet, set[int]], other: tuple[IdSet, set[int]]
) -> None:
    before = one[0].bits.copy(), other[0].bits.copy()
    for made, want in (
        (one[0].union(other[0]), one[1] | other[1]),
        (one[0].both(other[0]), one[1] & other[1]),
        (one[0].without(other[0]), one[1] - other[1]),
    ):
        assert (len(made), made.ids().tolist()) == (len(want), sorted(want))
        assert not made.has(np.array([made.size, -1])).any()
    assert (one[0].bits == before[0]).all() and (other[0].bits == before[1]).all()


def test_without_a_size_it_reaches_to_the_greatest() -> None:
    made = IdSet.of(np.array([9, 3, 9, -1]))
    assert (made.size, made.ids().tolist()) == (10, [3, 9])
    assert (len(IdSet.of(np.empty(0, np.int64))), len(IdSet.none(0))) == (0, 0)


def test_a_count_is_of_what_is_in_it_by_now() -> None:
    made = IdSet.none(100)
    assert len(made) == 0
    made.add(np.array([7]))
    assert len(made) == 1
    made.add_span(6, 3)
    assert len(made) == 3


# --- among the keys -------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> database.Keys:
    return opening.create(tmp_path, MemoryBudget())


def put(table: database.Keys, rows: object) -> list[bytes]:
    batch = table.batch()
    values = []
    for key, value in rows:
        batch.put(tombstones.TABLE, key, value)
        values.append(value)
    table.commit(batch)
    return values


def test_removed_ids_are_there_again_whether_few_or_many(table: database.Keys) -> None:
    draw = np.random.default_rng(0)
    want: set[int] = set()
    for count in (1, 5, 0, 3000, 40_000, 1, 60_000):
        new = draw.integers(1, 100_000, count).tolist()
        values = put(table, tombstones.rows_with(table, [*new, *sorted(want)[:3]]))
        assert all(len(value) <= 4096 for value in values)
        want |= set(new)
        found, bad = tombstones.read(table, 100_000)
        assert (found.ids().tolist(), bad) == (sorted(want), 0)
        assert dict(tombstones.rows_of(found)) == dict(table.scan(tombstones.TABLE))


def test_a_few_ids_take_a_few_bytes_and_never_more_than_a_bit_each(table: database.Keys) -> None:
    assert put(table, tombstones.rows_with(table, [1, 5])) == [b"\0\1\0\5"]
    for count in (2047, 2048, 2049):
        (value,) = put(table, tombstones.rows_with(table, list(range(1, count + 1))))
        assert len(value) == min(2 * count, 4096)
        assert tombstones.read(table, 1 << 15)[0].ids().tolist() == [*range(1, count + 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (u64(0), b""),
        (u64(0), b"\0\5\0"),
        (u64(0), b"\0\5\0\5"),
        (u64(0), b"\0\5\0\4"),
        (u64(0), b"\x80\0"),
        (u64(0), bytes(4096)),
        (u64(0), bytes(4098)),
        (u64(0), b"\0\x64"),  # 100, which was not given yet
        (u64(1), b"\0\1"),
        (b"\0", b"\0\1"),
        (b"\xff" * 8, b"\0\1"),
        (b"", b"\0\1"),
    ],
)
def test_a_row_that_cannot_be_is_counted_and_left_out(
    table: database.Keys, key: bytes, value: bytes
) -> None:
    put(table, [(key, value)])
    found, bad = tombstones.read(table, 100)
    assert (len(found), bad) == (0, 1)
