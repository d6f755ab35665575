"""Segments: lists on the disk, searched mapped, and what is made of damaged ones."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from damage import FailingDisk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexed import clustered, few_files, nearest, recall_of, write

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError
from engine.index import build, segment_layout
from engine.index.background import BackgroundWork
from engine.index.quantizer import Quantizer
from engine.index.quantizer_file import save_quantizer
from engine.index.search import VectorIndex
from engine.index.segment import Segment
from engine.index.segment_layout import TESTED_FAISS, pack_codes, unpack_codes
from engine.index.segment_writer import write_segment
from engine.index.train import train_quantizer
from engine.storage.disk import using
from engine.storage.durable import UnreadableError
from engine.storage.index_files import file_problem, make_index_folder, segment_path
from engine.storage.manifest import QuantizerEntry, SegmentEntry
from engine.storage.vectors import Vectors

pytestmark = pytest.mark.usefixtures("one_thread")

WORK = BackgroundWork(MemoryBudget())


class Made:
    """Vectors, a quantizer and a segment over all of them."""

    def __init__(self, root: Path, block: np.ndarray, nlist: int | None = None) -> None:
        self.root, self.block = root, block
        self.vectors: Vectors = write(root, block)
        if nlist is None:
            made = train_quantizer(root, 1, 1, self.vectors, len(block), WORK)
            self.named, self.quantizer = made
        else:
            self.quantizer = Quantizer.train(block, nlist, 1)
            make_index_folder(root)
            sums = save_quantizer(self.quantizer, root / "index" / "00000001.quantizer", 1)
            self.named = QuantizerEntry(1, 1, nlist, len(block), 0.5, *sums)
        self.entry = self.piece(2, [(0, len(block))])

    def piece(self, number: int, spans: list[tuple[int, int]]) -> SegmentEntry:
        made = build.build_segment(
            self.root, number, self.named, self.quantizer, self.vectors, spans, WORK
        )
        return made[0]

    def open(self, entry: SegmentEntry | None = None) -> Segment:
        entry = entry or self.entry
        return Segment(segment_path(self.root, entry.number), entry, self.quantizer)


def candidates(
    made: Made,
    segment: Segment,
    queries: np.ndarray,
    depth: int,
    nprobe: int,
    alive: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    fitted = made.quantizer.prepare_queries(queries)
    close, lists = made.quantizer.centroids.nearest(fitted, nprobe)
    return segment.candidates(fitted, depth, close, lists, alive)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 3, 9, 12, 65, 130])  # codes of many odd lengths
def test_what_is_read_is_what_was_coded(tmp_path: Path, dim: int) -> None:
    made = Made(tmp_path, clustered(700, dim))
    lists, codes, _ = made.quantizer.encode(made.block)
    segment = made.open()
    assert segment_path(tmp_path, 2).stat().st_size == made.entry.bytes
    assert file_problem(segment_path(tmp_path, 2), made.entry.bytes, made.entry.xxh64) is None
    assert segment.names_every_row()
    for number in range(made.quantizer.nlist):
        mine = np.flatnonzero(lists == number)
        found, labels = segment.take(number)
        assert np.array_equal(labels, mine)
        assert np.array_equal(found, codes[mine])


@pytest.mark.parametrize("queries", [1, 2, 30])
def test_lists_that_are_none_are_passed_over(tmp_path: Path, queries: int) -> None:
    made = Made(tmp_path, clustered(900, 12))
    segment = made.open()
    fitted = made.quantizer.prepare_queries(clustered(queries, 12, seed=1))
    close, lists = made.quantizer.centroids.nearest(fitted, 12)
    some = lists.copy()
    some[:, 1::3] = -1
    some[0, 4:] = -1
    expected = made.quantizer.encode(made.block)[0]
    labels = segment.candidates(fitted, 900, close, some, None)[1]
    for mine, found in zip(some, labels, strict=True):
        assert set(found[found >= 0]) == set(np.flatnonzero(np.isin(expected, mine)))


def test_empty_lists_are_no_matter(tmp_path: Path) -> None:
    block = np.repeat(clustered(5, 9), 40, axis=0)
    made = Made(tmp_path, block, nlist=50)
    segment = made.open()
    assert (segment.sizes == 0).sum() >= 45
    for some in (block[::40], block[:1]):
        found = candidates(made, segment, some, 200, 50)[1]
        assert (found[:, :40] >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("dim", [9, 12, 65])
def test_merged_pieces_are_the_segment_of_all(tmp_path: Path, dim: int) -> None:
    made = Made(tmp_path, clustered(900, dim))
    pieces = [
        made.piece(10, [(0, 100)]),
        made.piece(11, [(100, 101)]),
        made.piece(12, [(101, 900)]),
    ]
    merged = build.merge_segments(tmp_path, 20, made.named, made.quantizer, pieces, WORK)
    assert replace(merged, number=2) == made.entry
    assert segment_path(tmp_path, 20).read_bytes() == segment_path(tmp_path, 2).read_bytes()


def test_pieces_over_other_rows_keep_their_own(tmp_path: Path) -> None:
    made = Made(tmp_path, clustered(600))
    late, early = made.piece(10, [(400, 600)]), made.piece(11, [(0, 50), (100, 150)])
    merged = build.merge_segments(tmp_path, 20, made.named, made.quantizer, [late, early], WORK)
    assert merged.ranges == ((1, 400, 200), (1, 0, 50), (1, 100, 50))
    index = VectorIndex(tmp_path, made.vectors, [made.named], [merged])
    assert index.bare == [(50, 100), (150, 400)]
    rows = index.search(made.block, 1, recall=0.99)[1]
    assert np.mean(rows[:, 0] == np.arange(600)) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 9, 12, 130])
def test_a_segment_finds_what_lists_of_faiss_in_memory_find(tmp_path: Path, dim: int) -> None:
    made = Made(tmp_path, clustered(2000, dim))
    queries, depth, nprobe = clustered(30, dim, seed=1), 50, made.quantizer.nlist
    segment = made.open()
    plain = made.quantizer.empty_index()
    for number in range(nprobe):
        codes, labels = (np.ascontiguousarray(part) for part in segment.take(number))
        plain.invlists.add_entries(
            number, len(labels), faiss.swig_ptr(labels), faiss.swig_ptr(codes)
        )
    plain.ntotal = 2000
    theirs = faiss.IndexIVFPQFastScan(plain)
    theirs.nprobe = nprobe
    wanted, _ = theirs.search(made.quantizer.prepare_queries(queries), depth)
    scores, labels = candidates(made, segment, queries, depth, nprobe)
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    for i in range(5):  # one alone is searched in another way
        alone = candidates(made, segment, queries[i : i + 1], depth, nprobe)
        np.testing.assert_allclose(alone[0][0], scores[i], atol=1e-6)
    if dim > 1:
        assert recall_of(labels, nearest(made.block, queries, 10)[1]) > 0.95


@pytest.mark.slow
@given(
    codes=st.integers(0, 100).flatmap(
        lambda n: st.integers(1, 9).map(
            lambda size: np.random.default_rng(n).integers(0, 256, (n, size), np.uint8)
        )
    )
)
def test_blocks_give_back_what_was_packed(codes: np.ndarray) -> None:
    n, size = codes.shape
    blocks = pack_codes(codes)
    assert len(blocks) == -(-n // 32) * 32 * size
    assert np.array_equal(unpack_codes(blocks, n, size), codes)


def test_a_faiss_that_arranges_codes_differently_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, clustered(100))
    monkeypatch.setattr(segment_layout, "is_layout_of_faiss", lambda: False)
    with pytest.raises(UnreadableError, match=f"differently: install faiss-cpu=={TESTED_FAISS}"):
        made.open()


def test_only_those_that_are_alive_are_candidates(tmp_path: Path) -> None:
    made = Made(tmp_path, clustered(1000))
    alive = np.random.default_rng(0).random(1000) < 0.3
    bits = np.packbits(alive, bitorder="little")
    segment = made.open()
    for some in (made.block[:50], made.block[:1]):
        found = candidates(made, segment, some, 500, made.quantizer.nlist, bits)[1]
        assert alive[found[found >= 0]].all()
        assert ((found >= 0).sum(axis=1) >= alive.sum() - 1).all()


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("whole"), clustered(500, 9))


def put(whole: Made, root: Path, data: bytes) -> Path:
    """A segment's file of ``data``: mapped files are replaced, never changed."""
    path = segment_path(root, 2)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("length", [0, 1, 10, 35, 4095, 4096, 4100, -8, -1])
