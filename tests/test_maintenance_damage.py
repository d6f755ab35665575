"""Damage on the disk costs what lay there and nothing else: it is found, reported and mended."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import OWN_DISK, flip, interrupted
from helpers import picture
from indexed import clustered, small_limits
from PIL import Image

from engine import CheckReport, EngineError, Store, StoreError
from engine.storage.commit_evidence import MARK
from engine.storage.commit_file import NAME as COMMIT
from engine.storage.disk import Disk, using
from engine.storage.record_rows import record_ids
from engine.storage.rocks import files, lz4, rebuild
from engine.storage.rocks.blocks import PUT
from engine.storage.rocks.database import Keys
from engine.storage.rocks.log import Records, batch_rows, versions
from engine.storage.rocks.sst import TableFile
from engine.storage.rows import TABLES, u64
from engine.storage.runs import Run

FILES, ROWS, GONE = 70, 150, 40
REMOVED = [2, 3, 75, *range(100, 110)]


def in_tables(store: Store) -> None:
    """Write what is in the log to tables."""
    for table in store.session.snapshot.keys._tables.values():
        table.flush()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores: ``images`` has files, rows and files that are deleted now, ``vectors`` is laid out."""
    made = tmp_path_factory.mktemp("damage")
    for name, count, seed in (("photos", FILES, 0), ("gone", GONE, 1000)):
        (made / name).mkdir()
        for i in range(count):
            Image.fromarray(picture(seed + i)).save(made / name / f"{i}.png")
    np.save(made / "vectors.npy", clustered(300))
    with Store.open(made / "images", create=True, encoder="none") as store:
        store.ingest(made / "photos")
        store.ingest(f"synthetic:bits?n={ROWS}")
        store.ingest(made / "gone")
        store.optimize()
        store.remove(ids=REMOVED[:-1])
        in_tables(store)
        store.remove(ids=REMOVED[-1:])
    limits = small_limits(50)
    with Store.open(made / "vectors", create=True, encoder="none", limits=limits) as store:
        store.ingest(made / "vectors.npy")
        store.remove(ids=[5, 6, *range(40, 80)])
        store.optimize()
        in_tables(store)
    shutil.rmtree(made / "gone")
    for unneeded in made.glob("*/keys/LOG*"):
        unneeded.unlink()
    return made


@pytest.fixture
def images(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "images", tmp_path / "store"))


@pytest.fixture
def vectors(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "vectors", tmp_path / "store"))


def check(where: Path) -> CheckReport:
    with Store.open(where, read_only=True) as store:
        return store.check()


def fix(where: Path) -> list[str]:
    """Mend a store, and see that it is whole then; the problems that were reported."""
    said = [problem.what for problem in Store.salvage(where)]
    with Store.open(where) as store:
        report = store.check(fix=True)
        assert report.ok, report.problems
        said += [problem.what for problem in report.problems]
        assert store.session.snapshot.keys.get("meta", MARK) is None
    assert check(where).problems == ()
    return said


def known(where: Path) -> dict[int, bytes]:
    """The proof of each image that a store has."""
    with Store.open(where, read_only=True) as store:
        rows = store.session.snapshot.keys.scan("records")
        ids = [int(id_) for row in rows for id_ in record_ids(*row)]
        return {id_: store.get(id_).proof for id_ in ids}


def found(where: Path) -> list[int]:
    """The ids of those images that a lookup finds, of all that were ever ingested."""
    queries: list[np.ndarray | str] = [picture(i) for i in range(FILES)]
    queries += [f"synthetic:bits?seed=0#{i}" for i in range(ROWS)]
    queries += [picture(1000 + i) for i in range(GONE)]
    with Store.open(where, read_only=True) as store:
        hits = [store.lookup(query, tiers=["identical"]).identical for query in queries]
        return sorted(hit.id for some in hits for hit in some)


def table_of(where: Path, table: str) -> Path:
    """The largest file that holds a table."""
    paths = sorted((where / "keys").glob("*.sst"), key=lambda path: -path.stat().st_size)
    return next(path for path in paths if _table(path).family == table.encode())


