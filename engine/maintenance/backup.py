"""Copies a store while others read it and write to it: one state, whole, without a lock.

    hold the keys → hold what the manifest names → copy the keys → open the copy: what is committed?
    → copy that much of everything else → sync → rename

A backup is a reader: it writes nothing to the source. It opens every file that it copies at the start
and keeps it open, so a writer may compact, merge and delete while it runs; see
``engine.storage.pinned_files``. The copy is the same store, with the same uuid, as of an earlier
commit. Damage inside a file is copied with it; ``engine check`` of the copy finds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.config import Limits, MemoryBudget
from engine.errors import EngineError, StoreDamagedError, StoreError, UsageError
from engine.records import BackupReport
from engine.storage import commit_file, file_names, lock, manifest, nofollow
from engine.storage.commit_file import Notice, commit_of
from engine.storage.disk import disk
from engine.storage.durable import write_all
from engine.storage.manifest import Manifest
from engine.storage.pinned_files import (
    Held,
    HeldFile,
    check_extent,
    extent_name,
    hold_keys,
    hold_rest,
)
from engine.storage.rocks import database, open_reader
from engine.storage.session import Session
from engine.storage.staging import check_place, made_aside
from engine.storage.state import State, settings_in
from engine.storage.tables import Tables
from engine.storage.writer import REJECTS

KIND = "backup"
# The order in which they appear in an empty folder: the keys and the manifest come last.
_PARTS = (
    lock.NAME,
    commit_file.NAME,
    REJECTS,
    "encoder",
    manifest.INDEX_FOLDER,
    "fingerprints",
    "vectors",
    "pixels",
    database.FOLDER,
    manifest.NAME,
)
_ROUNDS = 10  # attempts, where a writer deletes files at the start of each
_OF_DEST = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class _GoneError(Exception):
    """The held keys need an extent that a writer has dropped since."""


class Backup:
    """One backup of one store. ``run`` may be called once."""

    def __init__(
        self,
        store: Path,
        memory: MemoryBudget,
        dest: Path,
        progress: Callable[[int, int | None], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """``progress(done, total)`` counts bytes."""
        self._limits = limits or Limits()
        self._store = store
        self._memory = memory
        self._dest = dest
        self._progress = progress or (lambda done, total: None)
        self._done = 0
        self._total = 0
        self._files = 0
        self._plain = False  # whether the kernel cannot copy between the two disks

    def run(self) -> BackupReport:
        """Copy everything; returns a report of it.

        Raises ``UsageError`` where ``dest`` cannot be used, ``StoreDamagedError`` where the source is
        damaged, ``StoreError`` where copying fails. Then nothing is left at ``dest``.
        """
        started = time.perf_counter()
        source, place = self._store.resolve(), self._dest.resolve()
        if place.is_relative_to(source):
            raise UsageError(f"{self._dest} lies inside of the store: name another place")
        check_place(self._dest, KIND, _PARTS)
        try:
            with made_aside(self._dest, KIND, _PARTS) as made:
                state = self._copy(made)
        except OSError as error:
            raise StoreError(
                f"{self._dest} cannot be made: {error.strerror or error}; nothing was left there"
            ) from None
        return BackupReport(
            path=str(self._dest),
            commit=state.commit,
            images=state.images,
            vectors=state.live_vectors,
            files=self._files,
            bytes=self._done,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _copy(self, made: Path) -> State:
        seen = -1
        for _ in range(_ROUNDS):
            try:
                return self._copy_once(made, seen)
            except _GoneError as gone:
                (seen,) = gone.args
                for part in nofollow.entries(made):
                    if part.is_folder:
                        nofollow.discard(made, part.name, file_names.MADE, called=f"{part.name}/")
        raise StoreError(
            f"{self._store} changed in every one of {_ROUNDS} attempts to copy it: try again"
        )

    def _copy_once(self, made: Path, seen: int) -> State:
        """Copy the store; ``seen`` is the commit that the attempt before this one found."""
        self._done = self._files = 0
        notice_ = Notice(self._store)
        # Read before the keys, so that it never names a later commit than they have.
        published = commit_of(notice_.read())
        notice_.close()
        with hold_keys(self._store) as (table, current), hold_rest(self._store) as (rest, named):
            with contextlib.suppress(FileNotFoundError):
                rest.open(REJECTS)
                rest.measure()
            self._check_room(made, table, rest)
            for name, file in table.files.items():
                self._put(made / name, file)
            _write(made / database.FOLDER / "CURRENT", current)
            state = self._state(made, named, published)
            if state.commit != seen and _is_of_another_encoder(named, state):
                raise _GoneError(state.commit)
            wanted = self._restricted(state.manifest_of(named), state)
            for family, pairs in state.extents.items():
                for number, size in pairs:
                    extent = rest.files.get(extent_name(family, number))
                    if extent is None and not size:
                        continue
                    if extent is None and state.commit == seen:
                        raise StoreDamagedError(
                            f"{self._store / manifest.NAME} does not name "
                            f"{extent_name(family, number)}, which holds committed data; "
                            f"run 'engine check'"
                        )
                    if extent is None:
                        raise _GoneError(state.commit)
                    check_extent(extent, size)
            names = _needed(rest, named, wanted)
            self._total = self._done + sum(rest.files[name].size for name in names)
            for name in names:
                self._put(made / name, rest.files[name])
        _write(made / commit_file.NAME, commit_file.pack(state.commit))
        _write(made / manifest.NAME, wanted.dump())
        self._prove(made)
        return state

    def _state(self, made: Path, named: Manifest, published: int) -> State:
        """The committed state in the copied keys, which must not be older than ``published``."""
        try:
            table = open_reader.open_reader(made, self._memory)
        except StoreDamagedError as error:
            # The source is damaged, so the message names it.
            raise StoreDamagedError(str(error).replace(str(made), str(self._store))) from None
        try:
            meta = Tables(table).meta
            value, settings = meta.state(), meta.settings()
        finally:
            table.close()
        if value is None or settings is None:
            raise StoreDamagedError(f"{self._store}: its keys have no state; run 'engine check'")
        if settings_in(settings) != named.settings:
            raise StoreDamagedError(f"{self._store}: manifest and keys belong to different stores")
        state = State.unpack(value)
        if state.commit < published:
            raise StoreDamagedError(
                f"{self._store}: its keys end with commit {state.commit}, but commit {published} "
                f"was made; run 'engine check'"
            )
        return state

    @staticmethod
    def _restricted(named: Manifest, state: State) -> Manifest:
        """The manifest without the extents and segments that came after ``state``."""
        live = state.live_segments(named)
        used = {entry.quantizer for entry in live}
        return replace(
            named,
            extents={
                family: [number for number, _ in pairs]
                for family, pairs in state.extents.items()
                if any(size for _, size in pairs) or family in named.extents
            },
            segments=tuple(live),
            quantizers=tuple(entry for entry in named.quantizers if entry.number in used),
        )

    def _check_room(self, made: Path, *held: Held) -> None:
        stats = [os.fstat(file.fd) for part in held for file in part.files.values()]
        needed = sum(min(stat.st_size, 512 * stat.st_blocks) for stat in stats)
        self._total = sum(stat.st_size for stat in stats)
        free = disk().free(made)
        if free < needed:
            raise StoreError(
                f"{self._dest} cannot be made: it needs {needed:,} bytes and its disk has {free:,} "
                f"free; nothing was left there"
            )

    def _prove(self, made: Path) -> None:
        """Raise unless the copy can be opened and its extents belong to this store."""
        try:
            with Session(made, self._memory, read_only=True) as copy:
                for family in copy.snapshot.families():
                    for number in copy.snapshot.manifest.extents[family.name]:
                        problem = copy.snapshot.header_problem(family, number)
                        if problem:
                            path = family.path(self._store, number)
                            raise StoreDamagedError(f"{path}: {problem}; run 'engine check'")
        except EngineError as error:
            raise type(error)(str(error).replace(str(made), str(self._store))) from None

    # --- copying ----------------------------------------------------------------------------------

    def _put(self, path: Path, file: HeldFile) -> None:
        """Copy the first ``file.size`` bytes of a held file; holes stay holes."""
        for folder in reversed([above for above in path.parents if not above.exists()]):
            disk().mkdir(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = disk().open(path, flags)
        # The keys are small and always in use; the rest of a store is larger than memory.
        cold = file.path.parent.name != database.FOLDER
        try:
            at = 0
            while at < file.size:
                start, end = _data(file.fd, at, file.size, self._limits.copy_bytes)
                self._advance(start - at)
                if start < end:
                    self._copy_range(file, fd, start, end)
                    # The kernel drops only pages that have been written.
                    disk().fdatasync(fd)
                    _drop(fd, start, end)
                    if cold:
                        _drop(file.fd, start, end)
                at = end
            disk().ftruncate(fd, file.size)
        finally:
            os.close(fd)
        self._files += 1

    def _copy_range(self, file: HeldFile, fd: int, at: int, end: int) -> None:
        while at < end:
            count = 0
            if not self._plain:
                try:
                    # The kernel shares blocks where the file system can.
                    count = disk().copy_file_range(file.fd, fd, end - at, at)
                except OSError as error:
                    if error.errno in _OF_DEST:
                        raise
                    # If it is the source that fails, reading it says so.
                    self._plain = True
                except AttributeError:  # macOS
                    self._plain = True
            if not count:
                data = _read(file, min(end - at, 1 << 20), at)
                write_all(fd, data, at)
                count = len(data)
            at += count
            self._advance(count)

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)


def _needed(rest: Held, named: Manifest, wanted: Manifest) -> list[str]:
    """The held files that the copy needs: all but extents and index files that it does not name."""
    dropped = {
        extent_name(family, number)
        for family, numbers in named.extents.items()
        for number in numbers
        if number not in wanted.extents.get(family, [])
    }
    dropped |= {str(path) for path in named.index_files(Path()) - wanted.index_files(Path())}
    # The encoder that is being replaced, or the one that was about to replace it.
    gone = {space.generation for space in named.spaces} - {wanted.space.generation}
    folders = tuple(f"{file_names.ENCODER}/{generation}/" for generation in gone)
    dropped |= {name for name in rest.files if folders and name.startswith(folders)}
    return [name for name in rest.files if name not in dropped]


def _is_of_another_encoder(named: Manifest, state: State) -> bool:
    """Whether a manifest, read after the keys, may name another encoder than made their vectors."""
    if state.is_beyond(named):
        return True
    now = state.manifest_of(named).space
    return (
        now.exists
        and now.vector_family.name in named.extents
        and now.vector_family.name not in state.extents
    )


def _data(fd: int, at: int, end: int, size: int) -> tuple[int, int]:
    """The next range of data at or after ``at``, up to ``size`` bytes and ``end``: start, stop.

    Bytes between ``at`` and the start are a hole.
    """
    if not hasattr(os, "SEEK_DATA"):
        return at, min(end, at + size)
    try:
        start = min(os.lseek(fd, at, os.SEEK_DATA), end)
        stop = os.lseek(fd, start, os.SEEK_HOLE) if start < end else end
    except OSError as error:
        # Everything up to the end is a hole.
        if error.errno == errno.ENXIO:
            return end, end
        return at, min(end, at + size)
    return start, min(stop, end, start + size)


def _read(file: HeldFile, count: int, at: int) -> bytes:
    try:
        data = os.pread(file.fd, count, at)
    except OSError as error:
        raise StoreDamagedError(
            f"{file.path} cannot be read: {error.strerror}; run 'engine check'"
        ) from None
    if not data:
        raise StoreDamagedError(f"{file.path} is cut short; run 'engine check'")
    return data


def _drop(fd: int, start: int, end: int) -> None:
    """Drop copied pages, so that a backup does not push everything else out of the page cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


def _write(path: Path, data: bytes) -> None:
    """Write a small file; it becomes durable when its folder is renamed into place."""
    fd = nofollow.create_file(path.parent, path.name)
    try:
        write_all(fd, data, 0)
    finally:
        os.close(fd)