def test_a_cut_file_is_refused_whatever_its_entry_says(
    tmp_path: Path, whole: Made, length: int
) -> None:
    data = segment_path(whole.root, 2).read_bytes()[:length]
    path = put(whole, tmp_path, data)
    for said in (whole.entry.bytes, len(data)):
        with pytest.raises(StoreDamagedError):
            Segment(path, replace(whole.entry, bytes=said), whole.quantizer)
    assert file_problem(path, whole.entry.bytes, whole.entry.xxh64)


def test_a_file_that_is_gone_is_refused(tmp_path: Path, whole: Made) -> None:
    with pytest.raises(StoreDamagedError):
        Segment(tmp_path / "none", whole.entry, whole.quantizer)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_too_many_open_files_are_no_damage(whole: Made) -> None:
    whole.open()
    path = segment_path(whole.root, 2)
    failed = 0
    for free in range(10):
        with few_files(free):
            try:
                whole.open()
                assert file_problem(path, whole.entry.bytes, whole.entry.xxh64) is None
                break
            except UnreadableError as error:
                failed += 1
                assert "raise the limit of open files" in str(error)
    assert 2 <= failed < 10, "FAISS opens it after us"


@given(at=st.integers(0, 35), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_the_header_is_noticed(
    tmp_path: Path, whole: Made, at: int, bit: int
) -> None:
    data = bytearray(segment_path(whole.root, 2).read_bytes())
    data[at] ^= 1 << bit
    path = put(whole, tmp_path, data)
    with pytest.raises(StoreDamagedError):
        Segment(path, whole.entry, whole.quantizer)


@pytest.mark.slow
@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=6), st.randoms())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_sizes_are_refused_or_harm_nothing(
    tmp_path: Path, whole: Made, values: list[int], random: object
) -> None:
    """Those that happen to fit, as two that changed places do, make a segment of something else."""
    data = bytearray(segment_path(whole.root, 2).read_bytes())
    nlist = whole.quantizer.nlist
    sizes = np.frombuffer(data, np.uint32, nlist, 4096).copy()
    random.shuffle(sizes)  # type: ignore[attr-defined]
    for i, value in enumerate(values[2:]):
        sizes[i % nlist] = value
    data[4096 : 4096 + 4 * nlist] = sizes.tobytes()
    search(whole, put(whole, tmp_path, data))


