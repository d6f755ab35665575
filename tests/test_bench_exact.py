"""The exact benchmarks at tiny sizes: that they ask what they say, check the answers, and judge."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import BenchError, WrongAnswerError
from bench.data import bit_images
from bench.harness import disk, memory, memory_limit, script
from bench.harness.measurement import quantiles
from bench.peers import key_lookups
from bench.peers.key_tables import LMDB, PEERS, SQLITE, Peer
from bench.peers.methods import DICT, ENGINE, PIXELS
from bench.questions import (
    cold_exact,
    cold_exact_child,
    exact_memory,
    exact_store,
    exact_store_child,
    exact_store_jobs,
    exact_store_report,
)
from bench.questions.memory_growth import Growth
from bench.report.tables import Target, targets
from engine import PackedBits, Store, UsageError
from engine.config import MemoryBudget

N = 120
MEMORY = 128 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/io").exists(), reason="what a process reads and writes: Linux tells"
    ),
]


@pytest.fixture(autouse=True)
def cache_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the stores of these tests are dropped from the page cache."""
    monkeypatch.setattr(disk, "_DROP_CACHES", tmp_path / "none" / "drop_caches")


def run(main: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> bool:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return main()


# --- images ---------------------------------------------------------------------------------------


def test_a_set_in_memory_has_the_rows_of_the_set_on_disk() -> None:
    rows = bit_images.packed_set(3, 1030)
    assert rows.shape == (1030, bit_images.PACKED_BYTES) and rows.flags.c_contiguous
    np.testing.assert_array_equal(rows[1020:], bit_images.packed(3, 1020, 10))
    numbers = np.array([7, 1029, 7])
    np.testing.assert_array_equal(bit_images.packed_rows(3, numbers), rows[numbers])


def test_every_other_miss_is_a_bit_away_from_an_image_of_the_set() -> None:
    n, seed = 40, 3
    rows = np.unpackbits(bit_images.packed(seed, 0, n), axis=1)
    misses = np.unpackbits(bit_images.packed_misses(n, seed, 10, 11), axis=1)
    apart = [int((rows != image).sum(axis=1).min()) for image in misses]
    assert set(apart[1::2]) == {1} and min(apart[::2]) > 10_000
    others = bit_images.packed_misses(n, seed, 30, 11)
    assert (np.unpackbits(others, axis=1) != misses).any(axis=1).all()


# --- the peers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SQLITE, LMDB])
def test_a_peer_keeps_each_key_once(method: str, tmp_path: Path) -> None:
    if method == LMDB:
        pytest.importorskip("lmdb")
    draw = np.random.default_rng(0)
    keys = [draw.bytes(16) for _ in range(1500)]
    proofs = [draw.bytes(32) for _ in range(1500)]
    peer: Peer = PEERS[method](tmp_path / "peer", 1 << 20)
    assert peer.take(1, keys[:1000], proofs[:1000]) == 1000
    rows = [(i + 1, proof) for i, proof in enumerate(proofs)]
    assert peer.find_many([*keys[:1000], b"\0" * 16]) == [*rows[:1000], None]
    # Some are known and one comes twice: ids go on without a gap.
    assert peer.take(1001, [*keys[800:], keys[1400]], [*proofs[800:], proofs[1400]]) == 500
    assert [peer.find(key) for key in keys] == rows
    with pytest.raises(BenchError, match="one key"):
        peer.take(1501, keys[:1], proofs[1:2])
    peer.close()
    again: Peer = PEERS[method](tmp_path / "peer", 1 << 20)
    assert again.find(keys[3]) == rows[3] and again.find(b"\0" * 16) is None
    again.close()


def test_a_peer_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(BenchError, match=r"pip install -e '\.\[peers\]'"):
        PEERS[LMDB](tmp_path / "peer", 0)


# --- taking in and asking -------------------------------------------------------------------------


def test_the_peers_commit_as_many_rows_at_a_time_as_the_engine(tmp_path: Path) -> None:
    rows = key_lookups.chunk_rows(MemoryBudget(MEMORY))
    done: list[int] = []
    with Store.open(tmp_path / "s", create=True, encoder="none", memory=MEMORY) as store:
        images = PackedBits(bit_images.packed_set(0, rows + 1), 100, 100)
        store.ingest(images, name="set", progress=lambda count, total: done.append(count))
    assert done[-2:] == [rows, rows + 1]


@pytest.mark.parametrize("method", [ENGINE, SQLITE, LMDB])
def test_a_set_is_taken_in_and_asked(method: str, tmp_path: Path) -> None:
    if method == LMDB:
        pytest.importorskip("lmdb")
    folder = str(tmp_path / "set")
    taken = exact_store_child.take(method, N, 1, folder, MEMORY, "auto")
    assert min(taken.values()) > 0
    least = N * (3_750 if method == ENGINE else 56)
    assert taken["written"] >= least and taken["disk"] >= least
    answers = exact_store_child.ask(method, N, 1, folder, MEMORY, 50)
    assert list(answers) == list(exact_store_jobs.Answers.__dataclass_fields__)
    assert min(answers.values()) > 0
    with pytest.raises(WrongAnswerError, match="was answered with nothing"):
        exact_store_child.ask(method, N, 2, folder, MEMORY, 50)  # of another set


@pytest.mark.parametrize("answer", [5, 7, -1])
def test_a_wrong_id_is_an_error(answer: int) -> None:
    image, ids = bit_images.packed(0, 0, 1), np.array([6])
    with pytest.raises(WrongAnswerError, match="image 6 was answered with"):
        exact_store_child._ask_singly(lambda one: answer, image, ids)
    with pytest.raises(WrongAnswerError, match="image 6 was answered with"):
        exact_store_child._ask_batches(lambda some: np.array([answer]), image, ids)
    with pytest.raises(WrongAnswerError, match="not there was answered with 5"):
        key_lookups.check(5, -1)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_exact_store_measures_and_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lmdb")
    arguments = ("--n", "9", "--rounds", "1", "--sample", "9", "--dir", str(tmp_path / "new"))
    met = run(exact_store.main, monkeypatch, *arguments)
    out = capsys.readouterr().out
    for job in exact_store_jobs.JOBS:
        assert f"\n{job.what}" in out
    assert out.count("MISSED") + out.count(" met") == 8
    assert met == ("MISSED" not in out)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_set_that_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    exact_store.check_memory(200_000)
    with pytest.raises(UsageError, match=r"take about 4\.9 GB of memory and 1\.0 GB are free"):
        exact_store.check_memory(10**6)


def test_growth_is_fitted() -> None:
    sizes = [1000, 10_000]
    answers = {
        size: {
            job: exact_store_jobs.Answers(2.0 * size, 1, 7.0, 1)
            for job in exact_store_jobs.JOBS
            if job.method != ENGINE or job is exact_store_jobs.KEPT
        }
        for size in sizes
    }
    held = {DICT: dict.fromkeys(sizes, 3.0), PIXELS: {1000: 50.0}}
    lines = exact_store_report.growth_table(sizes, answers, held).splitlines()
    fitted = {line.split("  ")[0]: line.split()[-1] for line in lines[1:]}
    assert fitted["engine, pixels kept, one"] == fitted["dict of hashes, one"] == "0.00"
    assert fitted["LMDB, keys and proofs, batch"] == "1.00"
    assert fitted["pixel by pixel, one"] == "-"


# --- cold -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> cold_exact.Set:
    """A small store with pixels, closed."""
    made = cold_exact.Set(N, 1, True, tmp_path_factory.mktemp("kept"))
    cold_exact_child.make(N, 1, str(made.store), MEMORY, "auto")
    return made


def disk_of(path: Path) -> disk.Disk:
    try:
        return disk.Disk(path)
    except BenchError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_a_cold_store_is_asked(kept: cold_exact.Set, there: bool, batched: bool) -> None:
    disk_of(kept.store)
    disk.forget(kept.store)
    found = cold_exact.Cold(
        **cold_exact_child.ask(N, 1, str(kept.store), MEMORY, 30, there, batched)
    )
    assert (found.count, len(found.seconds)) == (30, 1 if batched else 30)
    if there:
        assert found.own_bytes >= 4096 and found.reads >= 1
    with pytest.raises(WrongAnswerError):
        cold_exact_child.ask(N + 9, 1, str(kept.store), MEMORY, 400, there=True, batched=batched)


def test_what_is_forgotten_is_read_from_the_disk_again(tmp_path: Path) -> None:
    counted = disk_of(tmp_path)
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    disk.forget(tmp_path)
    own, before = disk.fetched(), counted.reads()
    file.read_bytes()
    assert disk.fetched() - own == 1 << 20
    reads, size = (b - a for a, b in zip(before, counted.reads(), strict=True))
    assert reads >= 1 and size >= 1 << 20


def test_the_disk_is_read_in_several_ways(kept: cold_exact.Set) -> None:
    found = cold_exact.DiskSpeed(**cold_exact_child.read_disk(0, str(kept.store), 200))
    assert found.latency > 0 and found.best == max(found.rates.values())
    assert len(cold_exact.disk_table([found]).splitlines()) == 2 + len(found.rates)
    with pytest.raises(BenchError, match="keeps no pixels"):
        cold_exact_child.read_disk(0, str(kept.folder / "none"), 200)


def test_a_store_that_is_whole_is_not_made_again(tmp_path: Path) -> None:
    folder = str(tmp_path / "s")
    for _ in range(2):
        assert cold_exact_child.make(N, 1, folder, MEMORY, "no") == {"images": N}
    assert not (tmp_path / "s" / "pixels").exists()
    with pytest.raises(BenchError, match="holds 120 images and not 60: remove it"):
        cold_exact_child.make(N // 2, 1, folder, MEMORY, "no")


@pytest.fixture
def limits() -> None:
    """Skips a test where memory cannot be limited."""
    try:
        with memory_limit.limited(256 << 20):
            pass
    except BenchError as error:
        pytest.skip(str(error))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("limits")
def test_cold_exact_measures_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk_of(tmp_path)
    arguments = ["--n", "60", "--keys", "80", "--count", "20", "--rounds", "1", "--keep"]
    met = run(cold_exact.main, monkeypatch, *arguments, "--dir", str(tmp_path / "new"))
    out = capsys.readouterr().out
    for kind in cold_exact.KINDS:
        assert f"\n{kind.what}" in out
    assert out.count("MISSED") + out.count(" met\n") == 4
    assert met == ("MISSED" not in out)
    stores = {path.name for path in (tmp_path / "new").iterdir()}
    assert stores == {"pixels-60-0.store", "keys-80-0.store"}


@pytest.mark.slow
@pytest.mark.usefixtures("limits")
def test_a_child_has_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    asked = cold_exact.Set(N, 1, True, tmp_path)
    asked.make(lambda done: None)
    found = asked.ask(cold_exact.HITS, 256 << 20, 20)
    assert 10_000_000 < found.peak < 256 << 20, "its own group's, not that of these tests"


def test_without_a_way_to_limit_memory_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_limit, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory_limit, "_V1", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench", "--dir", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as caught:
        script.exit_with(cold_exact.main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("bench: the memory of a process cannot be limited")
    assert not (tmp_path / "new").exists()


def test_stores_are_kept_only_where_they_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--keep needs a --dir"):
        run(cold_exact.main, monkeypatch, "--keep")


def test_reads_are_those_of_the_quietest_round_and_shares_are_medians() -> None:
    cold = cold_exact.Cold(10, [0.1] * 10, 3, 12, 40_000, 30_000, 1, 0)
    disturbed = replace(cold, reads=99, own_bytes=1)
    asked = {kind: [disturbed, cold, disturbed] for kind in cold_exact.KINDS}
    speed = cold_exact.DiskSpeed(1e-4, {"8 threads": 5.0, "16 threads": 20.0})
    reads, miss, key, share = cold_exact.targets_of(1, 2, asked, [speed] * 3)
    assert (reads.measured, miss.measured, key.measured) == (1.2, 1.2, 2.2)
    assert (reads.met, miss.met, key.met, share.met) == (True, False, True, False)
    assert share.measured == pytest.approx(50)
    assert quantiles([3.0, 1.0, 2.0]) == (2.0, 3.0)
    assert "75" in cold_exact.asked_table(asked), "the share of what the disk read"


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exact_memory_measures_and_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--n", "300,600", "--memory", "128M", "--dir", str(tmp_path / "new"))
    met = run(exact_memory.main, monkeypatch, *arguments)
    out = capsys.readouterr().out
    assert out.count("MISSED") + out.count(" met") == 3
    assert met == ("MISSED" not in out)
    assert list((tmp_path / "new").iterdir()) == []


def test_memory_is_counted_above_the_empty_process() -> None:
    def grown(peak: int, empty: int = 20_000_000) -> Growth:
        return Growth(1, 1.0, peak, peak, empty, 0)

    bound = 200_000_000
    wanted = exact_memory.targets_of([grown(270_000_000), grown(300_000_000)], bound)
    assert [one.met for one in wanted] == [True, False, False]
    assert wanted[2].measured == pytest.approx(280 / 250)
    with pytest.raises(BenchError, match="Linux only"):
        exact_memory.above(grown(1, empty=0))


# --- targets --------------------------------------------------------------------------------------


def test_a_target_is_met_at_its_bound() -> None:
    given: dict[str, Any] = {"what": "speed", "wanted": 1_000, "digits": 0, "unit": "/s"}
    fast = Target(measured=1_000, at_least=True, **given)
    slow = Target(measured=999, at_least=True, **given)
    small = Target("reads", 1.3, 1.31, digits=2)
    assert (fast.met, slow.met, small.met) == (True, False, False)
    lines = targets([fast, slow, small]).splitlines()
    assert lines[1].split() == ["speed", "≥", "1,000/s", "1,000/s", "met"]
    assert lines[3].split() == ["reads", "≤", "1.30", "1.31", "MISSED"]
