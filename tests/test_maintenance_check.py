"""``check`` reads everything that is committed: a whole store passes, and no damage does."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import flip
from helpers import picture, save
from PIL import Image

from engine import CheckReport, EngineError, Problem, Store, UsageError
from engine.config import Limits
from engine.maintenance.check.damage import Damage
from engine.maintenance.repair.run import Repair
from engine.storage.extents import HEADER_BYTES
from engine.storage.image_rows import ImageRow
from engine.storage.record_rows import record_keys
from engine.storage.rocks import database, open_reader, opening
from engine.storage.rows import u64
from engine.storage.source_rows import NameRow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A store with something in every part: files, rows, collisions, rejects, a segment."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "photos").mkdir()
    for i in range(6):
        Image.fromarray(picture(i)).save(folder / "photos" / f"{i}.png")
    (folder / "photos" / "broken.png").touch()
    limits = Limits(exact_rows=10, chunk_rows=15)
    with Store.open(
        folder / "store", create=True, encoder=str(tiny_encoder), limits=limits
    ) as store:
        store.ingest(folder / "photos", keep_pixels="yes")
        store.ingest("synthetic:bits?n=40")
    return folder / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


def check(store: Path) -> CheckReport:
    with Store.open(store, read_only=True) as opened:
        return opened.check()


def answers(store: Path) -> list[object]:
    """What the store says of every image that it has and of one that it has not."""
    found: list[object] = []
    with Store.open(store, read_only=True) as opened:
        found.append(len(opened))
        found += [opened.lookup(picture(i), k=5) for i in range(7)]
        found += [opened.lookup(f"synthetic:bits?seed=0#{i}", k=5) for i in range(41)]
        found += [opened.get(i) for i in range(1, 47)]
    return [(item.identical, item.similar) if hasattr(item, "similar") else item for item in found]


def table_files(store: Path, table: str) -> list[Path]:
    """The files of RocksDB that hold a table, told by its first and its last row."""
    with Store.open(store, read_only=True) as opened:
        held = [key for key, _ in opened.session.snapshot.keys.scan(table)]
        found = opened.session.snapshot.keys._db.live_files()
    return [
        store / "keys" / file["name"].lstrip("/")
        for file in found
        if (file["start_key"], file["end_key"]) == (held[0], held[-1])
    ]


def files_in(store: Path, *folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in (store / folder).rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_whole_store_has_no_problems(whole: Path) -> None:
    report = check(whole)
    assert (report.ok, report.problems) == (True, ())
    assert (report.images, report.vectors) == (46, 46)
    expected = [*files_in(whole, "pixels", "fingerprints", "vectors")]
    data = sum(path.stat().st_size - HEADER_BYTES for path in expected)
    data += sum(p.stat().st_size for p in files_in(whole, "index"))
    tables = [path for path in files_in(whole, "keys") if path.suffix == ".sst"]
    assert report.bytes_read == data + sum(path.stat().st_size for path in tables)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pixels", "fingerprints", "vectors"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_flipped_byte_is_found_and_its_file_named(store: Path, part: str, place: float) -> None:
    for path in files_in(store, part):
        before = path.read_bytes()
        flip(path, HEADER_BYTES + int(place * (len(before) - HEADER_BYTES)))
        (problem,) = (p for p in check(store).problems if "checksum" in p.what)
        assert problem.part == str(path.relative_to(store))
        assert "of commit" in problem.what
        path.write_bytes(before)
    assert check(store).ok


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pixels", "fingerprints", "vectors", "index"])
def test_a_cut_emptied_or_lost_file_is_found(store: Path, part: str) -> None:
    for path in files_in(store, part):
        before = path.read_bytes()
        for size in (len(before) - 1, HEADER_BYTES, 10, 0):
            os.truncate(path, size)
            assert not check(store).ok
            path.write_bytes(before)
        path.unlink()
        assert not check(store).ok
        path.write_bytes(before)
    assert check(store).ok


@pytest.mark.slow
def test_damage_among_the_keys_is_mended_with_the_rest(store: Path, whole: Path) -> None:
    index = store / "index" / "00000002.ivf"
    flip(index, 100)
    flip(store / "fingerprints" / "00000001.pdq", HEADER_BYTES)
    (names,) = table_files(store, "names")
    flip(names, 20)
    with Store.open(store) as opened:
        report = opened.check(fix=True)
    assert report.ok
    assert {problem.part: problem.fixed for problem in report.problems} == {
        "fingerprints/00000001.pdq": True,
        "index/00000002.ivf": True,
        "keys": True,
    }
    assert any(f"{names.name} (names): the block of" in problem.what for problem in report.problems)
    assert check(store).problems == ()
    assert answers(store) == answers(whole)


@pytest.mark.slow
def test_an_index_over_damaged_vectors_is_built_of_mended_ones(store: Path) -> None:
    index = store / "index" / "00000002.ivf"
    flip(index, 100)
    os.truncate(store / "vectors" / "1" / "00000001.f32", HEADER_BYTES + 100)
    with Store.open(store) as opened:
        report = opened.check(fix=True)
    assert report.ok
    assert all(problem.fixed for problem in report.problems)
    assert {"vectors/1/00000001.f32", "index/00000002.ivf"} <= {
        problem.part for problem in report.problems
    }
    assert check(store).problems == ()
    with Store.open(store, read_only=True) as opened:
        for row in range(40):
            (hit,) = opened.lookup(f"synthetic:bits?seed=0#{row}", k=1, tiers=["similar"]).similar
            assert (hit.id, round(hit.score, 3)) == (7 + row, 1)


@pytest.mark.slow
def test_an_index_over_vectors_that_cannot_be_mended_stays_damaged(store: Path) -> None:
    index = store / "index" / "00000002.ivf"
    flip(index, 100)
    os.truncate(store / "vectors" / "1" / "00000001.f32", HEADER_BYTES + 100)
    shutil.rmtree(store / "encoder")
    with Store.open(store) as opened:
        report = opened.check(fix=True)
    left = {"vectors/1/00000001.f32", "index/00000002.ivf", "encoder/1"}
    assert {problem.part for problem in report.problems if not problem.fixed} == left
    assert {problem.part for problem in check(store).problems} == left


@pytest.mark.slow
def test_a_flipped_byte_among_the_keys_is_found_or_changes_nothing(
    store: Path, whole: Path
) -> None:
    truth = answers(whole)
    found = 0
    tables = [path for path in files_in(store, "keys") if path.suffix == ".sst"]
    assert tables
    for path in tables:
        before = path.read_bytes()
        for place in (0.05, 0.6):
            flip(path, int(place * len(before)))
            try:
                whole_still = check(store).ok
            except EngineError:
                whole_still = False
            if whole_still:  # in a filter or a property that nobody read
                assert answers(store) == truth
            found += not whole_still
            path.write_bytes(before)
    assert found >= len(tables)


class Change(list[tuple[str, str, bytes, bytes]]):
    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.append(("put", table, key, value))

    def delete(self, table: str, key: bytes) -> None:
        self.append(("delete", table, key, b""))


def damage_a_row(store: Path, change: Change) -> None:
    from engine.config import MemoryBudget

    table = opening.open_writer(store, MemoryBudget())
    batch = table.batch()
    for what, *row in change:
        batch.put(*row) if what == "put" else batch.delete(*row[:2])
    table.commit(batch)
    table.close()


def rows(store: Path, table: str, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
    with Store.open(store, read_only=True) as opened:
        return list(opened.session.snapshot.keys.scan(table, prefix))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "prefix", "says"),
    [
        ("images", b"", "has a record and no key"),
        ("records", b"", "has a key and no record"),
        ("records", b"", "46 images are committed, 45 are there"),
        ("sources", b"", "names an image that does not name it"),
        ("names", b"", "names a source that is not its own"),
        ("runs", b"i", "are not found by id"),
    ],
)
def test_a_row_that_is_missing_is_missed_by_its_twin(
    store: Path, table: str, prefix: bytes, says: str
) -> None:
    change = Change()
    change.delete(table, rows(store, table, prefix)[1][0])
    damage_a_row(store, change)
    problems = check(store).problems
    assert any(says in problem.what for problem in problems)
    assert {problem.part for problem in problems} <= {"keys", "vectors"}


@pytest.mark.slow
def test_records_that_have_each_others_key_are_found(store: Path) -> None:
    """As many keys as records, and the same ones."""
    (first, one), (second, other) = rows(store, "records")[:2]
    keys_ = [next(record_keys(*row))[1] for row in ((first, one), (second, other))]
    change = Change()
    change.put("records", first, one.replace(keys_[0], keys_[1]))
    change.put("records", second, other.replace(keys_[1], keys_[0]))
    damage_a_row(store, change)
    assert [problem.what for problem in check(store).problems] == [
        "image 1 has a record and no key",
        "image 2 has a record and no key",
    ]


@pytest.mark.slow
def test_an_image_that_its_shared_key_does_not_lead_to_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.images.hashing.key", lambda canonical, seed: b"k" * 16)
    for i in range(2):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder="none") as opened:
        opened.ingest(tmp_path / "0.png", tmp_path / "1.png")
    assert check(where).ok
    (key, first), (further, _) = rows(where, "images")
    assert further.startswith(key)
    change = Change()
    change.put("images", key, ImageRow.unpack(first)._replace(shared=False).pack())
    damage_a_row(where, change)
    assert [p.what for p in check(where).problems] == ["image 2 is not found by its key"]


@pytest.mark.slow
def test_each_source_of_a_lost_image_counts_once(tmp_path: Path) -> None:
    photos, where = tmp_path / "photos", tmp_path / "store"
    for i in range(26):
        save(photos / f"{i}.png", picture(i))
    with Store.open(where, create=True, encoder="none") as made:
        made.ingest(photos, keep_pixels="no")
    for i in range(24):
        (photos / f"{i}.png").unlink()
    change = Change()
    for table in ("images", "records"):
        for key, _ in rows(where, table):
            change.delete(table, key)
    damage_a_row(where, change)
    with Store.open(where) as opened:
        told = " ".join(problem.what for problem in opened.check(fix=True).problems)
    assert "26 images are lost" in told
    assert " and 6 more; ingest" in told  # behind the 20 that are named


def test_a_commit_that_is_missing_is_missed_by_its_bytes(store: Path) -> None:
    change = Change()
    change.delete("commits", rows(store, "commits")[0][0])
    damage_a_row(store, change)
    problems = check(store).problems
    assert len(problems) == 4  # pixels, fingerprints, vectors and their ids
    assert all("are committed" in problem.what for problem in problems)


def test_a_run_of_rows_that_is_found_by_id_only_is_found(store: Path) -> None:
    change = Change()
    change.delete("runs", rows(store, "runs", b"r")[1][0])
    damage_a_row(store, change)
    assert not check(store).ok


def test_a_file_that_is_said_to_be_an_image_that_is_not_there_is_found(store: Path) -> None:
    change = Change()
    change.put("files", rows(store, "files")[0][0], u64(999))
    damage_a_row(store, change)
    assert not check(store).ok


def test_a_wrong_count_of_sources_is_found(store: Path) -> None:
    import json

    state = json.loads(rows(store, "meta", b"state")[0][1])
    change = Change()
    change.put("meta", b"state", json.dumps(state | {"sources": 1}).encode())
    damage_a_row(store, change)
    assert not check(store).ok


def test_vectors_of_unknown_images_are_found(store: Path) -> None:
    change = Change()
    change.delete("records", rows(store, "records")[0][0])
    damage_a_row(store, change)
    parts = {problem.part: problem.what for problem in check(store).problems}
    with Store.open(store, read_only=True) as opened:
        last = opened.info().vectors - 1
    assert parts["vectors"] == f"rows 0 to {last} name unknown images"


def test_an_encoder_that_is_not_the_stores_is_refused(store: Path) -> None:
    (model,) = (path for path in files_in(store, "encoder") if path.suffix == ".onnx")
    flip(model, 50)
    with Store.open(store, read_only=True) as opened:
        assert opened.lookup(picture(0), tiers=["identical"]).identical
        with pytest.raises(EngineError, match="is not the file"):
            opened.lookup(picture(0), tiers=["similar"])
    assert not check(store).ok


def test_a_report_is_ok_when_all_that_was_wrong_is_mended() -> None:
    mended, open_ = Problem("index", "x", True), Problem("pixels", "y")
    assert CheckReport(0, 0, 0, 0.0, ()).ok
    assert CheckReport(0, 0, 0, 0.0, (mended,)).ok
    assert not CheckReport(0, 0, 0, 0.0, (mended, open_)).ok


def test_mending_needs_a_store_that_may_be_written(whole: Path) -> None:
    with Store.open(whole, read_only=True) as opened, pytest.raises(UsageError, match="read-only"):
        opened.check(fix=True)


# --- after a removal ------------------------------------------------------------------------------


@pytest.fixture
def lessened(store: Path) -> Path:
    """Without an image of each kind: a file, some rows of a run, all rows of a short one."""
    with Store.open(store) as opened:
        opened.remove(ids=[2, 8, 9, *range(37, 47)])
        assert opened.check().problems == ()
    return store


@pytest.mark.slow
def test_a_removal_is_no_damage(lessened: Path) -> None:
    report = check(lessened)
    assert (report.problems, report.images) == ((), 46 - 13)
    change = Change()
    change.put("files", b"f" * 32, u64(2))  # a file that had changed since
    damage_a_row(lessened, change)
    assert check(lessened).problems == ()
    change.put("files", b"f" * 32, u64(99))
    damage_a_row(lessened, change)
    assert not check(lessened).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("images", 34, "34 images are committed, 33 are there"),
        ("removed", 12, "46 ids were given"),
        ("sources", 46, "46 sources are committed, 33 are there"),
        ("dead", {}, "0 bytes count as dead"),
        ("dead", {"1": 10**6}, "1,000,000 bytes count as dead"),
        ("dead", {"7": 1}, "1 bytes count as dead, 0 belong to no image"),
    ],
)
def test_a_wrong_count_after_a_removal_is_found(
    lessened: Path, name: str, value: object, says: str
) -> None:
    import json

    state = json.loads(rows(lessened, "meta", b"state")[0][1])
    change = Change()
    change.put("meta", b"state", json.dumps(state | {name: value}).encode())
    damage_a_row(lessened, change)
    assert any(says in problem.what for problem in check(lessened).problems)
    with Store.open(lessened) as opened:
        assert opened.check(fix=True).ok
    assert check(lessened).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (u64(0), None, "images 2, 8, 9, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46 are not there and"),
        (u64(0), b"\0\2\0\x08", "images 9, 37, 38, 39, 40"),
        (u64(0), b"\0\3", "images 3 are there and count as removed"),
        (u64(0), b"\0", "1 rows of tombstones are damaged"),
        (u64(0), bytes(4096), "1 rows of tombstones are damaged"),
        (u64(3), b"\0\1", "1 rows of tombstones are damaged"),
        (b"?", b"\0\1", "1 rows of tombstones are damaged"),
    ],
)
def test_removed_ids_that_are_not_what_the_records_say_are_found_and_told_again(
    lessened: Path, key: bytes, value: bytes | None, says: str
) -> None:
    before = rows(lessened, "removed")
    change = Change()
    if value is None:
        change.delete("removed", key)
    else:
        change.put("removed", key, value)
    damage_a_row(lessened, change)
    assert any(says in problem.what for problem in check(lessened).problems)
    with Store.open(lessened) as opened:
        assert opened.check(fix=True).ok
        assert opened.session.snapshot.removed_ids().ids().tolist() == [2, 8, 9, *range(37, 47)]
    assert check(lessened).problems == ()
    assert rows(lessened, "removed") == before


@pytest.mark.usual
@pytest.mark.slow
@pytest.mark.parametrize("bit", range(0, 26 * 8, 5))
def test_a_flipped_bit_of_the_removed_ids_is_mended(lessened: Path, bit: int) -> None:
    ((key, value),) = rows(lessened, "removed")
    damaged = bytearray(value)
    damaged[bit // 8] ^= 1 << bit % 8
    change = Change()
    change.put("removed", key, bytes(damaged))
    damage_a_row(lessened, change)
    assert not check(lessened).ok
    with Store.open(lessened) as opened:
        assert opened.check(fix=True).ok
    assert rows(lessened, "removed") == [(key, value)]


@pytest.mark.slow
def test_an_image_that_lost_its_record_does_not_become_a_removed_one(lessened: Path) -> None:
    before = rows(lessened, "removed"), rows(lessened, "records")
    change = Change()
    change.delete("records", u64(3))
    damage_a_row(lessened, change)
    with Store.open(lessened) as opened:
        report = opened.check(fix=True)
    assert "images 3 are not there and do not count as removed" in [p.what for p in report.problems]
    assert report.ok
    assert (rows(lessened, "removed"), rows(lessened, "records")) == before


@pytest.mark.slow
def test_a_run_of_removed_images_only_is_found(lessened: Path) -> None:
    from engine.storage.runs import Run

    (name, _) = rows(lessened, "arrays", b"#")[0]
    run = Run(int.from_bytes(name[1:], "big"), 100, 3, 1, 37)
    change = Change()
    change.put("runs", *run.by_row)
    change.put("runs", *run.by_id)
    damage_a_row(lessened, change)
    assert any("images that are not there" in p.what for p in check(lessened).problems)


@pytest.mark.slow
def test_damaged_pixels_of_a_removed_image_are_nobodys(lessened: Path) -> None:
    with Store.open(lessened, read_only=True) as opened:
        place = opened.get(7).place
    assert place is not None
    blobs = lessened / "pixels" / f"{place.extent:08d}.blobs"
    flip(blobs, HEADER_BYTES + place.offset + place.length + 20)  # of image 8
    assert [problem.part for problem in check(lessened).problems] == [
        f"pixels/{place.extent:08d}.blobs"
    ]
    with Store.open(lessened) as opened:
        assert opened.check(fix=True).ok
        assert opened.lookup("synthetic:bits?seed=0#0").identical[0].verified == "bytes"
    assert check(lessened).ok


def test_pixels_that_are_kept_anew_leave_dead_ones(store: Path) -> None:
    flip(store / "pixels" / "00000001.blobs", HEADER_BYTES + 10)
    with Store.open(store) as opened:
        assert opened.check(fix=True).ok
        assert opened.session.snapshot.state.dead
        assert opened.check().problems == ()


def test_a_source_of_an_image_that_is_not_there_is_found(store: Path) -> None:
    with Store.open(store) as opened:
        files = opened.session
        files.become_writer()
        batch = files.snapshot.keys.batch()
        batch.put("names", b"/gone.png", NameRow(10_000, 1, 1).pack())
        batch.put("sources", u64(10_000) + b"/gone.png", b"")
        files.snapshot.keys.commit(batch)
        problems = opened.check().problems
    assert any("image 10000, which is not there" in problem.what for problem in problems)


@pytest.mark.slow
def test_what_was_committed_before_a_repair_began_is_checked_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(store) as opened:
        opened.remove(ids=[1])
        opened.session.writer.set_dead({})
    run = Repair.run

    def late(mending: Repair, damage: Damage) -> list[Problem]:
        with Store.open(store) as other:
            other.remove(ids=[2, 3])
        return run(mending, damage)

    monkeypatch.setattr(Repair, "run", late)
    with Store.open(store) as opened:
        report = opened.check(fix=True)
        assert report.problems and report.ok
        assert opened.check().problems == ()


def test_a_manifest_that_was_read_just_before_a_commit_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    real = open_reader.open_reader
    with Store.open(path, create=True, encoder="none") as writer:
        writer.ingest("synthetic:bits?n=20")

        def late(*given: Any, **named: Any) -> database.Keys:  # after the manifest was read
            writer.remove(ids=range(1, 18))
            writer.optimize()
            return real(*given, **named)

        with Store.open(path, read_only=True) as reader:
            writer.remove(ids=[20])
            monkeypatch.setattr(open_reader, "open_reader", late)
            assert reader.check().problems == ()
            assert reader.session.snapshot.manifest != writer.session.snapshot.manifest
