"""Vectors laid out anew: where they lie afterwards, and what goes on beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
from damage import NearlyFull
from indexed import (
    clustered,
    leftovers,
    nearest,
    new_store,
    recall_of,
    small_limits,
    stored,
)

from engine import Store
from engine.config import Limits
from engine.errors import StoreDamagedError
from engine.index import maintain
from engine.index.background import BackgroundWork
from engine.maintenance import reorder
from engine.records import OptimizeReport
from engine.storage.disk import using
from engine.storage.extents import HEADER_BYTES
from engine.storage.lock import WriterLock

LEAST = 100
LIMITS = small_limits(LEAST, recall_sample=50)
N = 6 * LEAST
BLOCK = clustered(2 * N)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reorder, "_WAIT_SECONDS", 0.01)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store with ids 1 to N, in two segments."""
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(BLOCK[: 4 * LEAST], name="a")
        store.ingest(BLOCK[4 * LEAST : N], name="b")
    return tmp_path / "s"


@pytest.fixture
def store(made: Path) -> Iterator[Store]:
    with Store.open(made, limits=LIMITS) as opened:
        yield opened
        assert opened.check().problems == ()
        assert leftovers(opened.path) == []


def rows_of(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """All rows as they lie: ids and vectors."""
    found = store.session.snapshot.open_vectors()
    rows = np.arange(found.rows, dtype=np.int64)
    ids, vectors = found.ids(rows), found.gather(rows)
    found.close()
    return ids, vectors


def expect(store: Store, ids: np.ndarray) -> None:
    """The store holds these of ``BLOCK``, id i row i - 1, bit for bit, and finds them."""
    assert stored(store) == {int(i): BLOCK[i - 1].tobytes() for i in ids}
    truth = ids[nearest(BLOCK[ids - 1], BLOCK[:100], 5)[1]]
    assert recall_of(store.search_vectors(BLOCK[:100], 5, recall=1)[1], truth) == 1
    found = store.search_vectors(BLOCK[:100], 5)[1]
    assert np.isin(found, ids).all()
    assert recall_of(found, truth) > 0.8


EVERY = np.arange(1, N + 1)


@pytest.mark.slow
def test_vectors_lie_in_the_order_of_lists_as_they_were(store: Store) -> None:
    report = store.optimize()
    assert (report.laid_out, report.skipped) == (N, ())
    ids, vectors = rows_of(store)
    assert not np.array_equal(ids, EVERY)
    assert np.array_equal(np.sort(ids), EVERY)
    assert np.array_equal(vectors, BLOCK[ids - 1])
    index = store.index.current
    (segment,) = index.segments
    lists, _, _ = index.quantizer.encode(vectors)
    assert (np.diff(lists) >= 0).all()
    assert np.array_equal(np.bincount(lists, minlength=len(segment.sizes)), segment.sizes)
    labels = np.concatenate([segment.take(number)[1] for number in range(len(segment.sizes))])
    assert np.array_equal(labels, np.arange(N))
    expect(store, EVERY)


@pytest.mark.slow
def test_a_second_optimize_does_nothing(store: Store) -> None:
    assert store.optimize().laid_out == N
    before = {path: path.stat().st_ino for path in store.path.rglob("*.[fi]*") if path.is_file()}
    named = store.session.snapshot.manifest
    assert store.optimize().laid_out == 0
    assert store.session.snapshot.manifest == named
    assert before == {
        path: path.stat().st_ino for path in store.path.rglob("*.[fi]*") if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.2, 0.6, 0.9])
def test_vectors_of_removed_images_go_from_the_disk(store: Store, part: float) -> None:
    gone = np.random.default_rng(1).permutation(EVERY)[: int(part * N)]
    left = np.setdiff1d(EVERY, gone)
    store.remove(ids=gone.tolist())
    assert store.optimize().laid_out == len(left)
    assert np.array_equal(np.sort(rows_of(store)[0]), left)
    (path,) = (store.path / "vectors").rglob("*.f32")
    assert path.stat().st_size == HEADER_BYTES + len(left) * BLOCK.shape[1] * 4
    assert store.session.snapshot.state.dead_vectors == 0
    expect(store, left)
    assert store.optimize().laid_out == 0, "there is nothing more to be done"
    new = store.ingest(BLOCK[N : 2 * N], name="c")
    assert new.added == N
    expect(store, np.concatenate([left, np.arange(N + 1, 2 * N + 1)]))


