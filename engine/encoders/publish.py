"""Fills a folder under another name and renames it when it is finished, safe beside other processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import EncoderError

_WAIT = 0.2  # seconds between two tries for the lock of another process


@contextmanager
def published(
    target: Path, is_good: Callable[[Path], bool], *, replaces: bool = False
) -> Iterator[Path | None]:
    """An empty folder to fill, which becomes ``target`` at the end of the block, after an fsync.

    It is None if there is a good ``target``, perhaps from another process that this one waited for. A
    ``target`` that is not good is removed if the block ``replaces`` it; else it must be empty, and
    nothing in it is lost. After an error the folder is removed, and one that a killed process left is
    emptied. ``EncoderError`` if the disk refuses.
    """
    staging = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(staging)
    except OSError as error:
        raise EncoderError(f"{staging} cannot be made: {error.strerror}") from None
    try:
        if target.exists() and is_good(target):
            shutil.rmtree(staging, ignore_errors=True)
            yield None
            return
        try:
            _empty(staging)
            yield staging
            _sync(staging)
            if replaces and target.exists():
                shutil.rmtree(target)
            # A folder that is not empty refuses.
            staging.rename(target)
            _sync_folder(target.parent)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise EncoderError(
                f"{target} cannot be written: {error.strerror or error}; free some space, or name "
                f"another folder"
            ) from None
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _locked(staging: Path) -> int:
    """A descriptor of the folder, which this process has locked; waits for the one that has it."""
    while True:
        staging.mkdir(exist_ok=True)
        lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The other process may have renamed or removed the folder that was opened.
            if os.path.samestat(os.fstat(lock), staging.stat()):
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        time.sleep(_WAIT)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
