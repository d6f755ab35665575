"""One store directory: made, opened beside others, written to, and recovered after failures."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damage import FailingDisk
from helpers import mask, save

from engine import (
    EncoderError,
    PackedBits,
    Store,
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    StoreLockedError,
    StoreNotFoundError,
    UsageError,
)
from engine.config import Limits
from engine.storage import commit_file, manifest
from engine.storage.disk import Disk, using
from engine.storage.extents import HEADER_BYTES
from engine.storage.rocks.database import Keys


def rows(path: Path, seeds: range) -> str:
    np.save(path, np.stack([mask(seed) for seed in seeds]))
    return str(path)


def known(store: Store, seeds: range) -> list[int]:
    """Those of the images that the store has."""
    return [s for s in seeds if store.lookup(mask(s), tiers=["identical"]).identical]


def listing(folder: Path) -> dict[str, int]:
    """Every file below a folder and its size."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- making and opening ---------------------------------------------------------------------------


def test_a_new_store_is_empty_and_whole(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a" / "b.store", create=True, encoder="none") as store:
        assert len(store) == 0
        assert store.check().ok
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.store"]


def test_a_store_is_made_in_an_empty_folder_and_nowhere_else(tmp_path: Path) -> None:
    Store.open(tmp_path, create=True, encoder="none").close()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for path in (other, other / "notes.txt"):
        with pytest.raises(StoreFormatError, match="not a store"):
            Store.open(path, create=True, encoder="none")
    assert listing(other) == {"notes.txt": 4}


def test_a_store_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no encoder"):
        Store.open(tmp_path / "a.store", create=True, encoder=str(tmp_path / "nothing"))
    assert list(tmp_path.iterdir()) == []


def test_opening_what_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="make one with create=True, or name"):
        Store.open(tmp_path / "gone")
    with pytest.raises(StoreFormatError, match="is not a store"):
        Store.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreFormatError, match="is a file, not a store"):
        Store.open(tmp_path / "file")
    with pytest.raises(UsageError, match="both created and read-only"):
        Store.open(tmp_path / "gone", create=True, read_only=True)
    assert not (tmp_path / "gone").exists()


@pytest.mark.slow
def test_a_store_can_be_moved_with_its_encoder(tmp_path: Path, tiny_encoder: Path) -> None:
    encoder = shutil.copytree(tiny_encoder, tmp_path / "tiny")
    with Store.open(tmp_path / "a.store", create=True, encoder=str(encoder)) as store:
        store.ingest(rows(tmp_path / "rows.npy", range(5)))
    shutil.rmtree(encoder)
    (tmp_path / "a.store").rename(tmp_path / "b.store")
    with Store.open(tmp_path / "b.store") as store:
        assert len(store.lookup(mask(9), k=3).similar) == 3
        assert store.ingest(save(tmp_path / "one.png", mask(9))).added == 1
        assert store.check().ok


def test_the_keys_of_another_store_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Store.open(tmp_path / name, create=True, encoder="none").close()
    shutil.copy(tmp_path / "b" / "MANIFEST.json", tmp_path / "a")
    with pytest.raises(StoreDamagedError, match="different stores"):
        Store.open(tmp_path / "a")


