"""Extents: append-only files of kept pixels, fingerprints, vectors and their ids.

Each is a 4 KiB header and then data. A *log* extent holds blobs of any length, a *row* extent rows
of one length, at most ``Limits.extent_rows`` of them. How much of an extent is committed is not in
the extent: the keys say, in the same batch that commits the rest of the chunk. Appends use
``pwrite``, never a map, because a full disk is an error from ``pwrite`` and a SIGBUS from a map.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import Limits
from engine.errors import StoreDamagedError, StoreError
from engine.images import hashing
from engine.records import Buffer, Place
from engine.storage import nofollow
from engine.storage.durable import cannot_read, fsync_dir, is_in_the_way, write_all

HEADER_BYTES = 4096
_DROP_BYTES = 1 << 20  # an append of fewer is left in the page cache: somebody may want it at once
_ZEROS = bytes(64 << 10)
_AHEAD = 128 << 10  # bytes: Linux fetches no more at a time
_LARGE = 16 << 20  # bytes of a place: of more it is asked first whether they are there
_HEADER = struct.Struct(">8s16sIII32s")  # magic, store uuid, version, number, row bytes, family
_MAGIC = b"ENGEXT01"


class MovedError(StoreError):
    """What a reader looks for lies elsewhere since a newer commit, which it has to go over to."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of extent: the folder its files lie in, their suffix, and bytes a row (0: a log)."""

    folder: str
    suffix: str
    row_bytes: int

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        return f"{self.folder}{self.suffix}"

    @property
    def streamed(self) -> bool:
        """Whether it is written by the gigabyte and read again piece by piece, if at all."""
        return not self.row_bytes

    def inside(self, number: int) -> str:
        """What extent ``number`` is called beneath a store."""
        return f"{self.folder}/{number:08d}{self.suffix}"

    def path(self, store: Path, number: int) -> Path:
        """Where extent ``number`` lies."""
        return store / self.inside(number)


PIXELS = Family("pixels", ".blobs", 0)
FINGERPRINTS = Family("fingerprints", ".pdq", 32)


def vectors(generation: int, dim: int) -> Family:
    """The vectors of an encoder generation: float32, ``dim`` a row."""
    return Family(f"vectors/{generation}", ".f32", 4 * dim)


def vector_ids(generation: int) -> Family:
    """The image id of each row of ``vectors``: int64."""
    return Family(f"vectors/{generation}", ".ids", 8)


@dataclass(frozen=True, slots=True)
class Append:
    """What one append wrote: the commit record keeps it, so that ``check`` can read it again."""

    family: str
    extent: int
    offset: int  # in data bytes, behind the header
    length: int
    xxh64: int


def first_row(committed: Iterable[Sequence[int]], family: Family, place: Place) -> int:
    """Of all rows of a family, the one that begins at ``place``; 0 for logs, which have none.

    ``committed``: the number and the data bytes of each extent, as a state has them.
    """
    if not family.row_bytes:
        return 0
    before = sum(size for number, size in committed if number < place.extent)
    return (before + place.offset) // family.row_bytes


def create(store: Path, family: Family, number: int, uuid: bytes) -> None:
    """A new, empty extent; durable, name included, when this returns."""
    # A file of this name that the manifest does not know is what a crash left behind.
    _make_folders(store, family)
    _put_header(store, family, number, uuid, nofollow.create_file(store, family.inside(number)))


