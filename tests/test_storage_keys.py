"""The keys: whole commits or nothing, readers beside a writer, and damage that is never served."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import StoreDamagedError, StoreError
from engine.config import MemoryBudget
from engine.storage import nofollow
from engine.storage.rocks import open_reader, opening, pin
from engine.storage.rocks.database import Keys

SMALL = MemoryBudget(64 << 20)  # memtables of 8 MiB together
TABLES = ("images", "records", "meta")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Keys]:
    opened = opening.create(tmp_path, SMALL)
    yield opened
    opened.close()


def commit(table: Keys, **rows: bytes | None) -> None:
    """Put, or where the value is None delete, the rows of three tables in one commit."""
    batch = table.batch()
    for name in TABLES:
        for key, value in rows.items():
            if value is None:
                batch.delete(name, key.encode())
            else:
                batch.put(name, key.encode(), value)
    table.commit(batch)


def everything(table: Keys) -> list[dict[bytes, bytes]]:
    return [dict(table.scan(name)) for name in TABLES]


def test_rows_are_found_one_by_one_and_many_at_a_time(writer: Keys) -> None:
    commit(writer, a=b"1", b=b"", c=b"3")
    assert writer.get("images", b"a") == b"1"
    assert writer.get("images", b"b") == b""
    assert writer.get("images", b"") is None
    assert writer.get("sources", b"a") is None  # another table
    assert writer.get_many("records", [b"c", b"gone", b"a", b"c"]) == [b"3", None, b"1", b"3"]
    assert writer.get_many("records", []) == []


def test_the_last_change_of_a_row_in_a_batch_counts(writer: Keys) -> None:
    batch = writer.batch()
    batch.put("images", b"a", b"1")
    batch.put("images", b"a", b"2")
    batch.put("images", b"b", b"1")
    batch.delete("images", b"b")
    batch.delete("images", b"c")
    batch.put("images", b"c", b"1")
    writer.commit(batch)
    assert dict(writer.scan("images")) == {b"a": b"2", b"c": b"1"}


def test_a_scan_gives_the_rows_of_a_prefix_in_order(writer: Keys) -> None:
    batch = writer.batch()
    for key in (b"ab\xff", b"b", b"a", b"ab", b"ac", b"", b"ab\x00", b"aa\xff\xff"):
        batch.put("runs", key, key[::-1])
    writer.commit(batch)
    assert [key for key, _ in writer.scan("runs", b"ab")] == [b"ab", b"ab\x00", b"ab\xff"]
    assert [key for key, _ in writer.scan("runs")] == sorted(
        [b"ab\xff", b"b", b"a", b"ab", b"ac", b"", b"ab\x00", b"aa\xff\xff"]
    )
    assert list(writer.scan("runs", b"abc")) == []
    assert list(writer.scan("runs", b"\xff" * 30)) == []
    assert dict(writer.scan("runs", b"ac")) == {b"ac": b"ca"}


def test_a_scan_does_not_see_what_is_committed_meanwhile(writer: Keys) -> None:
    commit(writer, a=b"1", c=b"1")
    scan = writer.scan("images")
    assert next(scan) == (b"a", b"1")
    commit(writer, b=b"2", c=None)
    assert list(scan) == [(b"c", b"1")]


# --- readers --------------------------------------------------------------------------------------


def test_a_reader_sees_what_was_committed_when_it_was_opened(writer: Keys, tmp_path: Path) -> None:
    commit(writer, a=b"1")
    before = open_reader.open_reader(tmp_path, SMALL)
    commit(writer, a=None, b=b"2")
    after = open_reader.open_reader(tmp_path, SMALL)
    assert everything(before) == [{b"a": b"1"}] * 3
    assert everything(after) == [{b"b": b"2"}] * 3
    before.close()
    after.close()


@pytest.mark.slow
def test_readers_beside_a_busy_writer_see_whole_commits_in_their_order(
    writer: Keys, tmp_path: Path
) -> None:
    stop = threading.Event()
    committed = 0

    def write() -> None:
        nonlocal committed
        while not stop.is_set():
            n = committed + 1
            filling = os.urandom(60_000)  # so that memtables are flushed and files compacted
            commit(writer, n=str(n).encode(), **{f"row{n % 50}": filling})
            committed = n
            time.sleep(0.005)

    commit(writer, n=b"0")
    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(12):
            least = committed
            reader = open_reader.open_reader(tmp_path, SMALL)
            images, records, meta = everything(reader)
            assert images == records == meta
            assert least <= int(images[b"n"]) <= committed + 1
            reader.close()
    finally:
        stop.set()
        thread.join()
    assert committed > 0


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file in a folder, and of the folder."""
    found = {str(path): path.stat() for path in [folder, *folder.rglob("*")]}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.parametrize("beside_a_writer", [True, False])
