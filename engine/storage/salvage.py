"""Makes a store that cannot be opened openable again, with as little loss as its damage allows.

manifest   gone or unreadable: made anew from the copy that the keys have. Extents that it names are
           all that are committed; segments are derived, and dropped.
log        RocksDB's write-ahead log has a flipped byte: it is replayed up to there, and what was
           committed behind it is lost.
commits    the keys can be read and end before the last commit that was told of: a log or RocksDB's
           own manifest was cut short. What is left goes on, if it is of one age.

Before anything is lost for good, the files that it may still be in are set aside.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from engine.config import MemoryBudget
from engine.errors import StoreDamagedError, StoreFormatError
from engine.records import Problem
from engine.storage import beneath, keys, manifest, names
from engine.storage.files import fsync_dir, replace_file
from engine.storage.keys import Keys
from engine.storage.live import sources_in
from engine.storage.lock import WriterLock
from engine.storage.manifest import DamagedManifestError
from engine.storage.notice import Notice, commit_of
from engine.storage.rows import NameRow, Run, record_in
from engine.storage.state import State

ASIDE = "damaged"


def salvage(store: Path, memory: MemoryBudget) -> list[Problem]:
    """Mend what keeps ``store`` from being opened; returns what it was, or nothing.

    Raises ``StoreDamagedError`` where nothing helps but a copy, ``StoreLockedError`` where another
    process is writing, ``StoreFormatError`` where there is no store, or one of a newer engine.
    """
    damaged: DamagedManifestError | None = None
    try:
        manifest.load(store, writing=True)  # before anything is touched: it may not be ours
    except DamagedManifestError as error:
        damaged = error
    folder = store / keys.FOLDER
    beneath.require_kinds(store, names.FILES, names.FOLDERS)
    if not keys.has_current(store):
        if damaged is not None and not beneath.is_folder(store, keys.FOLDER):
            raise StoreFormatError(f"{store} is not a store: it has no {keys.FOLDER}") from None
        raise StoreDamagedError(
            f"{folder} is not whole (no CURRENT): restore the store from a copy"
        )
    held, notice = WriterLock(store), Notice(store)
    try:
        held.acquire()
        problems = _keys(store, memory, commit_of(notice.read()))
        if damaged is not None:
            problems.append(_manifest(store, memory, damaged))
        if problems:
            with closing(keys.open_reader(store, memory)) as table:
                notice.publish(_state(table).commit)
        return problems
    finally:
        notice.close()
        held.release()


def _keys(store: Path, memory: MemoryBudget, told: int) -> list[Problem]:
    try:
        table = keys.open_reader(store, memory)  # which leaves no trace
    except StoreDamagedError:
        return [_log(store, memory)]
    with closing(table):
        state = _state(table)
        last = state.commit
        if last >= told:
            return []
        whole = _of_one_age(table, state)
    if not whole:
        raise StoreDamagedError(
            f"{store / keys.FOLDER} has lost what was committed after commit {last} from some tables "
            f"and not from others: restore the store from a copy"
        )
    # The next writer deletes the tables that RocksDB does not know of any more.
    aside = _set_aside(store, keys.require_files(store))
    return [_lost(f"the keys end before commit {told}, which was made", last, aside)]


def _of_one_age(table: Keys, state: State) -> bool:
    """Whether the tables end where ``state`` does: a writer would cut what it does not know of."""
    end = b"\xff" * 8
    commit = table.at_or_before("commits", end)
    record = table.at_or_before("records", end)
    return (
        (commit is None or int.from_bytes(commit[0], "big") <= state.commit)
        and (record is None or record_in(*record, state.next_id) is None)
        and (record is None or int.from_bytes(record[0], "big") < state.next_id)
        and sum(1 for _ in table.scan("images")) == state.images
        and all(NameRow.unpack(row).id < state.next_id for _, row in table.scan("names"))
        and all(int.from_bytes(id_, "big") < state.next_id for _, id_ in table.scan("files"))
        and _sources(table) == state.sources
    )


def _sources(table: Keys) -> int:
    runs = sum(sources_in(table, Run.from_row(*row)) for row in table.scan("runs", b"r"))
    return runs + sum(1 for _ in table.scan("names"))


def _log(store: Path, memory: MemoryBudget) -> Problem:
    logs = [name for name in keys.require_files(store) if name.endswith(".log")]
    aside = _set_aside(store, logs)
    try:
        table = keys.open_writer(store, memory, salvage=True)
    except StoreDamagedError as error:  # not the log: a table, which no replay brings back
        beneath.discard(store, aside.name, names.ROCKSDB)
        raise StoreDamagedError(f"{error}; restore the store from a copy") from None
    with closing(table):
        last = _state(table).commit
    return _lost("the write-ahead log was damaged", last, aside)


def _lost(what: str, last: int, aside: Path) -> Problem:
    after = f"{what}: what was committed after commit {last} is lost"
    where = f"ingest the same sources again (what there was of the keys is in {aside})"
    return Problem(keys.FOLDER, f"{after}; {where}", fixed=True)


def _set_aside(store: Path, files: Iterable[str]) -> Path:
    """Copy files of the keys into a new folder, durably; those that never change are linked."""
    aside, number = store / ASIDE, 1
    while os.path.lexists(aside):
        number += 1
        aside = store / f"{ASIDE}-{number}"
    beneath.make_folder(store, aside.name)
    for name in sorted(files):
        file = f"{keys.FOLDER}/{name}"
        if name.endswith(".sst"):
            try:
                os.link(store / file, aside / name, follow_symlinks=False)
                continue
            except OSError:  # no links here
                pass
        replace_file(aside / name, beneath.read_file(store, file), store)
    fsync_dir(aside)
    fsync_dir(store)
    return aside


def _manifest(store: Path, memory: MemoryBudget, error: DamagedManifestError) -> Problem:
    with closing(keys.open_reader(store, memory)) as table:
        copy = table.get("meta", b"manifest")
    if copy is None:
        raise StoreDamagedError(
            f"{store / manifest.NAME} is gone or damaged, and nothing was ever committed that would "
            f"have left a copy of it among the keys: make another store"
        )
    manifest.parse(store, copy, writing=True).with_index(()).save(store)
    what = str(error).partition(";")[0]
    return Problem(manifest.NAME, f"it was made anew, without the index: {what}", fixed=True)


def _state(table: Keys) -> State:
    return State.unpack(table.get("meta", b"state") or b"{}")
