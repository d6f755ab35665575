"""A new folder is whole or not there, whoever else makes it at the same time."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import EngineError
from engine.storage import lock
from engine.storage.disk import Disk, using
from engine.storage.staging import made_aside

PARTS = {"without its lock": ("a", "b"), "with its lock": (lock.NAME, "a", "b")}


def fill(made: Path) -> None:
    for name in ("a", "b"):
        (made / name).write_text(name)


class Beside(Disk):
    """A disk that calls ``other`` before each sync or rename, and leaves the calls of that alone."""

    def __init__(self, other: Callable[[], None]) -> None:
        self.calls = 0
        self._other = other
        self._inside = False

    def _call(self) -> None:
        if not self._inside:
            self._inside = True
            self._other()
            self.calls += 1
            self._inside = False

    def fsync(self, fd: int) -> None:
        self._call()
        super().fsync(fd)

    def rename(
        self,
        path: str | os.PathLike[str],
        new: str | os.PathLike[str],
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        super().rename(path, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self._call()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_two_that_make_the_same_do_not_take_each_other_for_leftovers(
    tmp_path: Path, parts: tuple[str, ...], there: bool
) -> None:
    dest = tmp_path / "out"
    if there:
        dest.mkdir()

    def other() -> None:
        with (
            pytest.raises(EngineError, match=r"another process is making|not empty"),
            made_aside(dest, "export", parts),
        ):
            raise AssertionError("it is being made")

    beside = Beside(other)
    with contextlib.ExitStack() as making:
        fill(making.enter_context(made_aside(dest, "export", parts)))
        with using(beside):
            making.close()
    assert beside.calls > 2
    assert sorted(path.name for path in dest.iterdir()) == sorted(parts)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_whoever_asks_for_the_lock_does_not_leave_the_folder_without(tmp_path: Path) -> None:
    """Another making looks at the new folder when it has its file of the lock, and not the lock."""

    class Asking(Disk):
        fd: int | None = None

        def open(
            self,
            path: str | os.PathLike[str],
            flags: int,
            mode: int = 0o666,
            *,
            dir_fd: int | None = None,
        ) -> int:
            opened = super().open(path, flags, mode, dir_fd=dir_fd)
            if self.fd is None and path == lock.NAME:
                self.fd = super().open(path, os.O_RDONLY, dir_fd=dir_fd)
                fcntl.flock(self.fd, fcntl.LOCK_SH)
                threading.Timer(0.03, os.close, [self.fd]).start()
            return opened

    with using(Asking()), made_aside(tmp_path / "out", "export", ("a", "b")) as made:
        assert lock.WriterLock(made).busy()
        fill(made)
