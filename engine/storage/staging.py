"""Makes a new folder that appears whole or not at all: it is staged, synced, and moved into place.

If the place is free, the folder is made next to it, as ``.NAME.KIND-XXXXXXXX.new``, and renamed. An
existing empty folder is filled rather than replaced, since it may be a mount point or a process's
working directory. Then the new folder is made inside it, and its parts are moved out. The last part
moved is the one that makes the others valid. The next process that makes the same thing deletes the
leftovers of a killed one; a living process holds a lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import StoreError, StoreLockedError, UsageError
from engine.storage import file_names, lock, nofollow
from engine.storage.disk import disk
from engine.storage.durable import fsync_dir, fsync_file, make_folders
from engine.storage.lock import WriterLock

_log = logging.getLogger("engine.storage")
_MADE, _BEGUN = ".new", ".begun"
_TRIES = 100


@contextlib.contextmanager
def made_aside(dest: Path, kind: str, parts: Sequence[str]) -> Iterator[Path]:
    """Yield a folder to put files into. After the block it is durable and at ``dest``.

    ``kind`` says what is made. ``parts`` are the names that the folder may hold, in the order in which
    they appear at ``dest``. If the block raises, nothing is left at ``dest``. Raises ``UsageError`` if
    something is there, ``StoreError`` if another process is making it, and ``OSError``.
    """
    place = dest.resolve()
    check_place(dest, kind, parts)
    filling = place.exists()
    folder = place if filling else place.parent
    if not filling:
        make_folders(folder)
    _remove_leftovers(place, folder, kind, parts, filling=filling)
    made, mine = _begin(place, folder, kind)
    moved: list[Path] = []
    try:
        yield made
        if lock.NAME in parts:
            # Open the existing file: it is the one that is locked.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.close(nofollow.open_lock(made, lock.NAME, flags))
        _sync(made)
        if filling:
            # Make the mark of an unfinished creation durable before any part is moved in.
            fsync_dir(folder)
            for name in parts:
                if (made / name).exists():
                    if name == parts[-1]:
                        fsync_dir(folder)
                    disk().rename(made / name, place / name)
                    moved.append(place / name)
        else:
            if lock.NAME not in parts:
                # Last of all, because a folder without it counts as a leftover.
                nofollow.remove(made, lock.NAME)
            disk().rename(made, place)
            fsync_dir(place)
        fsync_dir(folder)
        moved.clear()
    finally:
        # A process forked in between must not clean up.
        if not mine.abandoned:
            for path in reversed(moved):
                _remove(place, path.name)
            nofollow.discard(folder, made.name, _ours(parts))
        mine.release()


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[Path]:
    """Yield a new locked folder in ``folder``, which no process takes for a leftover; then delete it."""
    made, mine = _begin(folder / name, folder, "build")
    try:
        yield made
    finally:
        if not mine.abandoned:
            nofollow.discard(folder, made.name, file_names.MADE)
        mine.release()


def _begin(place: Path, folder: Path, kind: str) -> tuple[Path, WriterLock]:
    """Make the new folder and lock it before it gets its name; return both.

    Until it is locked, another process may take it for a leftover and delete it. Then this starts over.
    """
    for _ in range(_TRIES):
        begun = folder / f".{place.name}.{kind}-{uuid.uuid4().hex[:8]}{_BEGUN}"
        disk().mkdir(begun)
        mine = WriterLock(begun)
        try:
            _lock(mine)
            made = begun.with_suffix(_MADE)
            disk().rename(begun, made)
        except (FileNotFoundError, StoreLockedError):
            mine.release()
            nofollow.discard(folder, begun.name, file_names.MADE)
        except BaseException:
            mine.release()
            nofollow.discard(folder, begun.name, file_names.MADE)
            raise
        else:
            return made, mine
    raise StoreError(f"other processes are making {place}: wait for them or end them")


def _lock(mine: WriterLock) -> None:
    """Take the lock of a new folder; on a file system without locks, do without."""
    try:
        mine.acquire()
    except StoreLockedError:
        raise
    except StoreError as error:
        _log.debug("%s", error)


def check_place(dest: Path, kind: str, parts: Sequence[str]) -> None:
    """Raise ``UsageError`` unless ``dest`` is free, an empty folder, or an unfinished creation."""
    place = dest.resolve()
    if not place.exists():
        return
    if not place.is_dir():
        raise UsageError(f"{dest} is a file: name a new or empty folder")
    marks = _leftovers(place, place, kind)
    there = {entry.name for entry in place.iterdir()} - {mark.name for mark in marks}
    # The last part moves after all others. While it is still staged, the others may be in place.
    if any((mark / parts[-1]).exists() for mark in marks):
        there -= set(parts[:-1])
    if there:
        raise UsageError(f"{dest} is not empty: name a new or empty folder")


def _remove_leftovers(
    place: Path, folder: Path, kind: str, parts: Sequence[str], *, filling: bool
) -> None:
    """Delete what killed processes left. In an existing folder, delete parts first, then their marks."""
    marks = _leftovers(place, folder, kind)
    # The lock may already have been moved into place.
    locks = [*marks, place] if marks and filling and lock.NAME in parts else marks
    if any(WriterLock(one).busy() for one in locks):
        raise StoreError(f"another process is making {place}: wait for it or end it")
    if marks:
        moved = filling and any(mark.suffix == _MADE for mark in marks)
        for name in parts if moved else ():
            _remove(folder, name)
        for mark in marks:
            nofollow.discard(folder, mark.name, _ours(parts))
        fsync_dir(folder)


def _leftovers(place: Path, folder: Path, kind: str) -> list[Path]:
    name = re.compile(
        rf"\.{re.escape(place.name)}\.{kind}-[0-9a-f]{{8}}({_MADE}|{_BEGUN})", re.DOTALL
    )
    found: list[Path] = []
    # A process may be allowed to create entries in a folder that it may not list.
    with contextlib.suppress(PermissionError):
        found = [entry for entry in folder.iterdir() if name.fullmatch(entry.name)]
    return [entry for entry in found if entry.is_dir() and not entry.is_symlink()]


def _remove(folder: Path, part: str) -> None:
    """Delete a part that was moved into place: a file, or a folder of our files."""
    there = next((entry for entry in nofollow.entries(folder) if entry.name == part), None)
    if there is not None and there.is_folder:
        nofollow.discard(folder, part, file_names.MADE, called=f"{part}/")
    elif there is not None:
        nofollow.remove(folder, part)


def _ours(parts: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of the paths that may lie in a folder that these parts are made in."""
    return re.compile("|".join([file_names.MADE.pattern, *map(re.escape, parts)]))


def _sync(folder: Path) -> None:
    """Make a folder and everything in it durable."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_file(Path(path), name)
        fsync_dir(Path(path))
