"""A new folder that is whole or not there: it is staged, synced, and then put in its place.

Where there is nothing, it is made beside its place, as ``.NAME.KIND-XXXXXXXX.new``, and renamed. An
empty folder that is there is filled and not replaced, since it may be a mount, or where somebody
stands: the new one is made inside of it and its parts are moved out, last the one without which the
others are nothing. What a killed process left behind is removed by the next that makes the same; what
a living one makes is locked.
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
    """The folder to put files into; when the block ends, all of it is durable, and at ``dest``.

    ``kind`` says what is made, ``parts`` are the names that the folder may have in it, in the order
    in which they are to appear. Where the block raises, nothing is left at ``dest``. Raises
    ``UsageError`` if something is there, ``StoreError`` if another process makes it, ``OSError``.
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
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC  # the same file: it is locked
            os.close(nofollow.open_lock(made, lock.NAME, flags))
        _sync(made)
        if filling:
            fsync_dir(
                folder
            )  # the mark of an unfinished making, before there are parts to be marked
            for name in parts:
                if (made / name).exists():
                    if name == parts[-1]:
                        fsync_dir(folder)
                    disk().rename(made / name, place / name)
                    moved.append(place / name)
        else:
            if lock.NAME not in parts:
                # Last of all: without it the folder passes for left behind.
                nofollow.remove(made, lock.NAME)
            disk().rename(made, place)
            fsync_dir(place)
        fsync_dir(folder)
        moved.clear()
    finally:
        if not mine.abandoned:  # by a process that was forked while this went on
            for path in reversed(moved):
                _remove(place, path.name)
            nofollow.discard(folder, made.name, _ours(parts))
        mine.release()


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[Path]:
    """A new folder in ``folder`` that nobody takes for left behind; gone when the block ends."""
    made, mine = _begin(folder / name, folder, "build")
    try:
        yield made
    finally:
        if not mine.abandoned:
            nofollow.discard(folder, made.name, file_names.MADE)
        mine.release()


def _begin(place: Path, folder: Path, kind: str) -> tuple[Path, WriterLock]:
    """The new folder, and its lock, which it has before it has its name.

    Before that, another process may take it for left behind and remove it: then it is begun again.
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
    """Take the lock of a new folder; on a file system without locks, go on without."""
    try:
        mine.acquire()
    except StoreLockedError:
        raise
    except StoreError as error:
        _log.debug("%s", error)


def check_place(dest: Path, kind: str, parts: Sequence[str]) -> None:
    """``UsageError`` if ``dest`` is anything but nothing, an empty folder or an unfinished making."""
    place = dest.resolve()
    if not place.exists():
        return
    if not place.is_dir():
        raise UsageError(f"{dest} is a file: name a new or empty folder")
    marks = _leftovers(place, place, kind)
    there = {entry.name for entry in place.iterdir()} - {mark.name for mark in marks}
    # The last part is moved when all others are: as long as it is staged, the others may be here.
    if any((mark / parts[-1]).exists() for mark in marks):
        there -= set(parts[:-1])
    if there:
        raise UsageError(f"{dest} is not empty: name a new or empty folder")


def _remove_leftovers(
    place: Path, folder: Path, kind: str, parts: Sequence[str], *, filling: bool
) -> None:
    """Remove what killed processes left: where it is filled, parts first, then what marks them."""
    marks = _leftovers(place, folder, kind)
    # The lock may have been moved to its place already.
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
    with contextlib.suppress(PermissionError):  # one may make a folder where one may not look
        found = [entry for entry in folder.iterdir() if name.fullmatch(entry.name)]
    return [entry for entry in found if entry.is_dir() and not entry.is_symlink()]


def _remove(folder: Path, part: str) -> None:
    """Remove a part that was put in its place: a file, or a folder of files of ours."""
    there = next((entry for entry in nofollow.entries(folder) if entry.name == part), None)
    if there is not None and there.is_folder:
        nofollow.discard(folder, part, file_names.MADE, called=f"{part}/")
    elif there is not None:
        nofollow.remove(folder, part)


def _ours(parts: Sequence[str]) -> re.Pattern[str]:
    """What may lie in a folder that these parts are made in."""
    return re.compile("|".join([file_names.MADE.pattern, *map(re.escape, parts)]))


def _sync(folder: Path) -> None:
    """Make a folder and everything in it durable."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_file(Path(path), name)
        fsync_dir(Path(path))