def test_reading_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside_a_writer: bool
) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    store.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    writer = opening.create(store, SMALL)
    commit(writer, a=b"1")
    if not beside_a_writer:
        writer.close()
    before = stamps(store)
    reader = open_reader.open_reader(store, SMALL)
    assert everything(reader) == [{b"a": b"1"}] * 3
    assert stamps(store) == before
    assert list(elsewhere.iterdir()) == []
    reader.close()
    assert stamps(store) == before
    if beside_a_writer:
        writer.close()


# --- crashes and damage ---------------------------------------------------------------------------


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A store's keys after five commits, as a kill leaves them: all in the write-ahead log."""
    live, image = tmp_path / "live", tmp_path / "image"
    live.mkdir()
    opened = opening.create(live, SMALL)
    for n in range(5):
        commit(opened, **{f"k{n}": bytes([n]) * 50})
    shutil.copytree(live / "keys", image / "keys")
    opened.close()
    return image


Opener = Callable[[Path, MemoryBudget], Keys]


@pytest.mark.parametrize("opener", [open_reader.open_reader, opening.open_writer])
def test_what_was_committed_survives_a_kill(crashed: Path, opener: Opener) -> None:
    opened = opener(crashed, SMALL)
    assert [sorted(rows) for rows in everything(opened)] == [
        [b"k0", b"k1", b"k2", b"k3", b"k4"]
    ] * 3
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("opener", [open_reader.open_reader, opening.open_writer])
@pytest.mark.parametrize("cut", [1, 30, 150, 400, 700])
def test_of_a_torn_log_whole_commits_are_left(crashed: Path, opener: Opener, cut: int) -> None:
    (log,) = (crashed / "keys").glob("*.log")
    os.truncate(log, log.stat().st_size - cut)
    opened = opener(crashed, SMALL)
    images, records, meta = everything(opened)
    assert images == records == meta
    assert list(images) == [b"k%d" % n for n in range(len(images))]
    assert len(images) < 5
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("opener", [open_reader.open_reader, opening.open_writer])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_flipped_byte_in_the_log_is_damage_and_drops_no_commit(
    crashed: Path, opener: Opener, part: float
) -> None:
    (log,) = (crashed / "keys").glob("*.log")
    data = bytearray(log.read_bytes())
    data[int(part * len(data))] ^= 0x20
    log.write_bytes(data)
    with pytest.raises(StoreDamagedError, match="Corruption"):
        opener(crashed, SMALL)


def test_a_flipped_byte_in_a_table_is_damage_when_it_is_read(tmp_path: Path) -> None:
    table = opening.create(tmp_path, SMALL)
    commit(table, **{f"k{n}": os.urandom(100) for n in range(100)})
    table.close()
    for path in (tmp_path / "keys").glob("*.sst"):
        data = bytearray(path.read_bytes())
        data[500] ^= 1  # among the rows
        path.write_bytes(data)
    reader = open_reader.open_reader(tmp_path, SMALL)
    with pytest.raises(
        StoreDamagedError, match=r"'images' cannot be read: block .* in \d+.sst at byte 0; run"
    ):
        for n in range(100):
            reader.get("images", b"k%d" % n)
    with pytest.raises(StoreDamagedError, match="'records' cannot be read"):
        list(reader.scan("records"))
    with pytest.raises(StoreDamagedError, match="'meta' cannot be read"):
        reader.get_many("meta", [b"k%d" % n for n in range(100)])
    reader.close()


@pytest.mark.parametrize("gone", ["CURRENT", "MANIFEST-*", "*.sst"])
def test_a_lost_file_is_damage(tmp_path: Path, gone: str) -> None:
    table = opening.create(tmp_path, SMALL)
    commit(table, a=b"1")
    table.close()
    for path in (tmp_path / "keys").glob(gone):
        path.unlink()
    for opener in (open_reader.open_reader, opening.open_writer):
        with pytest.raises(StoreDamagedError, match="keys"):
            opener(tmp_path, SMALL)


