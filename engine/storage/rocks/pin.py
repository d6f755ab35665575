"""The files of RocksDB as of one moment, held open under new names, for a reader to open at leisure.

Opening RocksDB takes tenths of a second, in which a quick writer has flushed, compacted and deleted
what is being opened. Holding its files takes a millisecond. Tables never change, and a MANIFEST and
logs only grow. So the files that are open while CURRENT and the MANIFEST do not move, with a copy of
these two, are one state: whatever that state needs is deleted only after the MANIFEST has grown. Logs
may have grown meanwhile, by later commits, in their order. Where it did move, what is held stays held,
and only what is new has to be opened the next time: so a few tries are enough beside any writer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from engine.storage import file_names, nofollow

TRIES = 200
_OURS = re.compile(r"\d+\.(sst|log)|IDENTITY")
_MAX_CURRENT = 64  # bytes of CURRENT
_MAX_BYTES = 1 << 30  # of a MANIFEST: RocksDB begins another one then
_PIECE = 1 << 20  # bytes
_FDS = Path("/proc/self/fd")  # names of open files, good for deleted ones too
_PAUSE = 0.0005  # seconds, after some tries
_AT_ONCE = 10  # tries without a pause
_LISTINGS = 20  # of a try


class UnsettledError(Exception):
    """A writer never left the files alone for long enough."""


class Pinned:
    """Files of the RocksDB of one store, open."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.files: dict[str, int] = {}  # descriptors, by name
        self._there: set[str] = set()  # what there was when it was last looked
        self.current = b""
        self.size = 0  # of the MANIFEST that it names

    def hold(self, tries: int) -> bool:
        """Hold one state; False where CURRENT names none, ``UnsettledError`` where none stood still."""
        for attempt in range(tries):
            before = version(self.store / file_names.KEYS)
            if before is None:
                if attempt >= 3:
                    return False
            else:
                self.current, self.size = before
                # It is about to be the name of a file that is written.
                if not file_names.ROCKSDB_MANIFEST.fullmatch(self.log):
                    return False
                if self.size > _MAX_BYTES:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                self._open(self.log)
                # Again until there is nothing new: one listing may show a log and miss the one before.
                whole = not all(self._open_new() for _ in range(_LISTINGS))
                if (
                    whole
                    and self.log in self.files
                    and version(self.store / file_names.KEYS) == before
                ):
                    return True
            if attempt >= _AT_ONCE or before is None:
                time.sleep(_PAUSE)
        raise UnsettledError

    @property
    def log(self) -> str:
        """The MANIFEST that CURRENT names."""
        return self.current.decode("ascii", "replace").removesuffix("\n")

    def _open(self, name: str) -> None:
        if name not in self.files:
            # One that is gone by now was not of this state, or the state will turn out to have moved.
            with contextlib.suppress(FileNotFoundError):
                self.files[name] = nofollow.open_file(self.store, f"{file_names.KEYS}/{name}")

    def _open_new(self) -> bool:
        """Hold what is not held yet; whether there was anything."""
        found = nofollow.entries(self.store, file_names.KEYS)
        self._there = {entry.name for entry in found if _OURS.fullmatch(entry.name)}
        before = len(self.files)
        for name in self._there:
            self._open(name)
        return len(self.files) > before

    def name_in(self, links: Path) -> None:
        """Make a folder that RocksDB can open: links to what is held, copies of the rest."""
        for name, fd in self.files.items():
            if name in self._there:  # else it is of an earlier state
                (links / name).symlink_to(_FDS / str(fd))
        with (links / self.log).open("wb") as copy:  # as long as it was, and not as it is now
            for at in range(0, self.size, _PIECE):
                copy.write(os.pread(self.files[self.log], min(_PIECE, self.size - at), at))
        (links / "CURRENT").write_bytes(self.current)

    def close(self) -> None:
        """Let go of all: what has been opened by its new name stays open."""
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()


@contextlib.contextmanager
def pinned(store: Path, tries: int = TRIES) -> Iterator[Pinned | None]:
    """Hold the files of one state of a store's keys; None where there is no CURRENT.

    Raises ``UnsettledError``, and ``OSError`` where open files have no names or there are too many.
    """
    if not _FDS.is_dir():
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    made = Pinned(store)
    try:
        there = made.hold(tries)
        if there and not os.access(_FDS / str(made.files[made.log]), os.R_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))  # a process with privileges
        yield made if there else None
    finally:
        made.close()


def version(folder: Path) -> tuple[bytes, int] | None:
    """CURRENT's contents and the size of the MANIFEST it names; None while they are not there.

    As long as it stays the same, the files of RocksDB's folder belong together.
    """
    store = folder.parent
    try:
        current = nofollow.read_file(store, f"{file_names.KEYS}/CURRENT", _MAX_CURRENT)
        named = current.decode().strip()
        if not file_names.ROCKSDB_MANIFEST.fullmatch(named):
            return None
        length = nofollow.size(store, f"{file_names.KEYS}/{named}")
    except (OSError, ValueError):
        return None
    return (current, length) if length is not None else None