@given(at=st.floats(0, 0.999), values=st.binary(min_size=1, max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_lists_name_no_row_that_is_not_there(
    tmp_path: Path, whole: Made, at: float, values: bytes
) -> None:
    data = bytearray(segment_path(whole.root, 2).read_bytes())
    start = 4096 + 4 * whole.quantizer.nlist
    begin = start + int(at * (len(data) - start))
    values = values[: len(data) - begin]
    data[begin : begin + len(values)] = values
    search(whole, put(whole, tmp_path, data))


def search(whole: Made, path: Path) -> None:
    """A damaged segment is refused, or names rows that there are."""
    try:
        segment = Segment(path, whole.entry, whole.quantizer)
    except StoreDamagedError:
        return
    segment.names_every_row()
    alive = np.full(-(-500 // 8), 255, np.uint8)
    for some in (whole.block[:5], whole.block[:1]):
        for bits in (None, alive):
            found = candidates(whole, segment, some, 40, whole.quantizer.nlist, bits)[1]
            assert ((found >= -1) & (found < 500)).all()


def test_labels_that_are_doubled_are_noticed(tmp_path: Path, whole: Made) -> None:
    data = bytearray(segment_path(whole.root, 2).read_bytes())
    segment = whole.open()
    assert segment.names_every_row()
    number = int(np.argmax(segment.sizes))
    at = int(segment._starts[number] + segment._capacities[number] * whole.quantizer.code_bytes)
    for value in (np.frombuffer(data, np.int64, 2, at)[1], 500, -1, 1 << 60):
        changed = data.copy()
        changed[at : at + 8] = np.int64(value).tobytes()
        path = put(whole, tmp_path, changed)
        assert not Segment(path, whole.entry, whole.quantizer).names_every_row()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, whole: Made) -> None:
    quantizer = whole.quantizer
    pieces = [(whole.open(), 0)]
    with using(FailingDisk("pwrite")), pytest.raises(OSError, match="No space"):
        write_segment(segment_path(tmp_path, 5), 1, quantizer.nlist, quantizer.code_bytes, pieces)
    assert list((tmp_path / "index").iterdir()) == []