def test_a_store_without_its_keys_is_damaged(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(rows(tmp_path / "rows.npy", range(2)))
    (tmp_path / "a" / "keys" / "CURRENT").unlink()
    with pytest.raises(StoreDamagedError, match="no CURRENT"):
        Store.open(tmp_path / "a")


# --- one writer, many readers ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_lock_is_taken_by_the_first_write_and_readers_go_on(tmp_path: Path) -> None:
    first = Store.open(tmp_path / "a", create=True, encoder="none")
    second = Store.open(tmp_path / "a")
    with first, second:
        first.ingest(rows(tmp_path / "1.npy", range(3)))
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on "):
            second.ingest(rows(tmp_path / "2.npy", range(3, 6)))
        with Store.open(tmp_path / "a") as third:
            assert known(third, range(6)) == [0, 1, 2]
        assert known(second, range(6)) == [0, 1, 2]
        first.close()
        assert second.ingest(tmp_path / "2.npy").added == 3
        assert known(second, range(6)) == [0, 1, 2, 3, 4, 5]


def test_a_reader_always_has_a_snapshot_while_it_changes_to_a_newer_one(tmp_path: Path) -> None:
    seen = []
    with (
        Store.open(tmp_path / "a", create=True, encoder="none") as writer,
        Store.open(tmp_path / "a", read_only=True) as reader,
    ):
        files = reader.session.snapshot.files
        close = files.close

        def closing(why: str) -> None:
            """What another thread would find while the files of the old one are closed."""
            seen.append(reader.session.snapshot.state.images)
            close(why)

        files.close = closing  # type: ignore[method-assign]
        writer.ingest("synthetic:bits?n=3")
        assert len(reader) == 3
    assert seen == [3]


@pytest.mark.slow
def test_an_open_reader_sees_each_commit_of_another_writer(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as writer:
        writer.ingest(rows(tmp_path / "rows.npy", range(3)))
        with Store.open(tmp_path / "a", read_only=True) as reader:
            for at in range(3, 9, 3):
                assert len(reader) == at
                writer.ingest(rows(tmp_path / f"{at}.npy", range(at, at + 3)))
                assert known(reader, range(9)) == list(range(at + 3))
                assert reader.find_identical(PackedBits.pack(mask(at)[None])).tolist() == [at + 1]
                assert reader.get(at + 1).id == at + 1
                assert reader.sources(at + 1) == [f"{tmp_path / f'{at}.npy'}#0"]
                assert reader.info().images == at + 3
                assert reader.check().ok


def test_a_reader_goes_on_with_what_it_has_where_it_cannot_look_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as writer:
        writer.ingest(rows(tmp_path / "rows.npy", range(3)))
        with Store.open(tmp_path / "a", read_only=True) as reader:
            writer.ingest(rows(tmp_path / "more.npy", range(3, 6)))
            with monkeypatch.context() as patch:
                patch.setenv("TMPDIR", str(tmp_path / "gone"))
                patch.setattr("tempfile.tempdir", None)
                patch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
                assert known(reader, range(6)) == [0, 1, 2]
                assert "lookups go on with what was committed before" in caplog.text
                with pytest.raises(StoreError, match="no folder for temporary files"):
                    reader.refresh()
            reader.refresh()
            assert known(reader, range(6)) == list(range(6))


@pytest.mark.slow
def test_without_a_notice_readers_look_again_when_they_are_told_to(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as writer:
        writer.ingest(rows(tmp_path / "rows.npy", range(3)))
    (tmp_path / "a" / "COMMIT").unlink()
    with Store.open(tmp_path / "a", read_only=True) as reader, Store.open(tmp_path / "a") as writer:
        assert known(reader, range(6)) == [0, 1, 2]
        writer.ingest(rows(tmp_path / "more.npy", range(3, 6)))
        assert known(reader, range(6)) == list(range(6)), "the writer has made a new one"


def test_a_read_only_store_is_not_written(tmp_path: Path) -> None:
    Store.open(tmp_path / "a", create=True, encoder="none").close()
    before = listing(tmp_path / "a")
    with Store.open(tmp_path / "a", read_only=True) as store:
        for write in (lambda: store.ingest("synthetic:bits?n=1"), lambda: store.check(fix=True)):
            with pytest.raises(UsageError, match="read-only"):
                write()
        assert store.check().ok
    assert listing(tmp_path / "a") == before


@pytest.mark.slow
def test_two_stores_in_one_process_do_not_meet(tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "a", create=True, encoder="none") as a,
        Store.open(tmp_path / "b", create=True, encoder="none") as b,
    ):
        a.ingest(rows(tmp_path / "a.npy", range(3)))
        b.ingest(rows(tmp_path / "b.npy", range(2, 5)))
        assert known(a, range(6)) == [0, 1, 2]
        assert known(b, range(6)) == [2, 3, 4]
        assert a.get(1).key != b.get(1).key  # each store hashes with a seed of its own


@pytest.mark.slow
def test_a_closed_store_says_so(tmp_path: Path, tiny_encoder: Path) -> None:
    store = Store.open(tmp_path / "a", create=True, encoder=str(tiny_encoder))
    store.ingest(rows(tmp_path / "rows.npy", range(3)))
    store.lookup(mask(1))
    store.close()
    store.close()
    for use in (
        lambda: store.ingest("synthetic:bits?n=1"),
        lambda: store.lookup(mask(1)),
        lambda: store.search_vectors(np.zeros((1, 16))),
        lambda: store.get(1),
        lambda: store.info(),
        lambda: store.check(),
    ):
        with pytest.raises(StoreError, match="is closed"):
            use()


# --- failed writes --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_at_any_write_loses_nothing_that_was_committed(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    where, new = tmp_path / "store", rows(tmp_path / "new.npy", range(5, 12))
    with Store.open(where, create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(save(tmp_path / "a.png", mask(0)), encoder="none")
    for at in range(1, 100):
        with Store.open(where) as store:
            try:
                with using(FailingDisk("pwrite", at=at, half=True)):
                    store.ingest(new)
                break  # fewer writes than that
            except StoreError as error:
                assert "No space left on device" in str(error)
                assert "what was committed before is safe" in str(error)
                assert "\n" not in str(error)
            with pytest.raises(StoreError, match="No space left"):  # closed until it is reopened
                store.ingest(new)
        with Store.open(where, read_only=True) as reader:
            assert known(reader, range(12)) == [0]
            assert (len(reader), reader.info().vectors) == (1, 0)
            assert reader.check().problems == ()
    assert at > 5
    with Store.open(where) as store:
        assert known(store, range(12)) == [0, *range(5, 12)]
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "error"), [("fdatasync", errno.EIO), ("fsync", errno.EIO), ("pwrite", errno.EACCES)]
)
def test_any_failed_write_closes_the_store_in_one_line(
    tmp_path: Path, call: str, error: int
) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.session.become_writer()
        with (
            using(FailingDisk(call, error, half=call == "pwrite")),
            pytest.raises(StoreError, match=os.strerror(error)),
        ):
            store.ingest("synthetic:bits?n=3")
        with pytest.raises(StoreError, match=os.strerror(error)):
            store.lookup("synthetic:bits?seed=0#1")
    with Store.open(tmp_path / "a") as store:
        assert len(store) == 0
        assert store.ingest("synthetic:bits?n=3").added == 3
        assert store.check().ok


@pytest.mark.slow
@pytest.mark.parametrize("error", [StoreError("the keys could not be written"), KeyboardInterrupt])
def test_a_commit_that_fails_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    limits = Limits(chunk_files=2)  # more files are being read meanwhile
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        save(folder / f"{i:02}.png", mask(i))
    with Store.open(tmp_path / "a", create=True, encoder="none", limits=limits) as store:
        store.ingest(folder / "00.png")

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(Keys, "commit", fail)
        with pytest.raises(type(error) if isinstance(error, StoreError) else KeyboardInterrupt):
            store.ingest(folder)
    monkeypatch.undo()
    with Store.open(tmp_path / "a") as store:
        assert known(store, range(12)) == [0]
        assert store.ingest(folder).added == 11
        assert store.check().ok


@pytest.mark.slow
def test_a_repair_whose_commit_fails_closes_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the keys could not be written")

    where = tmp_path / "a"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=2")
        store.session.writer.set_dead({"1": 7})
        with monkeypatch.context() as patch:
            patch.setattr(Keys, "commit", fail)
            report = store.check(fix=True)
        assert any("could not be finished" in problem.what for problem in report.problems)
        with pytest.raises(StoreError, match=f"{where} could not be written: .* run the command"):
            store.ingest("synthetic:bits?n=3")  # RocksDB takes no more writes
    with Store.open(where) as store:
        assert store.check(fix=True).problems
        assert store.check().problems == ()


@pytest.mark.slow
def test_a_new_encoder_that_cannot_be_named_is_one_line(tmp_path: Path, tiny_encoder: Path) -> None:
    class Full(Disk):
        def rename(self, path: object, new: object, **folders: int | None) -> None:
            if str(new).endswith("MANIFEST.json"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().rename(path, new, **folders)  # type: ignore[arg-type]

    where = tmp_path / "a"
    with Store.open(where, create=True, encoder="none") as store:
        store.session.become_writer()
        with using(Full()), pytest.raises(StoreError, match=f"{where} could not be written: No sp"):
            store.ingest("synthetic:bits?n=1", encoder=str(tiny_encoder))
    with Store.open(where) as store:
        assert store.ingest("synthetic:bits?n=1", encoder=str(tiny_encoder)).added == 1
        assert store.info().vectors == 1


def test_rejects_that_cannot_be_listed_are_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        (tmp_path / "a" / "rejects.jsonl").mkdir()
        with pytest.raises(StoreError, match=r"rejects\.jsonl"):
            store.ingest(tmp_path / "broken.png")


def test_rejects_that_find_no_room_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Disk):
        def open(
            self, path: object, flags: int, mode: int = 0o666, *, dir_fd: int | None = None
        ) -> int:
            if path == "rejects.jsonl":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().open(path, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]

    (tmp_path / "broken.png").touch()
    good = save(tmp_path / "good.png", mask(0))
    limits = Limits(chunk_files=1)
    with Store.open(tmp_path / "a", create=True, encoder="none", limits=limits) as store:
        with using(Full()):
            report = store.ingest(tmp_path / "broken.png", good)
        assert (report.added, report.rejected, store.info().rejects) == (1, 1, 1)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{tmp_path / 'a' / 'rejects.jsonl'} could not be written: No space left" in said
    assert "broken.png" in said


# --- recovery -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_next_writer_cuts_what_was_not_committed(tmp_path: Path, tiny_encoder: Path) -> None:
    where = tmp_path / "store"
    with Store.open(where, create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(rows(tmp_path / "rows.npy", range(3)))
    before = listing(where)
    extents = [path for path in where.rglob("00000001.*") if "keys" not in path.parts]
    assert len(extents) == 4  # pixels, fingerprints, vectors and their ids
    for path in extents:
        with path.open("ab") as file:
            file.write(b"\xff" * 100)
    strays = ["pixels/00000002.blobs", "vectors/1/00000002.f32", "index/00000009.ivf"]
    for name in (*strays, ".MANIFEST.json.123.new"):
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_bytes(b"left by a crash")

    with Store.open(where, read_only=True) as reader:  # a reader neither minds nor tidies
        assert known(reader, range(4)) == [0, 1, 2]
        assert reader.check().ok
        assert extents[0].stat().st_size == before[str(extents[0].relative_to(where))] + 100
    with Store.open(where) as store:
        store.session.become_writer()
        after = listing(where)
        assert {name: size for name, size in after.items() if not name.startswith("keys/")} == {
            name: size for name, size in before.items() if not name.startswith("keys/")
        } | {"LOCK": after["LOCK"]}
        store.ingest(rows(tmp_path / "more.npy", range(3, 5)))
        assert known(store, range(5)) == [0, 1, 2, 3, 4]
        assert store.check().ok


def test_ids_are_in_the_order_of_commits_and_never_used_twice(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(rows(tmp_path / "1.npy", range(3)))
        with using(FailingDisk("fdatasync", errno.EIO)), pytest.raises(StoreError):
            store.ingest(rows(tmp_path / "2.npy", range(3, 6)))
    with Store.open(tmp_path / "a") as store:
        store.ingest(rows(tmp_path / "3.npy", range(6, 8)))
        assert [store.lookup(mask(s)).identical[0].id for s in (0, 1, 2, 6, 7)] == [1, 2, 3, 4, 5]


def test_extents_that_the_manifest_does_not_know_are_found_by_check(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(rows(tmp_path / "1.npy", range(3)))
    replace(manifest.load(tmp_path / "a"), extents={}).save(tmp_path / "a")
    with Store.open(tmp_path / "a", read_only=True) as store:
        report = store.check()
    assert {problem.part for problem in report.problems} == {"MANIFEST.json"}
    assert not report.ok


@pytest.mark.slow
def test_a_lost_extent_is_never_made_anew_over_committed_rows(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(rows(tmp_path / "1.npy", range(3)))
    (tmp_path / "a" / "fingerprints" / "00000001.pdq").unlink()
    with Store.open(tmp_path / "a") as store:
        assert not store.check().ok
        with pytest.raises(StoreError, match="gone or cut short"):
            store.ingest(rows(tmp_path / "2.npy", range(3, 6)))
    with Store.open(tmp_path / "a") as store:
        assert known(store, range(6)) == [0, 1, 2]
        assert not store.check().ok


def test_the_header_is_the_first_page_of_an_extent(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(rows(tmp_path / "1.npy", range(3)))
    path = tmp_path / "a" / "fingerprints" / "00000001.pdq"
    assert path.stat().st_size == HEADER_BYTES + 3 * 32


def test_a_manifest_older_than_the_keys_is_never_written_on(tmp_path: Path) -> None:
    path, limits = tmp_path / "a", Limits(extent_bytes=100)
    with Store.open(path, create=True, encoder="none", limits=limits) as store:
        store.ingest(rows(tmp_path / "1.npy", range(3)))
        old = (path / "MANIFEST.json").read_bytes()
        store.ingest(rows(tmp_path / "2.npy", range(3, 6)))
    files = sorted(p.name for p in (path / "pixels").iterdir())
    assert len(files) > 1
    (path / "MANIFEST.json").write_bytes(old)
    with Store.open(path) as store, pytest.raises(StoreError, match="does not name"):
        store.ingest(rows(tmp_path / "3.npy", range(6, 9)))
    assert sorted(p.name for p in (path / "pixels").iterdir()) == files, "nothing is deleted"


def test_a_shortened_extent_is_never_written_on(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(rows(tmp_path / "1.npy", range(3)))
    (blobs,) = (path / "pixels").iterdir()
    os.truncate(blobs, blobs.stat().st_size - 1)
    short = blobs.read_bytes()
    with Store.open(path) as store, pytest.raises(StoreError, match="cut short"):
        store.ingest(rows(tmp_path / "2.npy", range(3, 6)))
    assert blobs.read_bytes() == short


def test_an_image_that_is_repeated_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    many = np.random.default_rng(0).integers(0, 2, (600, 8, 8), dtype=np.uint8)
    many[::2] = 0
    np.save(tmp_path / "many.npy", many)
    with Store.open(tmp_path / "a", create=True, encoder="none") as store:
        store.ingest(tmp_path / "many.npy")
        blank = store.lookup(np.zeros((8, 8), np.uint8)).identical[0]
        assert blank.source_count == 300
        other = store.lookup(many[301]).identical[0]
        read = list(store.session.snapshot.tables.runs.in_bucket(other.id))
        assert other.sources == (f"{tmp_path / 'many.npy'}#301",)
        assert len(read) < 5


def test_an_empty_folder_becomes_a_store_where_it_is(tmp_path: Path) -> None:
    inode = tmp_path.stat().st_ino
    Store.open(tmp_path, create=True, encoder="none").close()
    assert tmp_path.stat().st_ino == inode, "it may be a mount, or where somebody stands"
    assert not list(tmp_path.glob(".*")), "nothing is left of its making"
    with Store.open(tmp_path) as store:
        assert store.check().ok


@pytest.mark.slow
def test_an_ingest_uses_the_encoder_that_another_process_has_given_the_store(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    Store.open(tmp_path / "a", create=True, encoder="none").close()
    with Store.open(tmp_path / "a") as early:
        with Store.open(tmp_path / "a") as other:
            other.ingest(rows(tmp_path / "1.npy", range(2)), encoder=str(tiny_encoder))
        early.ingest(rows(tmp_path / "2.npy", range(2, 4)))
        assert early.info().vectors == 4


def test_a_reader_that_cannot_go_over_to_what_is_new_keeps_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as writer:
        writer.ingest(rows(tmp_path / "1.npy", range(3)))
        with Store.open(tmp_path / "a", read_only=True) as reader:
            (tmp_path / "a" / "COMMIT").write_bytes(commit_file.pack(99))
            assert known(reader, range(3)) == [0, 1, 2]
            assert "commit 99 was made" in caplog.text
            assert reader.get(2).id == 2


def test_check_beside_a_writer_takes_nothing_for_left_behind(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a", create=True, encoder="none") as writer:
        writer.ingest(rows(tmp_path / "1.npy", range(3)))
        with (tmp_path / "a" / "pixels" / "00000001.blobs").open("ab") as file:
            file.write(b"in flight")
        with Store.open(tmp_path / "a", read_only=True) as reader:
            assert reader.check().leftover_bytes == 0
    with Store.open(tmp_path / "a", read_only=True) as reader:
        assert reader.check().leftover_bytes == 9


# --- what stands in the way -----------------------------------------------------------------------


@pytest.mark.slow
def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest(np.ones((40, 8), np.float32), name="some")
    code = """
import contextlib, io, json, resource, sys
from engine.cli.app import main
import engine.index.search, faiss
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
for limit in range(4, 40, 5):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
        status = main(["check", "--fix", "--store", sys.argv[1]])
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps([status, said.getvalue()]))
"""
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    statuses = set()
    for line in done.stdout.splitlines():
        status, said = json.loads(line)
        statuses.add(status)
        assert status in (0, 2)
        assert said.count("\n") == (1 if status else 0), said
        assert "engine check" not in said
    assert statuses == {0, 2}
    with Store.open(path) as store:
        assert store.check().problems == ()


def test_a_store_that_cannot_be_opened_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=1")
    assert (path / "COMMIT").exists()
    before = len(list(Path("/dev/fd").iterdir()))
    for name in ("keys/CURRENT", "MANIFEST.json"):
        (path / name).write_text("damaged")
        with pytest.raises(StoreError):
            Store.open(path)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_store_is_closed_where_no_more_files_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "store"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=2")
        next_fd = os.dup(0)
        os.close(next_fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd, before[1]))
        try:
            store.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with Store.open(path) as store:  # nobody holds the lock, nor RocksDB's
        assert store.ingest("synthetic:bits?n=3").added == 1