@pytest.mark.slow
def test_where_all_are_removed_nothing_is_left_and_a_store_goes_on(store: Store) -> None:
    numbers = {int(path.stem) for path in (store.path / "vectors").rglob("*.f32")}
    with Store.open(store.path, read_only=True, limits=LIMITS) as reader:
        store.remove(ids=EVERY.tolist())
        store.optimize()
        assert stored(store) == {}
        assert all(p.stat().st_size == HEADER_BYTES for p in (store.path / "vectors").rglob("*.*"))
        for opened in (store, reader):
            assert (opened.search_vectors(BLOCK[:2], 3)[1] == -1).all()
        assert store.optimize().laid_out == 0
        store.ingest(BLOCK[N:], name="c")
        for opened in (store, reader):
            expect(opened, np.arange(N + 1, 2 * N + 1))
    # Readers may still know the old file by its number.
    again = {int(path.stem) for path in (store.path / "vectors").rglob("*.f32")}
    assert not again & numbers


def test_fewer_vectors_than_are_indexed_lose_only_the_removed_ones(tmp_path: Path) -> None:
    with new_store(tmp_path / "s", LIMITS) as store:
        store.ingest(BLOCK[: LEAST - 1], name="a")
        assert store.optimize().laid_out == 0
        store.remove(ids=range(1, 31))
        assert store.optimize().laid_out == LEAST - 31
        assert rows_of(store)[0].tolist() == list(range(31, LEAST))
        assert store.info().segments == []
        expect(store, np.arange(31, LEAST))
        assert store.optimize().laid_out == 0
        assert leftovers(store.path) == []


