"""A disk whose power can be cut: records what a program writes, and lays out what would be left.

The model promises what POSIX does, and nothing that a file system may do besides:

- what a file holds is durable as of its last fsync or fdatasync, and is empty before the first;
- a name that came, went or moved is durable once its folder was fsynced;
- of the rest any part may survive: names in any order, contents by sectors, lengths either way.

A rename is one step; between two folders it is durable with the folder that it leads to. RocksDB's
folder is not taken apart: in it is what was there when the last synced commit had returned, and it
is empty before the first.

The recorder is the disk that storage is given, and records call by call. What is written past it (by
C++, by Python's own files) is found by looking at the tree before and after each of them, and counts
as unsynced.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import random
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from engine.records import Buffer
from engine.storage.disk import Disk, using
from engine.storage.rocks import database, opening
from engine.storage.rocks.database import Batch, Keys

Name = str | os.PathLike[str]
SECTOR = 512
ROOT = 0  # the node of the recorded folder itself, which is durable
FILE, FOLDER, ROCKSDB = "file", "folder", "rocksdb"
# rocksdict writes it anew at each open and never syncs it.
_CONFIG = "rocksdict-config.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name in a folder stood for, and stands for now."""

    folder: int
    name: str
    before: int | None
    now: int | None


@dataclass(frozen=True, slots=True)
class Named:
    """Names that changed in one step; ``kind`` of a node that is new."""

    what: str
    entries: tuple[Entry, ...]
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Wrote:
    """A file holds ``content`` now."""

    what: str
    node: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Synced:
    """A file's content, or a folder's names, were made durable."""

    what: str
    node: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A synced batch of RocksDB has returned; ``copy`` was taken of its folder then."""

    what: str
    node: int
    copy: Path


@dataclass(frozen=True, slots=True)
class Told:
    """The caller has been told of ``promise``: from here on it must be kept."""

    what: str
    promise: Any


Event = Named | Wrote | Synced | Committed | Told
Tree = dict[int, dict[str, int]]


@dataclass
class DiskState:
    """What is there now, what of it is durable, and in which order the rest was written."""

    kinds: dict[int, str] = field(default_factory=lambda: {ROOT: FOLDER})
    live: Tree = field(default_factory=lambda: {ROOT: {}})
    durable: Tree = field(default_factory=lambda: {ROOT: {}})
    pending: list[tuple[Entry, ...]] = field(default_factory=list)
    versions: dict[int, list[bytes]] = field(default_factory=dict)  # durable, …, now
    copies: dict[int, Path | None] = field(default_factory=dict)  # of RocksDB's folders
    promise: Any = None
    was_cut: bool = False

    def clone(self) -> DiskState:
        """The same disk, for another future: what a killed process leaves."""
        return DiskState(
            dict(self.kinds),
            {node: dict(names) for node, names in self.live.items()},
            {node: dict(names) for node, names in self.durable.items()},
            list(self.pending),
            {node: list(versions) for node, versions in self.versions.items()},
            dict(self.copies),
            self.promise,
            self.was_cut,
        )

    def new(self, kind: str) -> int:
        """A node that no name stands for yet."""
        node = len(self.kinds)
        self.kinds[node] = kind
        if kind == FOLDER:
            self.live[node], self.durable[node] = {}, {}
        elif kind == FILE:
            self.versions[node] = [b""]
        else:
            self.copies[node] = None
        return node

    def apply(self, event: Event) -> None:
        """Go one step on."""
        if isinstance(event, Named):
            if event.kind is not None:
                node = self.new(event.kind)
                assert event.entries[0].now == node
            _rename(self.live, event.entries)
            self.pending.append(event.entries)
        elif isinstance(event, Wrote):
            self.versions[event.node].append(event.content)
        elif isinstance(event, Synced):
            if self.kinds[event.node] == FILE:
                self.versions[event.node] = self.versions[event.node][-1:]
            else:
                self._sync_names(event.node)
        elif isinstance(event, Committed):
            self.copies[event.node] = event.copy
        else:
            self.promise = event.promise

    def _sync_names(self, folder: int) -> None:
        left = []
        for entries in self.pending:
            to = {entry.folder for entry in entries if entry.now is not None}
            if folder in (to or {entry.folder for entry in entries}):
                _rename(self.durable, entries)
            else:
                left.append(entries)
        self.pending = left

    def after_power_cut(self, rng: random.Random | None, *, last_name: bool = False) -> DiskState:
        """What is there when the power is back, all of it durable.

        Without ``rng``, only what was synced, and with ``last_name`` the latest change of names,
        before all that it builds on; else also what is drawn of the rest.
        """
        names = copy.deepcopy(self.durable)
        files = {}
        # At the ends of these chances are disks that write names before contents, or the other
        # way round; between them, one that had written about half of it.
        of_names, of_sectors = rng.choices((0.0, 0.5, 1.0), k=2) if rng else (0.0, 0.0)
        for entries in self.pending:
            if rng.random() < of_names if rng else last_name and entries is self.pending[-1]:
                _rename(names, entries)
        for node, versions in self.versions.items():
            files[node] = [_torn(versions, rng, of_sectors) if rng else versions[0]]
        return DiskState(
            dict(self.kinds),
            names,
            copy.deepcopy(names),
            [],
            files,
            dict(self.copies),
            self.promise,
            was_cut=True,
        )

    def walk(self, folder: int = ROOT, path: str = "") -> Iterator[tuple[str, int]]:
        """Each path below the recorded folder and its node, a folder before what is in it."""
        for name, node in sorted(self.live[folder].items()):
            where = f"{path}/{name}" if path else name
            yield where, node
            if self.kinds[node] == FOLDER:
                yield from self.walk(node, where)

    def signature(self) -> bytes:
        """Equal where the same would be laid out, and the same was promised."""
        sums = hashlib.sha256()
        for path, node in self.walk():
            sums.update(f"{path} {self.kinds[node]} {self.copies.get(node)} ".encode())
            if node in self.versions:
                sums.update(hashlib.sha256(self.versions[node][-1]).digest())
        sums.update(str(id(self.promise)).encode())
        return sums.digest()

    def lay(self, folder: Path) -> None:
        """Write what is there into a folder, which must not exist."""
        folder.mkdir(parents=True)
        for path, node in self.walk():
            kind = self.kinds[node]
            if kind == FILE:
                (folder / path).write_bytes(self.versions[node][-1])
            else:
                (folder / path).mkdir()
            if kind == ROCKSDB and (source := self.copies[node]) is not None:
                _copy_rocksdb(source, folder / path)
                if self.was_cut:
                    (folder / path / _CONFIG).write_bytes(b"")


def _rename(tree: Tree, entries: tuple[Entry, ...]) -> None:
    for entry in entries:
        names = tree[entry.folder]
        if entry.now is not None:
            names[entry.name] = entry.now
        elif names.get(entry.name) == entry.before:  # else it never got there, or was replaced
            names.pop(entry.name, None)


def _torn(versions: list[bytes], rng: random.Random, of_sectors: float) -> bytes:
    """Sectors of the newest version, of older ones, or zeros where those were shorter."""
    if len(versions) == 1:
        return versions[0]
    lengths = [len(version) for version in versions]
    size = rng.choice([lengths[0], lengths[-1], rng.randint(min(lengths), max(lengths))])
    parts = []
    for at in range(0, size, SECTOR):
        version = versions[-1] if rng.random() < of_sectors else rng.choice(versions)
        parts.append(version[at : at + SECTOR].ljust(SECTOR, b"\0"))
    return b"".join(parts)[:size]


def _copy_rocksdb(source: Path, target: Path) -> None:
    """Copy a RocksDB; its tables are never written to again and are linked."""
    for entry in os.scandir(source):
        if entry.name.endswith(".sst"):
            os.link(entry.path, target / entry.name)
        elif not entry.name.startswith(("LOG", "LOCK")):
            shutil.copyfile(entry.path, target / entry.name)


class Recorder(Disk):
    """While it is entered, everything that happens to the files below ``root`` is recorded.

    ``state`` is laid out there first. Syncs are recorded and not carried out: nobody will cut the
    power of the machine that this runs on. ``copies`` takes the copies of RocksDB's folder.
    """

    # Syncs that are neither recorded nor carried out, as they are called among the events.
    left_out: re.Pattern[str] | None = None

    def __init__(self, state: DiskState, root: Path, copies: Path) -> None:
        self.root = root
        self.start = state.clone()
        self.events: list[Event] = []
        # After these nothing is known to be durable, and none is recorded.
        self.unsynced_commits = 0
        self._disk = state.clone()
        self._copies = copies
        self._nodes: dict[tuple[int, int], int] = {}  # device and inode → node
        self._stamps: dict[int, tuple[int, int]] = {}
        self._writes: list[tuple[Path, bool]] = []  # of a commit: where, and whether synced
        self._patch = pytest.MonkeyPatch()
        self._given = contextlib.ExitStack()
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self._disk.lay(self.root)
        self._copies.mkdir(parents=True)
        for path, node in [("", ROOT), *self._disk.walk()]:
            status = (self.root / path).stat()
            self._nodes[status.st_dev, status.st_ino] = node
            self._stamps[node] = (status.st_size, status.st_mtime_ns)
        patch = self._patch
        patch.setattr(opening, "Rdict", self._opened(opening.Rdict))
        patch.setattr(Keys, "commit", self._commit(Keys.commit))
        self._given.enter_context(using(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._given.close()
        self._patch.undo()
        if error is None:
            self._observe("after the end")

    def tell(self, promise: Any) -> None:
        """From here on, what ``promise`` says must not be lost."""
        self._emit(Told("told", promise))

    def states(self) -> Iterator[tuple[int, str, DiskState]]:
        """The disk before everything and after each event: its number, what it was, the disk.

        The disk goes on changing: ``clone`` it, or cut its power, to keep it.
        """
        disk = self.start.clone()
        yield 0, "the beginning", disk
        for number, event in enumerate(self.events, 1):
            disk.apply(event)
            yield number, event.what, disk

    # --- what happened ----------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        self._disk.apply(event)
        self.events.append(event)

    def _observe(self, what: str) -> None:
        """Record how the tree differs from what is known of it; ``what`` is the cause."""
        with self._lock:
            while self._names_moved(what):
                pass
            for path, node in list(self._disk.walk()):
                if self._disk.kinds[node] == FILE:
                    status = (self.root / path).stat()
                    if self._stamps[node] != (status.st_size, status.st_mtime_ns):
                        self._read(f"{what}: {path}", node, path)

    def _read(self, what: str, node: int, path: str) -> None:
        """Record a file's content, if it is not what is known of it."""
        status = (self.root / path).stat()
        self._stamps[node] = (status.st_size, status.st_mtime_ns)
        content = (self.root / path).read_bytes()
        if content != self._disk.versions[node][-1]:
            self._emit(Wrote(what, node, content))

    def _names_moved(self, what: str) -> bool:
        came: list[tuple[int, str, str, os.stat_result]] = []
        gone: dict[int, tuple[int, str, str]] = {}  # node → folder, name, path
        for folder, path in [(ROOT, ""), *((n, p) for p, n in self._disk.walk())]:
            if self._disk.kinds[folder] == FOLDER and (self.root / path).is_dir():
                there = {
                    entry.name: entry.stat(follow_symlinks=False)
                    for entry in os.scandir(self.root / path)
                }
                names = self._disk.live[folder]
                for name, status in sorted(there.items()):
                    node = self._nodes.get((status.st_dev, status.st_ino))
                    if node is None or names.get(name) != node:
                        came.append((folder, name, f"{path}/{name}".lstrip("/"), status))
                for name, node in names.items():
                    if name not in there:
                        gone[node] = (folder, name, f"{path}/{name}".lstrip("/"))
        for folder, name, path, status in came:
            self._name(what, folder, name, path, status, gone)
        for node, (folder, name, path) in gone.items():
            self._emit(Named(f"{what}: {path} is gone", (Entry(folder, name, node, None),)))
        named = {node for _, node in self._disk.walk()} | {ROOT}
        self._nodes = {inode: node for inode, node in self._nodes.items() if node in named}
        return bool(came or gone)

    def _name(
        self,
        what: str,
        folder: int,
        name: str,
        path: str,
        status: os.stat_result,
        gone: dict[int, tuple[int, str, str]],
    ) -> None:
        before = self._disk.live[folder].get(name)
        node = self._nodes.get((status.st_dev, status.st_ino))
        if node is not None:
            entries = [Entry(folder, name, before, node)]
            if node in gone:
                old_folder, old_name, old_path = gone.pop(node)
                entries.insert(0, Entry(old_folder, old_name, node, None))
                what = f"{what}: {old_path} →"
            self._emit(Named(f"{what} {path}", tuple(entries)))
            return
        node = len(self._disk.kinds)
        kind = FOLDER if stat.S_ISDIR(status.st_mode) else FILE
        kind = ROCKSDB if kind == FOLDER and name == database.FOLDER else kind
        self._nodes[status.st_dev, status.st_ino] = node
        self._stamps[node] = (0, 0)
        self._emit(Named(f"{what}: {path}", (Entry(folder, name, before, node),), kind))

    def _path(self, node: int) -> str:
        return next((path for path, other in self._disk.walk() if other == node), ".")

    # --- what storage calls ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _recorded(self, name: str) -> Iterator[None]:
        self._observe("past it")
        try:
            yield
        finally:
            self._observe(name)

    def open(self, path: Name, flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return super().open(path, flags, mode, dir_fd=dir_fd)
        with self._recorded("open"):
            return super().open(path, flags, mode, dir_fd=dir_fd)

    def copy_file_range(self, source: int, fd: int, count: int, offset: int) -> int:
        with self._recorded("copy_file_range"):
            return super().copy_file_range(source, fd, count, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        with self._recorded("ftruncate"):
            super().ftruncate(fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        with self._recorded("allocate"):
            super().allocate(fd, offset, length)

    def mkdir(self, path: Name, *, dir_fd: int | None = None) -> None:
        with self._recorded("mkdir"):
            super().mkdir(path, dir_fd=dir_fd)

    def rename(
        self,
        path: Name,
        new: Name,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        with self._recorded("rename"):
            super().rename(path, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link(self, path: Name, new: Name) -> None:
        with self._recorded("link"):
            super().link(path, new)

    def unlink(self, path: Name, *, dir_fd: int | None = None) -> None:
        with self._recorded("unlink"):
            super().unlink(path, dir_fd=dir_fd)

    def rmdir(self, path: Name, *, dir_fd: int | None = None) -> None:
        with self._recorded("rmdir"):
            super().rmdir(path, dir_fd=dir_fd)

    def _node_of(self, fd: int) -> int | None:
        status = os.fstat(fd)
        inode = (status.st_dev, status.st_ino)
        if inode not in self._nodes:
            self._observe("past it")
        return self._nodes.get(inode)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        node = self._node_of(fd)
        if node is None:
            return super().pwrite(fd, data, offset)
        self._observe("past it")
        written = super().pwrite(fd, data, offset)
        content = bytearray(self._disk.versions[node][-1].ljust(offset, b"\0"))
        content[offset : offset + written] = memoryview(data).cast("B")[:written]
        status = os.fstat(fd)
        self._stamps[node] = (status.st_size, status.st_mtime_ns)
        what = f"pwrite: {self._path(node)} from {offset} to {offset + written}"
        self._emit(Wrote(what, node, bytes(content)))
        return written

    def fsync(self, fd: int) -> None:
        if not self._sync("fsync", fd):
            super().fsync(fd)

    def fdatasync(self, fd: int) -> None:
        if not self._sync("fdatasync", fd):
            super().fdatasync(fd)

    def _sync(self, name: str, fd: int) -> bool:
        """Record a sync; whether it is one of a file or a folder here."""
        node = self._node_of(fd)
        if node is None:
            return False
        self._observe("past it")
        path = self._path(node)
        if self.left_out is not None and self.left_out.fullmatch(f"{name}: {path}"):
            return True
        if self._disk.kinds[node] == FILE:
            self._read(f"past it: {path}", node, path)  # two writes may share a time stamp
        self._emit(Synced(f"{name}: {path}", node))
        return True

    def _opened(self, real: type[Any]) -> Callable[..., Any]:
        def opened(folder: str, *args: Any, **named: Any) -> Any:
            return _Watched(real(folder, *args, **named), Path(folder), self._writes)

        return opened

    def _commit(self, real: Callable[[Keys, Batch], None]) -> Callable[[Keys, Batch], None]:
        def commit(table: Keys, batch: Batch) -> None:
            self._writes.clear()
            real(table, batch)
            assert self._writes, "a commit that did not call write: teach the recorder how it went"
            self._observe("past it")
            if not all(synced for _, synced in self._writes):
                self.unsynced_commits += 1
                return
            folder = self._writes[0][0]
            status = folder.stat()
            node = self._nodes[status.st_dev, status.st_ino]
            copied = self._copies / f"{len(self.events):06d}"
            copied.mkdir()
            _copy_rocksdb(folder, copied)
            self._emit(Committed("commit", node, copied))

        return commit


class _Watched:
    """An open RocksDB that tells which of its writes were synced."""

    def __init__(self, db: Any, folder: Path, writes: list[tuple[Path, bool]]) -> None:
        self._db = db
        self._folder = folder
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def write(self, batch: Any, options: Any = None) -> None:
        """Write a batch, and note whether it was synced, and where."""
        self._db.write(batch, options)
        self._writes.append((self._folder, options is not None and bool(options.sync)))