def test_a_writer_that_was_failed_by_the_disk_says_so(
    writer: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def write(self, *_: object) -> None:
            raise Exception("IO error: No space left on device:\nwhile appending")

        def close(self) -> None: ...

    monkeypatch.setattr(writer, "_db", Failing())
    with pytest.raises(StoreError, match="could not be written: IO error: No space left on device"):
        commit(writer, a=b"1")


def test_a_log_that_goes_while_logs_are_measured_is_none(
    writer: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(writer, a=b"1")
    real = nofollow.entries
    gone = nofollow.FolderEntry("999999.log", is_file=True, is_folder=False)
    with monkeypatch.context() as patch:
        patch.setattr(nofollow, "entries", lambda *of: [*real(*of), gone])
        writer.settle()
    assert everything(writer)


@pytest.mark.slow
def test_what_a_writer_does_while_a_reader_opens_changes_nothing(
    writer: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flushes, compactions, deletions and commits between the pinning of files and their opening."""
    real, turns = opening.open_files, 0

    def flush() -> None:
        for table in writer._tables.values():
            table.flush()

    def later(*arguments: Any, **named: Any) -> Keys:
        nonlocal turns
        for turn in range(3):  # new logs, tables and MANIFEST entries; what was pinned goes
            commit(writer, n=b"later", **{f"later{turns}-{turn}": b"x" * 5000})
            flush()
            writer.compact("images")
        turns += 1
        return real(*arguments, **named)

    monkeypatch.setattr(opening, "open_files", later)
    for n in range(6):
        commit(writer, n=str(n).encode(), old=None if n % 2 else b"there", **{f"k{n}": b"y" * 5000})
        if n % 3 == 0:
            flush()  # some of it lies in tables, and some in the log
        reader = open_reader.open_reader(tmp_path, SMALL)
        (images, records, meta) = everything(reader)
        reader.close()
        assert images == records == meta
        # The log that was pinned grew by the first commit of those that came meanwhile, and by no other.
        assert (images[b"n"], images.get(b"old")) == (b"later", None if n % 2 else b"there")
        later_ = {f"later{turn}-{i}".encode() for turn in range(n) for i in range(3)}
        assert {key for key in images if key.startswith(b"later")} == later_ | {b"later%d-0" % n}
        assert images.keys() >= {f"k{i}".encode() for i in range(n + 1)}
    assert turns == 6, "each was opened at once"


@pytest.mark.slow
def test_a_state_that_moves_while_it_is_pinned_is_pinned_again(
    writer: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(writer, a=b"0")
    real, moves = pin.Pinned._open_new, iter(range(1, 8))

    def meanwhile(held: pin.Pinned) -> bool:
        found = real(held)
        for n in moves:
            commit(writer, a=str(n).encode())
            for table in writer._tables.values():
                table.flush()
            break
        return found

    monkeypatch.setattr(pin.Pinned, "_open_new", meanwhile)
    reader = open_reader.open_reader(tmp_path, SMALL)
    assert everything(reader) == [{b"a": b"7"}] * 3
    reader.close()
    moves = iter(range(8, 1000))
    with pytest.raises(open_reader.BusyError, match="try again") as raised:
        open_reader.open_reader(tmp_path, SMALL, tries=5)
    assert not isinstance(raised.value, StoreDamagedError)


def test_where_open_files_have_no_names_they_are_opened_by_their_own(
    writer: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(writer, a=b"1")
    monkeypatch.setattr(pin, "_FDS", tmp_path / "none")
    real, count = opening.open_files, 0

    def meanwhile(*arguments: Any, **named: Any) -> Keys:
        nonlocal count
        count += 1
        if count < 4:
            commit(writer, a=str(count).encode())
            for table in writer._tables.values():
                table.flush()
        return real(*arguments, **named)

    monkeypatch.setattr(opening, "open_files", meanwhile)
    reader = open_reader.open_reader(tmp_path, SMALL)
    assert everything(reader) == [{b"a": b"3"}] * 3
    reader.close()
    assert count >= 4


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "MANIFEST-000001/../x", "", "a\0b"])
def test_what_current_names_is_never_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opening.create(tmp_path / "store", SMALL).close()
    temporary = tmp_path / "temporary" / "inside"
    temporary.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "store/outside").write_bytes(b"1")
    (tmp_path / "store/keys/CURRENT").write_text(f"{name}\n")
    before = {*tmp_path.rglob("*")}
    with pytest.raises(StoreDamagedError, match="keys"):
        open_reader.open_reader(tmp_path / "store", SMALL)
    assert {*tmp_path.rglob("*")} == before
    assert (tmp_path / "store/outside").read_bytes() == b"1"
