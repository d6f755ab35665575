"""RocksDB's files at one moment, held open under new names, so that a reader can open them in time.

Opening RocksDB takes tenths of a second. In that time a fast writer can flush, compact and delete the
files that are being opened. Holding its files takes a millisecond. Tables never change; a MANIFEST and
logs only grow. So the files that are open while CURRENT and the MANIFEST do not change, with a copy of
these two, are one consistent state: files that this state needs are deleted only after the MANIFEST has
grown. Logs may have grown in the meantime by later commits, in order. If the state did change, held
files stay held, and the next try opens only the new ones; so a few tries are enough beside any writer.
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
_MAX_BYTES = 1 << 30  # of a MANIFEST; RocksDB begins another one at this size
_PIECE = 1 << 20  # bytes
_FDS = Path("/proc/self/fd")  # names of open files, even of deleted ones
_PAUSE = 0.0005  # seconds, after some tries
_AT_ONCE = 10  # tries without a pause
_LISTINGS = 20  # per try


class UnsettledError(Exception):
    """A writer kept changing the files."""


class Pinned:
    """Open files of one store's RocksDB."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.files: dict[str, int] = {}  # descriptors, by name
        self._there: set[str] = set()  # the names in the last listing
        self.current = b""
        self.size = 0  # of the MANIFEST that CURRENT names

    def hold(self, tries: int) -> bool:
        """Hold one state; False if CURRENT names none, ``UnsettledError`` if the state kept changing."""
        for attempt in range(tries):
            before = version(self.store / file_names.KEYS)
            if before is None:
                if attempt >= 3:
                    return False
            else:
                self.current, self.size = before
                # The name is checked because a file with this name is written later.
                if not file_names.ROCKSDB_MANIFEST.fullmatch(self.log):
                    return False
                if self.size > _MAX_BYTES:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                self._open(self.log)
                # List until nothing is new: a listing may show a log and miss the one before.
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
        """Return the name of the MANIFEST that CURRENT names."""
        return self.current.decode("ascii", "replace").removesuffix("\n")

    def _open(self, name: str) -> None:
        if name not in self.files:
            # A file that is gone was not part of this state, or the state will turn out to have changed.
            with contextlib.suppress(FileNotFoundError):
                self.files[name] = nofollow.open_file(self.store, f"{file_names.KEYS}/{name}")

    def _open_new(self) -> bool:
        """Open the files that are not held yet; return whether there were any."""
        found = nofollow.entries(self.store, file_names.KEYS)
        self._there = {entry.name for entry in found if _OURS.fullmatch(entry.name)}
        before = len(self.files)
        for name in self._there:
            self._open(name)
        return len(self.files) > before

    def name_in(self, links: Path) -> None:
        """Make a folder that RocksDB can open: links to held files, and copies of the rest."""
        for name, fd in self.files.items():
            # Others belong to an earlier state.
            if name in self._there:
                (links / name).symlink_to(_FDS / str(fd))
        # Copy the MANIFEST up to its length in this state, not its current length.
        with (links / self.log).open("wb") as copy:
            for at in range(0, self.size, _PIECE):
                copy.write(os.pread(self.files[self.log], min(_PIECE, self.size - at), at))
        (links / "CURRENT").write_bytes(self.current)

    def close(self) -> None:
        """Close all files; those opened by their new names stay open."""
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()


@contextlib.contextmanager
def pinned(store: Path, tries: int = TRIES) -> Iterator[Pinned | None]:
    """Hold the files of one state of a store's keys; yield None if there is no CURRENT.

    Raises ``UnsettledError``; and ``OSError`` if open files have no names here, or too many are open.
    """
    if not _FDS.is_dir():
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    made = Pinned(store)
    try:
        there = made.hold(tries)
        if there and not os.access(_FDS / str(made.files[made.log]), os.R_OK):
            # A process with other privileges may not open its own files by name.
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        yield made if there else None
    finally:
        made.close()


def version(folder: Path) -> tuple[bytes, int] | None:
    """Return CURRENT's contents and the size of the MANIFEST it names; None while they are missing.

    While this stays the same, the files of RocksDB's folder belong together.
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