def _table(path: Path) -> TableFile:
    table = TableFile(path)
    table.close()
    return table


# --- RocksDB's files, read without it -------------------------------------------------------------


@pytest.mark.slow
def test_the_rows_of_its_files_are_those_that_rocksdb_has(images: Path) -> None:
    keys = images / "keys"
    manifest = files.current(keys)
    assert manifest is not None
    named = versions(manifest)
    assert named.whole
    newest: dict[bytes, dict[bytes, tuple[int, int, bytes]]] = {n.encode(): {} for n in TABLES}
    for number in named.live:
        table = TableFile(keys / f"{number:06d}.sst")
        assert table.verify() == []
        family = named.families[named.live[number]]
        assert table.family == family
        for row in table.rows():
            entry = row.sequence, row.kind, row.value
            newest[family][row.key] = max(newest[family].get(row.key, entry), entry)
        table.close()
    for log in keys.glob("*.log"):
        for record in Records(log):
            for cf, row in batch_rows(record):
                entry = row.sequence, row.kind, row.value
                mine = newest[named.families[cf]]
                mine[row.key] = max(mine.get(row.key, entry), entry)
    with Store.open(images, read_only=True) as store:
        for name in TABLES:
            rows = {k: v for k, (_, kind, v) in newest[name.encode()].items() if kind == PUT}
            assert sorted(rows.items()) == list(store.session.snapshot.keys.scan(name))


@pytest.mark.parametrize(
    ("block", "size", "content"),
    [
        (b"\x50hello", 5, b"hello"),
        (b"\x14a\x01\x00\x50bcdef", 14, b"a" * 9 + b"bcdef"),
        (b"\xf0\x01" + bytes(16), 16, bytes(16)),
    ],
)
def test_a_block_is_decompressed_or_refused(block: bytes, size: int, content: bytes) -> None:
    assert lz4.decompress(block, size) == content
    for wrong in (block[:-1], b"", block + b"x"):
        with pytest.raises(ValueError):
            lz4.decompress(wrong, size)
    with pytest.raises(ValueError):
        lz4.decompress(block, size - 1)


# --- one flipped bit ------------------------------------------------------------------------------


