"""Builds: bounded pieces, nothing left of what did not end well, and what is laid out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from damage import FailingDisk
from indexed import UUID, clustered, write

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.index import build
from engine.index.background import BackgroundWork
from engine.index.maintain import is_moved
from engine.index.reordered import Piece, ReorderedWriter
from engine.index.segment import Segment
from engine.index.segment_writer import SortedLists, write_segment
from engine.index.train import train_quantizer
from engine.stop import StoppedError
from engine.storage import extents
from engine.storage.bitmap import IdSet
from engine.storage.disk import using
from engine.storage.extents import HEADER_BYTES
from engine.storage.index_files import (
    ReorderedExtent,
    file_problem,
    make_index_folder,
    segment_path,
)
from engine.storage.vectors import Vectors

DIM, N = 12, 900
WORK = BackgroundWork(MemoryBudget())
FAMILIES = (extents.vectors(1, DIM), extents.vector_ids(1))


@pytest.fixture
def vectors(tmp_path: Path) -> Vectors:
    return write(tmp_path, clustered(N), each=400)


def index_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "index").glob("*"))


def test_pieces_are_as_large_as_memory_allows_and_nothing_is_left_of_them(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors.at_once = 50
    entry, quantizer = train_quantizer(tmp_path, 1, 1, vectors, N, WORK)
    whole, close = build.build_segment(tmp_path, 2, entry, quantizer, vectors, [(0, N)], WORK)
    sizes: list[int] = []
    real = SortedLists.__init__

    def made(self: SortedLists, lists: np.ndarray, *rest: object) -> None:
        sizes.append(len(lists))
        real(self, lists, *rest)

    monkeypatch.setattr(SortedLists, "__init__", made)
    small, near = build.build_segment(
        tmp_path, 9, entry, quantizer, vectors, [(0, N)], WORK, min_piece=50, max_piece=120
    )
    assert max(sizes) <= 120
    assert sum(sizes) == N
    assert segment_path(tmp_path, 9).read_bytes() == segment_path(tmp_path, 2).read_bytes()
    assert (small.ranges, small.xxh64) == (whole.ranges, whole.xxh64)
    assert near == pytest.approx(close)
    assert index_files(tmp_path) == ["00000001.quantizer", "00000002.ivf", "00000009.ivf"]


def steps(calls: int) -> BackgroundWork:
    """Work that is stopped after so many steps."""
    left = [calls]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return BackgroundWork(MemoryBudget(), stop=stop)


def test_what_is_stopped_leaves_nothing(tmp_path: Path, vectors: Vectors) -> None:
    with pytest.raises(StoppedError):
        train_quantizer(tmp_path, 1, 1, vectors, N, steps(0))
    assert index_files(tmp_path) == []
    entry, quantizer = train_quantizer(tmp_path, 1, 1, vectors, N, WORK)
    vectors.at_once = 100
    for calls in range(9):
        with pytest.raises(StoppedError):
            build.build_segment(
                tmp_path,
                2,
                entry,
                quantizer,
                vectors,
                [(0, N)],
                steps(calls),
                min_piece=100,
                max_piece=200,
            )
        assert index_files(tmp_path) == ["00000001.quantizer"]


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(tmp_path: Path, vectors: Vectors) -> None:
    vectors.at_once = 200

    def build_all() -> None:
        entry, quantizer = train_quantizer(tmp_path, 1, 1, vectors, N, WORK)
        try:
            build.build_segment(
                tmp_path, 2, entry, quantizer, vectors, [(0, N)], WORK, min_piece=200, max_piece=200
            )
        except OSError:
            assert index_files(tmp_path) == ["00000001.quantizer"]
            raise

    failed = 0
    for calls in range(1, 100):
        try:
            with using(FailingDisk("pwrite", at=calls)):
                build_all()
        except OSError:
            failed += 1
            path = tmp_path / "index" / "00000001.quantizer"
            path.unlink(missing_ok=True)
            assert index_files(tmp_path) == []
        else:
            break
    assert failed > 5


def test_damaged_vectors_are_not_trained_on(tmp_path: Path) -> None:
    block = clustered(N)
    block[::3] = np.nan
    vectors = write(tmp_path / "some", block)
    entry, _ = train_quantizer(tmp_path / "some", 1, 1, vectors, N, WORK)
    assert np.isfinite(entry.closeness)
    block[:] = np.inf
    vectors = write(tmp_path / "all", block)
    with pytest.raises(StoreDamagedError):
        train_quantizer(tmp_path / "all", 1, 1, vectors, N, WORK)


def test_damaged_vectors_do_not_make_the_others_look_unlike(tmp_path: Path) -> None:
    block = clustered(N)
    vectors = write(tmp_path / "whole", block)
    entry, quantizer = train_quantizer(tmp_path / "whole", 1, 1, vectors, N, WORK)
    damaged = block.copy()
    damaged[3], damaged[5, 2], damaged[7] = np.nan, np.inf, -np.inf
    found = write(tmp_path / "damaged", damaged)
    make_index_folder(tmp_path / "damaged")
    close = build.build_segment(
        tmp_path / "damaged",
        2,
        entry,
        quantizer,
        found,
        [(0, N)],
        WORK,
        min_piece=50,
        max_piece=120,
    )[1]
    assert close == pytest.approx(float(quantizer.encode(block)[2].mean()), abs=0.01)
    assert not is_moved(close, entry, 1.25)


def test_merging_and_checksums_can_be_stopped(tmp_path: Path, vectors: Vectors) -> None:
    entry, quantizer = train_quantizer(tmp_path, 1, 1, vectors, N, WORK)
    made = build.build_segment(tmp_path, 2, entry, quantizer, vectors, [(0, N)], WORK)[0]
    path = segment_path(tmp_path, 2)

    def stop() -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        file_problem(path, made.bytes, made.xxh64, stop)
    piece = Segment(path, made, quantizer)
    with pytest.raises(StoppedError):
        build.merge_segments(tmp_path, 3, entry, quantizer, [made], steps(0))
    code_bytes = quantizer.code_bytes
    with pytest.raises(StoppedError):
        write_segment(segment_path(tmp_path, 3), 1, quantizer.nlist, code_bytes, [(piece, 0)], stop)
    assert index_files(tmp_path) == ["00000001.quantizer", "00000002.ivf"]


# --- laying out -----------------------------------------------------------------------------------


def lay(
    root: Path, vectors: Vectors, gone: IdSet, work: BackgroundWork = WORK
) -> tuple[ReorderedExtent, Vectors, np.ndarray]:
    """Lay out from two segments; what was made, its vectors, and the list of each row before."""
    entry, quantizer = train_quantizer(root, 1, 1, vectors, N, work)
    pieces: list[Piece] = []
    for number, (start, end) in enumerate(((0, 500), (500, N)), 2):
        made, _ = build.build_segment(root, number, entry, quantizer, vectors, [(start, end)], WORK)
        opened = Segment(segment_path(root, made.number), made, quantizer)
        pieces.append((opened, lambda labels, start=start: labels + start))
    (root / "made").mkdir(exist_ok=True)
    laying = ReorderedWriter(
        root / "made", vectors, pieces, gone, FAMILIES, UUID, work, batch_bytes=4096
    )
    ordered = laying.write(4, entry, quantizer)
    lists = quantizer.encode(vectors.gather(np.arange(N)))[0]
    return ordered, Vectors(root / "made", 1, DIM, [(0, ordered.rows)]), lists


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 0.3, 1])
def test_rows_are_laid_out_list_by_list_without_the_removed_ones(
    tmp_path: Path, vectors: Vectors, part: float
) -> None:
    gone = np.random.default_rng(0).permutation(N)[: int(part * N)].astype(np.int64)
    block = vectors.gather(np.arange(N))
    ordered, laid, lists = lay(tmp_path, vectors, IdSet.of(gone * 10, 10 * N))
    left = np.setdiff1d(np.arange(N), gone)
    expected = left[np.argsort(lists[left], kind="stable")]
    assert ordered.rows == len(left)
    assert (ordered.segment is None) == (len(left) == 0)
    if len(left):
        rows = np.arange(len(left))
        assert np.array_equal(laid.ids(rows), expected * 10)
        assert np.array_equal(laid.gather(rows), block[expected])
        assert ordered.segment.ranges == ((0, 0, len(left)),)
        assert ordered.segment.ordered
    else:
        assert not segment_path(tmp_path / "made", 4).exists()


def test_what_is_said_of_appends_is_what_was_written(tmp_path: Path, vectors: Vectors) -> None:
    ordered, _, _ = lay(tmp_path, vectors, IdSet.none(0))
    assert len(ordered.appends) > 3
    for column, family in enumerate(FAMILIES):
        data = family.path(tmp_path / "made", 0).read_bytes()[HEADER_BYTES:]
        at = 0
        for append in (pair[column] for pair in ordered.appends):
            assert (append.family, append.extent, append.offset) == (family.name, 0, at)
            at += append.length
            assert append.xxh64 == hashing.checksum(data[append.offset : at])
        assert at == len(data) == N * family.row_bytes


def test_without_a_quantizer_rows_keep_their_order(tmp_path: Path, vectors: Vectors) -> None:
    (tmp_path / "made").mkdir()
    gone = IdSet.of(np.array([0, 50, 8990], np.int64), 10 * N)
    laying = ReorderedWriter(tmp_path / "made", vectors, [], gone, FAMILIES, UUID, WORK)
    ordered = laying.write(4, None, None)
    assert (ordered.rows, ordered.segment) == (N - 3, None)
    laid = Vectors(tmp_path / "made", 1, DIM, [(0, N - 3)])
    assert laid.ids(np.arange(N - 3)).tolist() == [
        10 * row for row in range(N) if row not in (0, 5, 899)
    ]