@pytest.mark.slow
def test_several_extents_become_one_and_it_is_gone_on_with(tmp_path: Path) -> None:
    with new_store(tmp_path / "s", replace(LIMITS, extent_rows=70)) as store:
        for at in range(0, N, 50):
            store.ingest(BLOCK[at : at + 50], name=f"{at}")
        assert len(list((store.path / "vectors").rglob("*.f32"))) == -(-N // 70)
        assert store.optimize().laid_out == N
        assert len(list((store.path / "vectors").rglob("*.f32"))) == 1
        expect(store, EVERY)
        for at in range(N, 2 * N, 150):
            store.ingest(BLOCK[at : at + 150], name=f"{at}")
        expect(store, np.arange(1, 2 * N + 1))
        assert store.optimize().laid_out == 2 * N
        expect(store, np.arange(1, 2 * N + 1))
        assert store.check().problems == ()
        assert leftovers(store.path) == []


# --- beside others --------------------------------------------------------------------------------


def beside(
    path: Path,
    what: Callable[[Store], object],
    monkeypatch: pytest.MonkeyPatch,
    limits: Limits = LIMITS,
    others: Limits | None = None,
) -> OptimizeReport:
    """Optimize; when all is built, and before it takes the lock, another store does ``what``.

    ``others``: the limits of that one, if they are not the same.
    """
    lock, waits = reorder.Reorder._lock, []

    def locked(self: reorder.Reorder) -> None:
        if not waits:
            waits.append(1)
            with Store.open(path, limits=others or limits) as other:
                what(other)
        lock(self)

    with monkeypatch.context() as patch, Store.open(path, limits=limits) as store:
        patch.setattr(reorder.Reorder, "_lock", locked)
        report = store.optimize()
    assert waits
    assert leftovers(path) == []
    return report


@pytest.mark.slow
@pytest.mark.parametrize("extent", [1 << 20, N + 70])
def test_what_another_ingests_meanwhile_is_carried_over(
    made: Path, monkeypatch: pytest.MonkeyPatch, extent: int
) -> None:
    limits = replace(LIMITS, extent_rows=extent)
    report = beside(made, lambda o: o.ingest(BLOCK[N : N + 350], name="c"), monkeypatch, limits)
    assert (report.laid_out, report.skipped) == (N, ())
    with Store.open(made, limits=LIMITS) as store:
        expect(store, np.arange(1, N + 351))
        store.ingest(BLOCK[N + 350 : N + 400], name="d")
        expect(store, np.arange(1, N + 401))
        assert store.check().problems == ()


@pytest.mark.slow
def test_what_another_removes_meanwhile_stays_removed(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(made, limits=LIMITS) as store:
        store.remove(ids=[5])
    report = beside(made, lambda o: o.remove(ids=range(1, 301)), monkeypatch)
    assert report.laid_out == N - 1
    with Store.open(made, limits=LIMITS) as store:
        expect(store, np.arange(301, N + 1))
        assert store.session.snapshot.state.dead_vectors == 299
        assert store.optimize().laid_out == N - 300
        expect(store, np.arange(301, N + 1))
        assert store.check().problems == ()


@pytest.mark.slow
def test_if_another_has_laid_them_out_meanwhile_it_is_told(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = beside(made, lambda o: o.optimize(), monkeypatch)
    assert report.laid_out == 0
    assert "another process" in report.skipped[0]
    with Store.open(made, read_only=True, limits=LIMITS) as store:
        expect(store, EVERY)


@pytest.mark.slow
def test_if_another_has_trained_anew_meanwhile_it_is_told(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(made, limits=LIMITS) as store:
        store.optimize()
        store.remove(ids=range(1, 101))
    old_soon = replace(LIMITS, retrain_growth=1.2)
    report = beside(
        made, lambda o: o.ingest(BLOCK[N : 2 * N], name="c"), monkeypatch, others=old_soon
    )
    assert report.laid_out == 0
    assert "another process" in report.skipped[0]
    with Store.open(made, read_only=True, limits=LIMITS) as store:
        expect(store, np.arange(101, 2 * N + 1))


HOLD = """
import sys
from pathlib import Path
from engine.storage.lock import WriterLock
from engine.index.background import BackgroundWork
lock = WriterLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
lock.release()
"""


@pytest.mark.slow
def test_while_another_writes_it_waits(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        asked = []

        def progress(done: int, total: int | None) -> None:
            if "waiting for the process that writes" in caplog.text and not asked:
                asked.append(WriterLock(store.path).busy())
                other.stdin.write("\n")
                other.stdin.flush()

        assert store.optimize(progress=progress).laid_out == N
    assert asked == [True]
    expect(store, EVERY)


@pytest.mark.slow
def test_it_can_be_stopped_anywhere(store: Store) -> None:
    for after in (0, 1, 2, 3, 5, 8):
        answers = chain(repeat(False, after), repeat(True))
        report = store.optimize(stop=partial(next, answers))
        assert report.interrupted
        assert leftovers(store.path) == []
        expect(store, EVERY)
        if report.laid_out:
            break
    store.optimize()
    expect(store, EVERY)


@pytest.mark.slow
def test_readers_that_were_open_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Store.open(store.path, read_only=True, limits=LIMITS) as mapped,
        Store.open(store.path, read_only=True, limits=LIMITS) as unmapped,
    ):
        mapped.search_vectors(BLOCK[:1], 1)
        store.remove(ids=range(1, 201))
        store.optimize()
        left = np.arange(201, N + 1)
        with monkeypatch.context() as patch:
            # As if in the middle of a call, before it looks whether there is anything new.
            patch.setattr(mapped.session, "follow", lambda: None)
            patch.setattr(unmapped.session, "follow", lambda: None)
            ids = mapped.search_vectors(BLOCK[:N], 1)[1]
            assert np.mean(ids[:, 0] == EVERY) > 0.9, "as it was"
            ids = unmapped.search_vectors(BLOCK[200:N], 1)[1]
            assert np.mean(ids[:, 0] == left) > 0.9, "it had to ask again"
            assert stored(unmapped).keys() == set(left.tolist())
        for reader in (mapped, unmapped):
            expect(reader, left)


@pytest.mark.slow
def test_a_reader_never_takes_new_vectors_for_those_it_knows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of extents are not used again, not even when all vectors went."""
    with Store.open(store.path, read_only=True, limits=LIMITS) as reader:
        store.remove(ids=EVERY.tolist())
        store.optimize()
        store.ingest(BLOCK[N:], name="c")
        monkeypatch.setattr(reader.session, "follow", lambda: None)
        ids = reader.search_vectors(BLOCK[N : N + 50], 1, recall=1)[1]
        assert ids[:, 0].tolist() == list(range(N + 1, N + 51))


@pytest.mark.slow
def test_a_reader_that_is_open_takes_up_an_index_without_a_commit(made: Path) -> None:
    with (
        Store.open(made, read_only=True, limits=LIMITS) as asked,
        Store.open(made, read_only=True, limits=LIMITS) as idle,
        Store.open(made, limits=LIMITS) as writer,
    ):
        for reader in (asked, idle):
            reader.search_vectors(BLOCK[:1], 1)
        commit, vectors = (
            writer.session.snapshot.state.commit,
            writer.session.snapshot.state.vectors,
        )
        writer.session.become_writer()
        work = BackgroundWork(writer.session.memory)
        updater = maintain.IndexUpdater(writer.session, work)
        updater._build(writer.index.current, work)
        measured = updater.measure(0.6)
        assert writer.session.snapshot.state.commit == commit
        for reader in (asked, idle):
            reader.search_vectors(BLOCK[:1], 1)
            assert reader.session.snapshot.manifest == writer.session.snapshot.manifest
            assert reader.index.current.measured == measured
            assert reader.session.snapshot.state.commit == commit
            assert reader.session.snapshot.state.vectors == vectors
            opened = reader.index.current
            reader.search_vectors(BLOCK[:1], 1)
            assert reader.index.current is opened, "once for each index"
            expect(reader, EVERY)


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.slow
def test_for_want_of_room_it_is_left_and_told_of(store: Store) -> None:
    with using(NearlyFull(1 << 20)):
        report = store.optimize()
    assert report.laid_out == 0
    assert any("were not laid out again" in what for what in report.skipped)
    assert leftovers(store.path) == []
    expect(store, EVERY)
    assert store.optimize().laid_out == N


@pytest.mark.slow
@pytest.mark.parametrize("more", [1, N, -N, 1 << 40])
def test_a_damaged_segment_loses_no_vector(made: Path, more: int) -> None:
    """Labels that name a row twice, and so another not at all, or that name none."""
    with Store.open(made, read_only=True, limits=LIMITS) as opened:
        index = opened.index.current
        segment = max(index.segments, key=lambda one: one.entry.rows)
        number = int(np.argmax(segment.sizes))
        codes = int(segment._capacities[number]) * index.quantizer.code_bytes
        path, at = segment._path, int(segment._starts[number]) + codes
    data = bytearray(path.read_bytes())
    data[at : at + 8] = (np.frombuffer(data, np.int64, 1, at) + more).tobytes()
    path.unlink()
    path.write_bytes(data)
    with Store.open(made, limits=LIMITS) as opened:
        assert opened.optimize().laid_out == N
        expect(opened, EVERY)
        assert opened.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["f32", "ids"])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_damaged_vectors_are_not_laid_out_as_if_they_were_whole(
    made: Path, suffix: str, damage: str
) -> None:
    """A copy would get a checksum that is right, and nobody would ever find the damage."""
    (path,) = (made / "vectors").rglob(f"*.{suffix}")
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 1000] ^= 1
    path.unlink()
    path.write_bytes(data if damage == "flipped" else data[:-1])
    with Store.open(made, read_only=True, limits=LIMITS) as opened:
        before = [problem.part for problem in opened.check().problems]
    if damage == "flipped":
        with Store.open(made, limits=LIMITS) as opened:
            report = opened.optimize()
            assert report.laid_out == 0
            assert "check --fix" in report.skipped[0]
    else:
        with (
            Store.open(made, limits=LIMITS) as opened,
            pytest.raises(StoreDamagedError, match="cut short"),
        ):
            opened.optimize()
    with Store.open(made, read_only=True, limits=LIMITS) as opened:
        assert [problem.part for problem in opened.check().problems] == before
    assert leftovers(made) == []


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["f32", "ids"])
def test_damaged_vectors_that_came_meanwhile_are_not_carried_over(
    made: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    (path,) = (made / "vectors").rglob(f"*.{suffix}")

    def come_and_be_damaged(other: Store) -> None:
        at = path.stat().st_size
        other.ingest(BLOCK[N : N + 50], name="c")
        with path.open("r+b") as file:
            file.seek(at + 100)
            (byte,) = file.read(1)
            file.seek(at + 100)
            file.write(bytes([byte ^ 1]))

    report = beside(made, come_and_be_damaged, monkeypatch)
    assert report.laid_out == 0
    assert "check --fix" in report.skipped[0]
    with Store.open(made, read_only=True, limits=LIMITS) as opened:
        assert str(path.relative_to(made)) in [p.part for p in opened.check().problems]


@pytest.mark.slow
def test_for_want_of_room_for_what_came_meanwhile_it_is_left(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = NearlyFull(1 << 40)

    def come_and_fill_the_disk(other: Store) -> None:
        other.ingest(BLOCK[N : N + 50], name="c")
        disk.left = 1 << 20

    with using(disk):
        report = beside(made, come_and_fill_the_disk, monkeypatch)
    assert report.laid_out == 0
    assert "bytes on the disk" in report.skipped[0]
    with Store.open(made, read_only=True, limits=LIMITS) as opened:
        expect(opened, np.arange(1, N + 51))


def damage_ids(path: Path, rows: int = 1) -> None:
    """As a lost page would, or as a flipped byte if it is one row's."""
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 8 * 5)
        file.write(b"\xff" if rows == 1 else bytes(8 * rows))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 200])
def test_of_damaged_ids_those_that_are_sure_are_kept(made: Path, rows: int) -> None:
    with Store.open(made, limits=LIMITS) as opened:
        assert opened.optimize().laid_out == N
    (path,) = (made / "vectors").rglob("*.ids")
    damage_ids(path, rows)
    with Store.open(made, limits=LIMITS) as opened:
        problems = opened.check(fix=True).problems
        assert all(problem.fixed for problem in problems)
        scores, ids = opened.search_vectors(BLOCK[:N], 1, recall=1)
        right = ids[:, 0] == EVERY
        told = any("vectors are lost" in problem.what for problem in problems)
        if rows == 1:  # it is the one that no other row has
            assert right.all() and not told
        else:
            assert N - rows <= right.sum() < N and told
        assert (scores[~right] < 0.9999).all(), "no vector is found under another's id"
        again = opened.check(fix=True).problems
        assert all("have a record" in problem.what for problem in again), again
        assert opened.optimize(recall=0.9).laid_out in (0, int(right.sum()))
        assert all("have a record" in problem.what for problem in opened.check().problems)


@pytest.mark.slow
def test_vectors_of_which_nobody_knows_whose_they_are_are_not_found(made: Path) -> None:
    """Ids that were laid out follow from nothing: where they are lost, so are these vectors."""
    with Store.open(made, limits=LIMITS) as opened:
        assert opened.optimize().laid_out == N
    (path,) = (made / "vectors").rglob("*.ids")
    damage_ids(path, N - 5)
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(bytes(8 * 5))
    with (
        Store.open(made, read_only=True, limits=LIMITS) as reader,
        Store.open(made, limits=LIMITS) as opened,
    ):
        assert any(
            "vectors are lost" in problem.what for problem in opened.check(fix=True).problems
        )
        for store in (opened, reader):
            for recall in (None, 1):
                scores, ids = store.search_vectors(BLOCK[:5], 3, recall=recall)
                assert (ids == -1).all()
                assert np.isneginf(scores).all()
        again = opened.ingest(np.concatenate([BLOCK[:N], BLOCK[:1]]), name="c")
        assert again.added == N + 1
        expect_found = np.arange(N + 1, 2 * N + 2)
        ids = opened.search_vectors(BLOCK[:N], 1, recall=1)[1][:, 0]
        assert np.isin(ids, expect_found).all()
        assert opened.optimize().laid_out == N + 1, "they are not laid out with the others"
        assert np.array_equal(np.sort(rows_of(opened)[0]), expect_found)


@pytest.mark.slow
def test_ids_of_half_a_commit_do_not_become_those_of_the_other_half(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(LIMITS, extent_rows=N + 70)
    report = beside(made, lambda o: o.ingest(BLOCK[N : N + 350], name="c"), monkeypatch, limits)
    assert report.laid_out == N
    names = sorted((made / "vectors").rglob("*.ids"))
    with Store.open(made, read_only=True, limits=LIMITS) as opened:
        whose = opened.search_vectors(BLOCK[N : N + 350], 1, recall=1)[1][:, 0]
        assert np.array_equal(whose, np.arange(N + 1, N + 351))
    for path in names:
        damage_ids(path)
    with Store.open(made, limits=LIMITS) as opened:
        opened.check(fix=True)
        ids = opened.search_vectors(BLOCK[N : N + 350], 1, recall=1)[1][:, 0]
        scores = opened.search_vectors(BLOCK[N : N + 350], 1, recall=1)[0][:, 0]
        right = ids == np.arange(N + 1, N + 351)
        assert not (~right & (scores > 0.9999)).any(), "a vector under the id of another"


@pytest.mark.slow
def test_a_store_that_cannot_be_written_says_why(made: Path) -> None:
    with Store.open(made, limits=LIMITS) as opened:
        opened.remove(ids=range(1, 100))
    (path,) = (made / "fingerprints").glob("*.pdq")
    path.write_bytes(path.read_bytes()[:-32])
    with (
        Store.open(made, limits=LIMITS) as opened,
        pytest.raises(StoreDamagedError, match="cut short"),
    ):
        opened.optimize()


@pytest.mark.slow
def test_waiting_for_a_writer_can_be_stopped(made: Path) -> None:
    held = WriterLock(made)
    held.acquire()
    try:
        with Store.open(made, limits=LIMITS) as opened:
            answers = chain(repeat(False, 40), repeat(True))
            report = opened.optimize(stop=partial(next, answers))
    finally:
        held.release()
    assert (report.laid_out, report.interrupted) == (0, True)
    assert leftovers(made) == []