def places(where: Path) -> Iterator[tuple[str, Path, int]]:
    """One byte of each kind of block, and of each of RocksDB's other files."""
    for name in ("images", "records", "names", "sources", "meta", "removed", "commits", "runs"):
        yield f"rows of {name}", table_of(where, name), 30
    path = table_of(where, "images")
    table = _table(path)
    size = path.stat().st_size
    yield "a block in the middle", path, table.blocks[len(table.blocks) // 2].offset + 99
    yield "the filter", path, table.blocks[-1].end + 10
    yield "the footer", path, size - 20
    yield "the list of parts", path, size - 70
    yield "properties", path, size - 400
    for byte in range(table.blocks[-1].end, size - 1000, 400):
        yield f"behind the data, at {byte}", path, byte
    manifest = files.current(where / "keys")
    assert manifest is not None
    yield "MANIFEST", manifest, manifest.stat().st_size // 2
    yield "the end of MANIFEST", manifest, manifest.stat().st_size - 9
    yield "CURRENT", where / "keys" / "CURRENT", 10


@pytest.mark.slow
def test_a_flipped_bit_costs_the_rows_of_its_block_and_says_which(images: Path) -> None:
    sound, truth = shutil.copytree(images, images.with_name("sound")), known(images)
    total = 0
    for what, path, offset in list(places(images)):
        flip(path, offset)
        try:
            assert not check(images).ok, what
        except EngineError as error:
            assert "\n" not in str(error)
        said = fix(images)
        left = known(images)
        assert left.items() <= truth.items(), what  # none comes back that was removed
        lost = sorted(truth.keys() - left.keys())
        if lost:
            (line,) = [line for line in said if "images are lost" in line]
            assert line.startswith(f"{len(lost)} images are lost ({lost[0]}, "), what
            total += len(lost)
            assert found(images) == sorted(left), what
        shutil.rmtree(images)
        shutil.copytree(sound, images)
    assert total > 0


@pytest.mark.slow
def test_what_is_lost_comes_back_with_its_source(images: Path, folder: Path) -> None:
    before = known(images)
    for name in ("images", "records"):
        flip(table_of(images, name), 30)
    fix(images)
    lost = before.keys() - known(images).keys()
    assert lost
    again = folder.parent / "again"
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    for i in range(GONE):
        Image.fromarray(picture(1000 + i)).save(again / f"{i}.png")
    with Store.open(images) as store:
        report = store.ingest(folder / "photos", f"synthetic:bits?n={ROWS}", again)
        # What was removed and is still there comes back, too.
        assert report.added == len(lost) + len(REMOVED)
        assert store.check().problems == ()
    assert len(found(images)) == FILES + ROWS + GONE


@pytest.mark.slow
def test_no_bit_of_the_notice_refuses_a_store(images: Path) -> None:
    path = images / COMMIT
    sound = path.read_bytes()
    for byte in range(len(sound)):  # test_storage_notice.py goes through all bits
        flip(path, byte, 1 << byte % 8)
        assert rescue_free(images)
        path.write_bytes(sound)
    for other in (b"", sound[:5], sound[:8], sound[:16], sound + bytes(8), b"\xff" * 24):
        path.write_bytes(other)
        assert rescue_free(images)
    path.unlink()
    assert rescue_free(images)


def rescue_free(where: Path) -> bool:
    with Store.open(where, read_only=True) as store:
        return store.session.snapshot.state.images == FILES + ROWS + GONE - len(REMOVED)


@pytest.mark.slow
def test_a_notice_that_is_wrong_is_written_again_and_nothing_called_lost(images: Path) -> None:
    path = images / COMMIT
    flip(path, 6)
    assert Store.salvage(images) == []
    with Store.open(images) as store:
        assert store.ingest("synthetic:bits?n=1&seed=5").added == 1
    data = path.read_bytes()
    flip(path, 20)
    with Store.open(images, read_only=True) as store:
        assert store.check().problems == ()
    with Store.open(images) as store:
        store.session.become_writer()
    assert path.read_bytes()[:8] == data[:8]


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"), [(OWN_DISK, "rename"), (OWN_DISK, "fsync"), (Keys, "commit")]
)
def test_a_rescue_that_is_interrupted_is_finished_by_the_next(
    images: Path, owner: object, name: str
) -> None:
    truth = known(images)
    flip(table_of(images, "meta"), 30)
    flip(table_of(images, "sources"), 30)
    sound = shutil.copytree(images, images.with_name("sound"))
    for nth in (1, 2, 3, 5, 8, 13, 21):
        with interrupted(owner, name, nth) as calls:
            fix(images)
        fix(images)
        assert known(images) == truth
        assert not (images / rebuild.MENDED).exists()
        if calls.made < nth:
            break
        shutil.rmtree(images)
        shutil.copytree(sound, images)
    assert nth > 1, "it was interrupted"


class Full(Disk):
    """A disk that is full once the damaged keys have left their place."""

    def rename(self, path: Any, new: Any, **folders: Any) -> None:
        if Path(path).name == rebuild.MENDED and Path(new).name == "keys":
            raise OSError(errno.ENOSPC, "No space left on device")
        super().rename(path, new, **folders)


@pytest.mark.slow
def test_a_repair_that_fails_says_what_failed_first(images: Path) -> None:
    truth = known(images)
    flip(table_of(images, "sources"), 30)
    with Store.open(images) as store, using(Full()):
        report = store.check(fix=True)
        assert not report.ok
        (said,) = [problem.what for problem in report.problems if problem.part == "repair"]
        assert "No space left on device" in said
    fix(images)
    assert known(images) == truth