def _put_header(
    store: Path,
    family: Family,
    number: int,
    uuid: bytes,
    fd: int,
) -> None:
    """Write the header of extent ``number`` to its file, and close that."""
    header = _HEADER.pack(
        _MAGIC,
        uuid,
        1,
        number,
        family.row_bytes,
        family.name.encode(),
    )
    header += struct.pack(">Q", hashing.checksum(header))
    try:
        write_all(fd, header.ljust(HEADER_BYTES, b"\0"), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    fsync_dir(store / family.folder)


def _make_folders(store: Path, family: Family) -> None:
    parts = family.folder.split("/")
    new = [nofollow.make_folder(store, "/".join(parts[:n])) for n in range(1, len(parts) + 1)]
    if any(new):
        fsync_dir((store / family.folder).parent)
        fsync_dir(store)


def adopt(made: Path, store: Path, family: Family, number: int, uuid: bytes) -> None:
    """Move extent 0 out of the folder ``made`` into the store, as ``number``; durable."""
    fd = nofollow.open_file(made, family.inside(0), os.O_WRONLY)
    _put_header(made, family, number, uuid, fd)
    _make_folders(store, family)
    nofollow.rename(made, family.inside(0), store, family.inside(number))
    fsync_dir(store / family.folder)


def restore(store: Path, family: Family, number: int, uuid: bytes, end: int) -> None:
    """Give an extent back what it lacks of its header and its ``end`` data bytes, these as zeros.

    What there is of its data stays where it is at every moment: it may be all that is left.
    """
    name = family.inside(number)
    if header_problem(store, family, number, uuid):
        _make_folders(store, family)
        fd = nofollow.open_file(store, name, os.O_WRONLY | os.O_CREAT)
        _put_header(store, family, number, uuid, fd)
    if (nofollow.size(store, name) or 0) < HEADER_BYTES + end:
        fd = nofollow.open_file(store, name, os.O_WRONLY)
        try:
            os.ftruncate(fd, HEADER_BYTES + end)
            os.fsync(fd)
        finally:
            os.close(fd)


def cut(store: Path, family: Family, number: int, end: int) -> None:
    """Cut what an extent has behind its ``end`` data bytes, if it is there and has more."""
    name = family.inside(number)
    if (nofollow.size(store, name) or 0) > HEADER_BYTES + end:
        fd = nofollow.open_file(store, name, os.O_WRONLY)
        try:
            os.ftruncate(fd, HEADER_BYTES + end)
        finally:
            os.close(fd)


def overwrite(store: Path, family: Family, place: Place, data: Buffer) -> None:
    """Write over damaged bytes, durably; for repairs only."""
    fd = nofollow.open_file(store, family.inside(place.extent), os.O_WRONLY)
    try:
        write_all(fd, data, HEADER_BYTES + place.offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def header_problem(store: Path, family: Family, number: int, uuid: bytes) -> str | None:
    """What is wrong with an extent's header, or None."""
    try:
        head = nofollow.read_file(store, family.inside(number), HEADER_BYTES)
    except OSError as error:
        if is_in_the_way(error):
            raise cannot_read(family.path(store, number), error) from None
        return f"cannot be read: {error.strerror}"
    if len(head) < HEADER_BYTES:
        return "its header is cut short"
    body, check = head[: _HEADER.size], head[_HEADER.size : _HEADER.size + 8]
    if int.from_bytes(check, "big") != hashing.checksum(body):
        return "its header is damaged"
    magic, owner, version, own_number, row_bytes, name = _HEADER.unpack(body)
    if (magic, version, own_number, row_bytes) != (_MAGIC, 1, number, family.row_bytes):
        return "its header is another extent's"
    if owner != uuid or name.rstrip(b"\0") != family.name.encode():
        return "it belongs to another store"
    return None


class ExtentReader:
    """Reads committed bytes of one family with ``pread``, or rows of it through a read-only map."""

    def __init__(
        self,
        store: Path,
        family: Family,
        behind: Callable[[], bool] = lambda: False,
        *,
        scattered: bool = False,
    ) -> None:
        """``behind`` tells whether the store has gone on since: then a file may rightly be gone.

        ``scattered``: rows are read here and there, so that nothing is read ahead through the map.
        """
        self._store = store
        self._scattered = scattered
        self.family = family
        self._behind = behind
        self._fds: dict[int, int] = {}
        self._maps: dict[int, npt.NDArray[Any]] = {}
        self._opened: dict[int, mmap.mmap] = {}

    def read(self, place: Place) -> bytes:
        """The bytes at ``place``; ``StoreDamagedError`` if the file is gone or too short."""
        fd = self._fds.get(place.extent)
        if fd is None:
            fd = self._open(place.extent)
        try:
            if place.length > _LARGE:
                self._require(fd, place)
            data = os.pread(fd, place.length, HEADER_BYTES + place.offset)
        except OSError as error:
            raise cannot_read(self.family.path(self._store, place.extent), error) from None
        except (ValueError, OverflowError, MemoryError):
            path = self.family.path(self._store, place.extent)
            raise StoreDamagedError(
                f"{path} cannot be read: no such place in it ({place}); run 'engine check'"
            ) from None
        if len(data) != place.length:
            path = self.family.path(self._store, place.extent)
            raise StoreDamagedError(f"{path} is cut short; run 'engine check'")
        return data

    def _require(self, fd: int, place: Place) -> None:
        """``OSError`` where a place is not in the file: no memory is taken for it then."""
        if os.fstat(fd).st_size < HEADER_BYTES + place.offset + place.length:
            raise OSError(errno.EINVAL, "it is cut short")

    def equal(
        self,
        extents: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        wanted: Sequence[npt.NDArray[np.uint8]],
    ) -> list[bool]:
        """Whether what lies at each place begins with ``wanted``; ``StoreDamagedError`` as ``read``.

        What is in memory is compared at once; the rest is asked for all together, so that the disk
        has a queue to work on, and then waited for.
        """
        same = [False] * len(wanted)
        cold: list[tuple[int, int, int]] = []
        scratch = bytearray()  # stays in the processor's cache, and compares by memcmp
        into = (scratch,)
        now = getattr(os, "RWF_NOWAIT", 0)  # Linux
        places = zip(extents.tolist(), offsets.tolist(), wanted, strict=True)
        for i, (extent, offset, data) in enumerate(places):
            fd = self._fds.get(extent)
            if fd is None:
                fd = self._open(extent)
            if len(data) != len(scratch):
                scratch = bytearray(len(data))
                into = (scratch,)
            try:
                if os.preadv(fd, into, HEADER_BYTES + offset, now) == len(data):
                    same[i] = scratch == data
                    continue
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    now = 0
            cold.append((extent, offset, i))
        cold.sort()
        self.announce([Place(extent, offset, len(wanted[i])) for extent, offset, i in cold])
        for extent, offset, i in cold:
            same[i] = self.read(Place(extent, offset, len(wanted[i]))) == wanted[i].tobytes()
        return same

    def announce(self, places: Iterable[Place]) -> None:
        """Tell the kernel what is read next, so that the disk has a queue to work on."""
        if hasattr(os, "posix_fadvise"):
            for extent, offset, length in places:
                fd = self._fds.get(extent)
                if fd is None:
                    fd = self._open(extent)
                start = HEADER_BYTES + offset
                end = start + length
                if length > _LARGE:
                    end = min(end, os.fstat(fd).st_size)
                for at in range(start, end, _AHEAD):
                    size = min(_AHEAD, end - at)
                    with contextlib.suppress(OSError, OverflowError):  # whoever reads it says so
                        os.posix_fadvise(fd, at, size, os.POSIX_FADV_WILLNEED)

    def written(self, number: int, size: int) -> Iterator[tuple[int, int]]:
        """Of the first ``size`` data bytes of an extent those in no hole: start and end of each.

        A hole reads as zeros; not all zeros are in holes.
        """
        fd = self._fds.get(number)
        if fd is None:
            fd = self._open(number)
        at, end = HEADER_BYTES, HEADER_BYTES + size
        while at < end:
            start, stop = at, end
            try:
                if hasattr(os, "SEEK_DATA"):
                    start = os.lseek(fd, at, os.SEEK_DATA)
                    stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
            if start < end:
                yield start - HEADER_BYTES, stop - HEADER_BYTES
            at = stop

    def _open(self, extent: int) -> int:
        path = self.family.path(self._store, extent)
        try:
            fd = nofollow.open_file(self._store, self.family.inside(extent))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._behind():
                raise MovedError(f"{path} was rewritten; ask again") from None
            raise cannot_read(path, error) from None
        if hasattr(os, "posix_fadvise"):
            # Neighbours of a blob that is asked for are not what is asked for next.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        if self._fds.setdefault(extent, fd) != fd:  # another thread was faster
            os.close(fd)
        return self._fds[extent]

    def rows(self, number: int, rows: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The first ``rows`` rows of extent ``number``, mapped: (rows, row_bytes / itemsize)."""
        item = np.dtype(dtype)
        width = self.family.row_bytes // item.itemsize
        mapped = self._maps.get(number)
        if mapped is None or len(mapped) < rows:
            path = self.family.path(self._store, number)
            try:
                fd = nofollow.open_file(self._store, self.family.inside(number))
                try:
                    length = HEADER_BYTES + rows * self.family.row_bytes
                    opened = mmap.mmap(fd, length, access=mmap.ACCESS_READ)
                finally:
                    os.close(fd)
            except (OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and self._behind():
                    raise MovedError(f"{path} was rewritten; ask again") from None
                if isinstance(error, OSError):
                    raise cannot_read(path, error, "is gone or cut short") from None
                raise StoreDamagedError(
                    f"{path} is gone or cut short ({error}); run 'engine check'"
                ) from None
            if self._scattered and hasattr(mmap, "MADV_RANDOM"):
                opened.madvise(mmap.MADV_RANDOM)
            mapped = np.frombuffer(opened, item, rows * width, HEADER_BYTES).reshape(rows, width)
            self._maps[number], self._opened[number] = mapped, opened
        return mapped[:rows]

    def let_go(self) -> None:
        """Take all mapped pages out of this process; views stay good, and the page cache has them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for opened in list(self._opened.values()):
                opened.madvise(mmap.MADV_DONTNEED)

    def ask_for(self, number: int, spans: Iterable[tuple[int, int]]) -> None:
        """Tell the kernel of spans of the file, (start, end) in bytes, that are read next."""
        if hasattr(os, "posix_fadvise"):
            fd = self._fds.get(number)
            if fd is None:
                fd = self._open(number)
            for start, end in spans:
                os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Give the file descriptors and maps back."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._maps.clear()
        self._opened.clear()


class ExtentWriter:
    """Appends to the newest extent of one family; the caller names new extents in the manifest.

    ``put`` only says where data will lie, so that the rows that name the place can be made while
    ``flush`` writes and syncs it.
    """

    def __init__(
        self,
        store: Path,
        family: Family,
        last: int,
        committed: int,
        limits: Limits | None = None,
    ) -> None:
        """``last`` is the newest extent's number (0: none yet), ``committed`` its data bytes."""
        self._store = store
        self.family = family
        limits = limits or Limits()
        # Data bytes after which a new extent is begun: exact for rows, a soft limit for logs.
        self._capacity = limits.extent_rows * family.row_bytes or limits.extent_bytes
        self.number = last
        self.end = committed
        self._waiting: list[Buffer] = []
        self._zeros = 0
        self._fd: int | None = None

    @property
    def full(self) -> bool:
        """Whether the next append needs a new extent first."""
        return self.number == 0 or self.end >= self._capacity

    @property
    def room(self) -> int:
        """Data bytes that still fit (rows only; a log takes any blob until it is full)."""
        return self._capacity - self.end

    def begin(self, number: int) -> None:
        """Go on in a new extent, which exists and is named by the manifest."""
        assert not self._waiting  # flushed before
        assert not self._zeros
        self.close()
        self.number, self.end = number, 0

    def put(self, data: Buffer) -> Place:
        """Append contiguous ``data``, which must not change until it is flushed; where it will lie."""
        assert not self._zeros
        place = Place(self.number, self.end, memoryview(data).nbytes)
        self._waiting.append(data)
        self.end += place.length
        return place

    def put_zeros(self, length: int) -> None:
        """Append zeros, which take no room on the disk; nothing else until they are flushed."""
        assert not self._waiting
        self._zeros += length
        self.end += length

    def flush(self) -> Append | None:
        """Write what was put and make it durable (contents and length); what was written, if any."""
        if self._zeros:
            return self._flush_zeros()
        if not self._waiting:
            return None
        data = b"".join(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        view = memoryview(data).cast("B")
        self._waiting.clear()
        start = self.end - len(view)
        self._fd = self._open()
        write_all(self._fd, view, HEADER_BYTES + start)
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(self._fd)
        if self.family.streamed and len(view) >= _DROP_BYTES and hasattr(os, "posix_fadvise"):
            # Millions of images that stream through would push everything else out of the page
            # cache; and on virtual machines a page that was never used costs ten times a used one.
            os.posix_fadvise(self._fd, HEADER_BYTES + start, len(view), os.POSIX_FADV_DONTNEED)
        return Append(self.family.name, self.number, start, len(view), hashing.checksum(view))

    def _flush_zeros(self) -> Append:
        """Lengthen the file, whose end is that of what was committed before: zeros are what is read."""
        length, self._zeros = self._zeros, 0
        self._fd = self._open()
        os.ftruncate(self._fd, HEADER_BYTES + self.end)
        os.fsync(self._fd)
        check = hashing.Checksum()
        for at in range(0, length, len(_ZEROS)):
            check.update(memoryview(_ZEROS)[: length - at])
        start = self.end - length
        return Append(self.family.name, self.number, start, length, check.value)

    def _open(self) -> int:
        if self._fd is None:
            name = self.family.inside(self.number)
            self._fd = nofollow.open_file(self._store, name, os.O_WRONLY)
        return self._fd

    def close(self) -> None:
        """Give the file descriptor back; what was put and not flushed is forgotten."""
        self._waiting.clear()
        self._zeros = 0
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
