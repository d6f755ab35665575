"""What is measured of recall, and what is chosen by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexed import clustered, nearest, write

from engine.config import MemoryBudget
from engine.index import build
from engine.index.background import BackgroundWork, StoppedError
from engine.index.calibrate import measure
from engine.index.operating_point import choose
from engine.index.search import VectorIndex
from engine.index.train import train_quantizer
from engine.storage.manifest import Measured, OperatingPoint, QuantizerEntry

pytestmark = pytest.mark.usefixtures("one_thread")

N, DIM = 3000, 24
WORK = BackgroundWork(MemoryBudget())


def indexed(root: Path, block: np.ndarray) -> VectorIndex:
    vectors = write(root, block)
    entry, quantizer = train_quantizer(root, 1, 1, vectors, len(block), WORK)
    made, _ = build.build_segment(root, 2, entry, quantizer, vectors, [(0, len(block))], WORK)
    return VectorIndex(root, vectors, [entry], [made])


@pytest.mark.slow
def test_what_is_measured_is_what_other_queries_find(tmp_path: Path) -> None:
    index = indexed(tmp_path, clustered(N, DIM))
    found = measure(index, None, 0.95)
    assert (found.target, found.quantizer, found.rows, found.sample) == (0.95, 1, N, 1000)
    queries = clustered(1000, DIM, seed=1)
    for k, points in found.points:
        truth = nearest(clustered(N, DIM), queries, k)[1]
        assert len(points) > 2
        for point in points[:: max(1, len(points) // 4)]:
            rows = index.search(queries, k, point=point)[1]
            shares = [len({*a} & {*b}) / k for a, b in zip(rows, truth, strict=True)]
            error = 4 * float(np.std(shares)) / len(shares) ** 0.5 + 0.01  # of either sample
            assert float(np.mean(shares)) > point.recall - error
            if point.nprobe >= 16:  # fewer lists may hold too few, and then more are searched
                assert float(np.mean(shares)) < point.recall + error
            assert point.recall_lower_bound <= point.recall


@pytest.mark.slow
def test_leaving_lists_out_is_measured_too(tmp_path: Path) -> None:
    """In places where few lists hold what is near, few are enough."""
    index = indexed(tmp_path, clustered(N, DIM))
    found = measure(index, None, 0.95)
    assert {p.probe_radius for _, points in found.points for p in points} - {None}
    queries = clustered(1000, DIM, seed=1)
    truth = nearest(clustered(N, DIM), queries, 10)[1]
    for point in [
        p for p in dict(found.points)[10] if p.probe_radius and p.recall_lower_bound > 0.8
    ]:
        rows = index.search(queries, 10, point=point)[1]
        shares = [len({*a} & {*b}) / 10 for a, b in zip(rows, truth, strict=True)]
        assert float(np.mean(shares)) > point.recall_lower_bound - 0.02


@pytest.mark.slow
def test_points_cost_more_the_more_they_find(tmp_path: Path) -> None:
    index = indexed(tmp_path, clustered(1500, DIM))
    for _, points in measure(index, None, 0.9).points:
        assert [p.recall_lower_bound for p in points] == sorted(
            {p.recall_lower_bound for p in points}
        )
        assert points[-1].recall_lower_bound > 0.95


@pytest.mark.slow
def test_duplicates_are_as_good_as_each_other(tmp_path: Path) -> None:
    """Which ten of a thousand equal vectors are found says nothing of recall."""
    block = np.concatenate(
        [clustered(1000, DIM), np.repeat(clustered(4, DIM, seed=5), 500, axis=0)]
    )
    index = indexed(tmp_path, block)
    index.measured = measure(index, None, 0.9)
    assert index.point(10, None) is not None
    queries = clustered(100, DIM, seed=2)
    scores = index.search(queries, 10)[0]
    worst = nearest(block, queries, 10)[0][:, -1:] - 1e-5
    assert (scores >= worst).mean() > 0.85


# --- what is chosen -------------------------------------------------------------------------------

ENTRY = QuantizerEntry(3, 1, 64, 10_000, 0.7, 1, 1)


@pytest.mark.slow
def test_where_all_are_next_to_equal_ones_nothing_is_said_of_recall(tmp_path: Path) -> None:
    index = indexed(tmp_path, np.repeat(clustered(4, DIM), 500, axis=0))
    index.measured = found = measure(index, None, 0.9)
    assert (found.points, found.rows) == ((), 2000)
    for recall in (None, 0.9, 0.5):
        assert index.point(10, recall) is None, "then all are compared"


def points(*found: float) -> tuple[OperatingPoint, ...]:
    return tuple(OperatingPoint(i + 1, 20 * (i + 1), s, s) for i, s in enumerate(found))


MEASURED = Measured(
    0.9, 3, 10_000, 1000, ((10, points(0.5, 0.8, 0.9, 0.99)), (100, points(0.4, 0.9, 0.95)))
)


@given(
    k=st.integers(1, 5000),
    one=st.floats(0.01, 1),
    other=st.floats(0.01, 1),
    measured=st.sampled_from([MEASURED, None]),
)
def test_more_recall_is_never_looked_for_in_less(
    k: int, one: float, other: float, measured: Measured | None
) -> None:
    less, more = (choose(measured, ENTRY, k, recall) for recall in sorted((one, other)))
    if less is None:
        assert more is None
    elif more is not None:
        assert (more.nprobe, more.rerank_depth) >= (less.nprobe, less.rerank_depth)
        assert more.nprobe <= ENTRY.nlist


def test_the_cheapest_that_surely_finds_as_much_is_chosen() -> None:
    for k, recall, nprobe in (
        (10, 0.5, 1),
        (10, 0.51, 2),
        (1, 0.9, 3),
        (10, None, 3),
        (11, 0.9, 2),
        (100, 0.95, 3),
    ):
        found = choose(MEASURED, ENTRY, k, recall)
        assert found is not None
        assert found.nprobe == nprobe
    for k, recall in ((10, 0.995), (100, 0.96), (10, 1), (1000, 1.0)):
        assert choose(MEASURED, ENTRY, k, recall) is None, "then all are compared"


def test_more_than_was_measured_is_looked_for_further() -> None:
    hundred, thousand = (choose(MEASURED, ENTRY, k, 0.9) for k in (100, 1000))
    assert hundred is not None and thousand is not None
    assert thousand.rerank_depth == 10 * hundred.rerank_depth
    assert hundred.nprobe < thousand.nprobe <= ENTRY.nlist


@pytest.mark.parametrize("k", [10, 50, 1000])
def test_no_more_lists_are_searched_than_there_are(k: int) -> None:
    """A manifest may say anything, and a search has memory for each list of each query."""
    many = ((10, (OperatingPoint(1 << 29, 20, 0.96, 0.95),)),)
    many += ((100, (OperatingPoint(1 << 29, 200, 0.96, 0.95),)),)
    found = choose(replace(MEASURED, points=many), ENTRY, k, 0.9)
    assert found is not None
    assert found.nprobe == ENTRY.nlist


@pytest.mark.parametrize("measured", [None, Measured(0.9), Measured(0.9, 2, 1, 1, MEASURED.points)])
def test_unmeasured_a_part_of_the_lists_is_searched(measured: Measured | None) -> None:
    found = choose(measured, ENTRY, 10, None)
    assert found is not None
    assert 16 <= found.nprobe <= ENTRY.nlist
    assert found.rerank_depth >= 100
    for recall in (0.5, 1.0):
        assert choose(measured, ENTRY, 10, recall) is None, "what is asked for is kept"


@pytest.mark.slow
def test_measuring_can_be_stopped_while_all_vectors_are_compared(tmp_path: Path) -> None:
    index = indexed(tmp_path, clustered(N, DIM))
    index.vectors.at_once = 100
    looked: list[int] = []
    gathered = index.vectors.blocks

    def blocks(start: int, stop: int, most: int) -> Iterator[np.ndarray]:
        for block in gathered(start, stop, most):
            looked.append(len(block))
            yield block

    index.vectors.blocks = blocks  # type: ignore[method-assign]

    def stop() -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        measure(index, None, 0.9, stop)
    assert looked == [100]


@pytest.mark.slow
@pytest.mark.parametrize("times", [18, 90])
def test_what_was_measured_of_a_hundred_is_not_believed_of_ten(tmp_path: Path, times: int) -> None:
    """With so many copies of each, ten nearest are all equal, and a hundred are not."""
    block = np.repeat(clustered(1800 // times, DIM), times, axis=0)
    index = indexed(tmp_path, block)
    index.measured = measure(index, None, 0.9)
    assert dict(index.measured.points).keys() == {100}
    assert index.point(10, None) is None, "then all are compared"
    queries = clustered(100, DIM, seed=2)
    assert np.allclose(index.search(queries, 10)[0], nearest(block, queries, 10)[0], atol=1e-5)
    assert index.point(100, 0.5) is not None
