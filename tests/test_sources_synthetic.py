"""Synthetic bit images: any row can be made without the others, and the set never drifts."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SourceError, UsageError
from engine.images.canonical import from_canonical
from engine.records import Kind
from engine.sources.synthetic import SyntheticBits, generate

ROW_LENGTH = 16 + 3750


@pytest.mark.parametrize(
    ("row", "sha256"),
    [
        (0, "cd8e9859960edefeba5c60095222773a710842baa77e960d37fabef8b0a482a9"),
        (12345, "aecaf0347ea94904a69d8535cb3273427e1016af1650d065916611c1987f6d12"),
    ],
)
def test_the_rows_of_seed_0_never_change(row, sha256):
    assert hashlib.sha256(SyntheticBits("synthetic:bits?seed=0").row(row)).hexdigest() == sha256


def test_a_row_is_a_canonical_bit_image_of_100_by_100():
    row = SyntheticBits("synthetic:bits").row(5)
    image = from_canonical(row.tobytes())
    assert (image.kind, image.height, image.width, image.channels) == (Kind.BITS, 100, 100, 3)
    assert (row.dtype, row.shape) == (np.uint8, (ROW_LENGTH,))


@given(
    first=st.integers(0, 1 << 40),
    count=st.integers(1, 5),
    inside=st.data(),
    seed=st.integers(0, 1 << 52),
)
def test_a_row_depends_on_seed_and_number_only(first, count, inside, seed):
    number = inside.draw(st.integers(first, first + count - 1))
    alone = generate(seed, number, 1)[0]
    assert np.array_equal(generate(seed, first, count)[number - first], alone)
    assert np.array_equal(SyntheticBits(f"synthetic:bits?n=1&seed={seed}").row(number), alone)


@given(
    n=st.integers(0, 30),
    start=st.integers(0, 35),
    max_rows=st.integers(1, 40),
    max_bytes=st.integers(1, 40 * ROW_LENGTH),
)
def test_blocks_of_any_size_hold_the_same_rows(n, start, max_rows, max_bytes):
    at = start
    for block in SyntheticBits(f"synthetic:bits?n={n}&seed=3").blocks(start, max_rows, max_bytes):
        assert (block.first, block.kind) == (at, Kind.BITS)
        assert 1 <= len(block.rows) <= max_rows
        assert np.array_equal(block.rows, generate(3, at, len(block.rows)))
        at += len(block.rows)
    assert at == max(start, n)


def test_a_set_is_the_beginning_of_a_larger_one():
    small, large = (SyntheticBits(f"synthetic:bits?n={n}&seed=1") for n in (10, 20))
    assert small.name == large.name == b"synthetic:bits?seed=1"
    (first,), (second,) = (list(s.blocks(0, 100, 1 << 20)) for s in (small, large))
    assert np.array_equal(first.rows, second.rows[:10])


def test_seeds_give_other_images_and_bits_are_even():
    one, other = generate(0, 0, 50)[:, 16:], generate(1, 0, 50)[:, 16:]
    assert not any(np.array_equal(a, b) for a in one for b in other)
    assert abs(np.unpackbits(one).mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("text", "count"),
    [("1e3", 1000), ("1000", 1000), ("1_000", 1000), ("2.5e1", 25), ("0", 0), ("1e9", 10**9)],
)
def test_n_is_written_as_people_write_it(text, count):
    assert SyntheticBits(f"synthetic:bits?n={text}").count == count


def test_n_0_is_an_empty_set():
    empty = SyntheticBits("synthetic:bits?n=0")
    assert empty.count == 0
    assert list(empty.blocks(0, 10, 1 << 20)) == []


@pytest.mark.parametrize(
    "spec",
    [
        "synthetic:",
        "synthetic:photos?n=3",
        "synthetic:bits?n=-1",
        "synthetic:bits?n=1.5",
        "synthetic:bits?n=",
        "synthetic:bits?n=many",
        "synthetic:bits?n=nan",
        "synthetic:bits?n=inf",
        "synthetic:bits?n=1e400",
        "synthetic:bits?n=1e17",
        f"synthetic:bits?n={'0' * 5000}1",
        "synthetic:bits?seed=-1",
        "synthetic:bits?seed=x",
        "synthetic:bits?n=3&colour=red",
    ],
)
def test_a_specification_that_makes_no_sense_is_a_usage_error(spec):
    with pytest.raises(UsageError) as caught:
        SyntheticBits(spec)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("number", [-1, 1 << 53])
def test_a_row_that_cannot_be_is_a_source_error(number):
    with pytest.raises(SourceError):
        SyntheticBits("synthetic:bits").row(number)
