"""A store's files at one moment, held open, so that they can be read even after they are deleted.

RocksDB's tables never change; its logs, its MANIFEST and the extents only grow. Suppose files are opened
while CURRENT and the MANIFEST do not change, and are read up to their length at that time. Then they are
one consistent state of the keys. At most the last commit of a log is cut short, and that one was not
acknowledged. Nothing is locked or written.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StoreDamagedError, StoreError
from engine.storage import file_names, manifest, nofollow
from engine.storage.durable import cannot_read
from engine.storage.extents import HEADER_BYTES
from engine.storage.manifest import Manifest
from engine.storage.rocks import database
from engine.storage.rocks.folder import require_readable
from engine.storage.rocks.pin import version

_TRIES = 200
_LISTINGS = 20  # per try
# LOCK is not held: closing a descriptor of it would release the lock that RocksDB has on it in this
# process.
_KEPT_KEYS = re.compile(r"\d+\.(sst|log)|IDENTITY|rocksdict-config\.json")
_FAMILY = re.compile(r"([a-z]+(?:/\d+)?)(\.[a-z0-9]+)")


@dataclass(slots=True)
class HeldFile:
    """An open file of a store; ``size`` is the number of bytes to read."""

    path: Path
    fd: int
    size: int


class Held:
    """Open files, by their path in the store."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self.files: dict[str, HeldFile] = {}

    def open(self, name: str) -> None:
        """Open a file and hold it; raise ``FileNotFoundError`` if it is missing."""
        path = self._store / name
        try:
            fd = nofollow.open_file(self._store, name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise cannot_read(path, error) from None
        self.files[name] = HeldFile(path, fd, 0)

    def measure(self) -> None:
        """Set each file's size to its current length."""
        for file in self.files.values():
            file.size = os.fstat(file.fd).st_size

    def close(self) -> None:
        """Close all files."""
        for file in self.files.values():
            os.close(file.fd)
        self.files.clear()


@contextlib.contextmanager
def hold_keys(store: Path) -> Iterator[tuple[Held, bytes]]:
    """Hold the files of one state of the keys; yield them and the content of CURRENT."""
    folder = store / database.FOLDER
    held = Held(store)
    try:
        for attempt in range(_TRIES):
            before = version(folder)
            if before is not None:
                current, _ = before
                # List until nothing is new: a listing may show a log and miss the one before.
                log = current.decode().strip()
                whole = not all(_open_new(held, folder, log) for _ in range(_LISTINGS))
                held.measure()
                if whole and version(folder) == before:
                    yield held, current
                    return
                held.close()
            elif attempt >= 3:
                break
            time.sleep(min(0.001 * (attempt + 1), 0.05))
    finally:
        held.close()
    require_readable(folder)
    if version(folder) is None:
        raise StoreDamagedError(f"{folder} cannot be opened (no CURRENT); run 'engine check'")
    raise StoreError(f"{folder} did not stand still for a moment: try again")


def _open_new(held: Held, folder: Path, log: str) -> bool:
    """Open RocksDB's files that are not held yet; return whether there were any.

    ``log`` is RocksDB's MANIFEST.
    """
    try:
        there = [entry.name for entry in nofollow.entries(folder.parent, folder.name)]
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from None
    before = len(held.files)
    for name in there:
        inside = f"{database.FOLDER}/{name}"
        if inside not in held.files and (name == log or _KEPT_KEYS.fullmatch(name)):
            # A file that is gone was not part of this state, or the state will turn out to have changed.
            with contextlib.suppress(FileNotFoundError):
                held.open(inside)
    return len(held.files) > before


@contextlib.contextmanager
def hold_rest(store: Path) -> Iterator[tuple[Held, Manifest]]:
    """Hold all files that the manifest names; call it while the keys are held. Yields both.

    The manifest names a commit's files before the commit is made. So it names at least the files that
    the held keys need, except for files that a writer has dropped between the two calls.
    """
    held = Held(store)
    try:
        for _ in range(_TRIES):
            found = manifest.load(store)
            try:
                for name in _named(store, found):
                    held.open(name)
            except FileNotFoundError as error:
                held.close()
                if manifest.load(store) == found:
                    raise StoreDamagedError(
                        f"{error.filename} is gone; run 'engine check'"
                    ) from None
                continue
            held.measure()
            yield held, found
            return
    finally:
        held.close()
    raise StoreError(f"{store / manifest.NAME} did not stand still for a moment: try again")


def extent_name(family: str, number: int) -> str:
    """Return an extent's path in the store."""
    parts = _FAMILY.fullmatch(family)
    if parts is None:
        raise StoreDamagedError(f"{manifest.NAME} names unknown extents {family!r}")
    return f"{parts[1]}/{number:08d}{parts[2]}"


def check_extent(file: HeldFile, size: int) -> None:
    """Set a held extent's length to ``size`` committed bytes, which must be in the file."""
    if file.size < HEADER_BYTES + size:
        raise StoreDamagedError(f"{file.path} is cut short; run 'engine check'")
    file.size = HEADER_BYTES + size


def _named(store: Path, found: Manifest) -> Iterator[str]:
    for family, numbers in found.extents.items():
        for number in numbers:
            yield extent_name(family, number)
    yield from map(str, sorted(found.index_files(Path())))
    for space in found.spaces:
        if encoder := space.encoder:
            model = encoder.file
            folder = file_names.encoder_folder(model, encoder.generation)
            yield model
            for entry in nofollow.entries(store, folder):
                name = f"{folder}/{entry.name}"
                if name != model and not entry.is_folder and not entry.name.startswith("."):
                    yield name