@pytest.mark.slow
def test_a_rescue_that_is_killed_is_finished_by_the_next(images: Path) -> None:
    """Between the two renames there are no keys under their name."""
    truth = known(images)
    flip(table_of(images, "images"), 30)
    program = """
import os, signal, sys
from pathlib import Path
from engine import Store
from engine.storage.disk import Disk, using
class Dying(Disk):
    def rename(self, path, new, **folders):
        if Path(path).name == "keys.mended":
            os.kill(os.getpid(), signal.SIGKILL)
        super().rename(path, new, **folders)
with using(Dying()):
    Store.salvage(sys.argv[1])
"""
    environment = {**os.environ, "TMPDIR": str(images.parent)}
    command = [sys.executable, "-c", program, str(images)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (images / "keys").exists()
    for read_only in (True, False):
        with pytest.raises(StoreError, match="or 'engine check --fix' ends one that was killed"):
            Store.open(images, read_only=read_only)
    bare = Path(shutil.copytree(images, images.with_name("bare")))
    (bare / "MANIFEST.json").unlink()
    said = fix(bare)
    assert any("made again" in line for line in said)
    said = fix(images)
    assert "an interrupted rebuild of the keys was finished" in said
    assert known(bare) == known(images)
    lost = truth.keys() - known(images).keys()
    assert any(line.startswith(f"{len(lost)} images are lost") for line in said)


ENOUGH = (1 << 32) - 1  # rows of a run
NONSENSE: list[tuple[str, bytes, bytes]] = [
    ("images", bytes(16), b"x"),
    ("images", bytes(5), bytes(39)),
    ("records", u64(1), b""),
    ("records", u64(1 << 60), b"\x02" + bytes(20)),
    ("records", bytes(9), bytes(100)),
    ("sources", b"x", b""),
    ("names", b"/x", b"x"),
    ("files", bytes(32), b"\xff" * 20),
    ("files", bytes(31) + b"x", b"\xff" * 8),
    ("runs", *Run(1, 0, ENOUGH, 1, 1).by_row),
    ("runs", *Run(1, 1 << 40, ENOUGH, 1, 1).by_id),
    ("runs", *Run(1, 5, 3, 9, 7).by_row),
    ("runs", b"r" + bytes(12), b""),
    ("arrays", b"n/x", b"[" * 100_000),
    ("rejects", b"/x", b"["),
    ("commits", bytes(8), b"[" * 100_000),
    ("removed", u64(0), b"x"),
]


@pytest.mark.slow
@pytest.mark.parametrize("table", sorted({table for table, _, _ in NONSENSE}))
def test_rows_that_make_no_sense_are_found_and_taken_away(images: Path, table: str) -> None:
    with Store.open(images) as store:
        store.session.become_writer()
        store.session.writer.put_rows(row for row in NONSENSE if row[0] == table)
    report = check(images)
    assert not report.ok
    assert all(problem.part == "keys" for problem in report.problems)
    fix(images)


OTHERS = "somebody else's"


@pytest.mark.slow
@pytest.mark.parametrize("name", [rebuild.MENDED, rebuild.ASIDE])
@pytest.mark.parametrize("kind", ["link", "pipe", "file", "folder"])
def test_a_rescue_leaves_alone_what_is_not_its_own(
    images: Path, tmp_path: Path, name: str, kind: str
) -> None:
    outside = tmp_path / "outside"
    there = images / name if kind == "folder" else outside
    there.mkdir()
    for other in ("CURRENT", "000009.sst", "notes.txt"):
        (there / other).write_text(OTHERS)
    if kind == "link":
        (images / name).symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(images / name)
    elif kind == "file":
        (images / name).write_text(OTHERS)
    else:
        (images / name / "link").symlink_to(outside)
    flip(table_of(images, "names"), 20)
    if name == rebuild.MENDED:
        said = "holds files that are not the engine's" if kind == "folder" else "should be a folder"
        with pytest.raises(StoreError, match=f"{name} .*{said}"):
            Store.salvage(images)
    else:
        fix(images)
    if kind != "folder":
        assert {path.read_text() for path in outside.iterdir()} == {OTHERS}
        assert len(list(outside.iterdir())) == 3
    else:
        assert sorted(path.name for path in there.iterdir()) == ["link", "notes.txt"]


@pytest.mark.slow
def test_a_rescue_that_was_not_finished_goes_with_the_next_writer(images: Path) -> None:
    shutil.copytree(images / "keys", images / rebuild.MENDED)
    with Store.open(images) as store:
        store.remove(ids=[1])
    assert not (images / rebuild.MENDED).exists()
    assert check(images).problems == ()


@pytest.mark.slow
def test_one_damaged_database_is_kept(images: Path) -> None:
    for _ in range(3):
        flip(table_of(images, "names"), 20)
        fix(images)
    assert len(list(images.glob("damaged*"))) == 1


def test_keys_that_may_not_be_read_are_not_called_lost(images: Path) -> None:
    path = table_of(images, "images")
    aside = images.with_name("elsewhere.sst")
    path.rename(aside)
    path.symlink_to(aside)
    before = sorted(p.name for p in images.rglob("*"))
    with pytest.raises(StoreError, match=r"\.sst is a symbolic link, and should be a file"):
        Store.salvage(images)
    assert sorted(p.name for p in images.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_a_limit_on_open_files_costs_no_rows(images: Path) -> None:
    import resource

    flip(table_of(images, "names"), 20)
    before = sorted(p.name for p in images.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tables = len(list((images / "keys").glob("*.sst")))
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = [number for number in range(soft) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[tables // 2], hard))
    try:
        with pytest.raises(StoreError, match="raise the limit of open files"):
            Store.salvage(images)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(p.name for p in images.rglob("*")) == before
    fix(images)


# --- vectors that were brought --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("table", ["records", "meta", "commits", "removed", "arrays", "runs"])
def test_a_store_of_vectors_is_mended(vectors: Path, folder: Path, table: str) -> None:
    query = np.load(folder / "vectors.npy")[:30]
    with Store.open(vectors, read_only=True) as store:
        before = store.search_vectors(query, 3, recall=1)[1].tolist(), store.info().images
    flip(table_of(vectors, table), 20)
    fix(vectors)
    with Store.open(vectors) as store:
        after = store.search_vectors(query, 3, recall=1)[1].tolist(), store.info().images
        assert after == before
        store.ingest(folder / "vectors.npy")
        assert store.check().problems == ()


@pytest.mark.slow
def test_a_torn_log_of_a_store_of_vectors_is_settled(tmp_path: Path, folder: Path) -> None:
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest(folder / "vectors.npy")
        shutil.copytree(where, tmp_path / "open")
    (log,) = [path for path in (tmp_path / "open" / "keys").glob("*.log") if path.stat().st_size]
    os.truncate(log, log.stat().st_size - 5)
    with pytest.raises(EngineError, match="commit"):
        Store.open(tmp_path / "open")
    fix(tmp_path / "open")
    with Store.open(tmp_path / "open") as store:
        store.ingest(folder / "vectors.npy")
        assert store.info().images == 300
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a bit", "two rows", "half of them"])
@pytest.mark.parametrize("array", ["there", "gone"])
def test_whose_damaged_vectors_are_is_found_or_settled(
    vectors: Path, folder: Path, damage: str, array: str
) -> None:
    query = np.load(folder / "vectors.npy")
    with Store.open(vectors, read_only=True) as store:
        before = store.search_vectors(query, 1, recall=1)[1].tolist()
    (path,) = (vectors / "vectors" / "1").glob("*.ids")
    data = bytearray(path.read_bytes())
    if damage == "a bit":
        data[4096 + 8 * 17] ^= 4
    elif damage == "two rows":
        data[4096 + 8 * 20 : 4096 + 8 * 22] = bytes(16)
    else:
        data[4096 : 4096 + 8 * 120] = bytes(8 * 120)
    path.write_bytes(data)
    moved = folder / "moved.npy"
    try:
        if array == "gone":
            (folder / "vectors.npy").rename(moved)
        said = fix(vectors)
    finally:
        if moved.exists():
            moved.rename(folder / "vectors.npy")
    settled = damage == "half of them" and array == "gone"
    assert any("vectors are lost" in line for line in said) == settled
    with Store.open(vectors) as store:
        if not settled:
            assert store.search_vectors(query, 1, recall=1)[1].tolist() == before
        else:
            assert any(line.startswith("120 images are lost") for line in said)
            assert store.info().images == 300 - 42 - 120
            store.ingest(folder / "vectors.npy")
            assert store.info().images == 300
        assert store.check().problems == ()
