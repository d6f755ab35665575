"""Reads images of a store again and turns them into inputs of an encoder.

    kept pixels → rows of arrays → members of archives → files

Each container is read once, from its beginning to its end, however many of its images are wanted. What
is read counts only as the image whose key and proof it has. So a changed source is no harm.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine.errors import ImageError, SourceError, StoreDamagedError, UsageError
from engine.images import canonical, decode, hashing
from engine.images.preprocessing import Preprocessing
from engine.maintenance.reembed.survey import id_batches, kept_images
from engine.memory import MemoryGate
from engine.records import Kind, Pixels
from engine.sources import files, in_memory
from engine.sources.items import ArrayItem, FileItem, Member, RowBlock, VectorItem
from engine.sources.locate import archive_of
from engine.sources.named_arrays import array_named
from engine.sources.synthetic import PREFIX, SyntheticBits
from engine.storage.bitmap import IdSet
from engine.storage.extent_reader import MovedError
from engine.storage.image_rows import ImageRow
from engine.storage.record_rows import RecordRow
from engine.storage.session import Session
from engine.storage.source_rows import ArrayRow
from engine.storage.table import in_batches

_BATCH = 256
_GAP = 1 << 16  # rows of an array that are read and not wanted, rather than opening it again
_AHEAD = 4  # tasks waiting for each worker
# A source is gone, cut short, or something else now.
_UNREADABLE = (SourceError, ImageError, UsageError, OSError)

Picture = npt.NDArray[np.uint8]
Found = tuple[int, Picture]  # an image and its input
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that was read: its hashes, and its input."""

    key: bytes
    proof: bytes
    picture: Picture


class StoredPictures:
    """The inputs of the images ``left``, each once; what was yielded is taken out of ``left``.

    ``moved`` is set if a newer commit has moved kept pixels, so that another try may find them.
    """

    def __init__(
        self,
        store: Session,
        preprocessing: Preprocessing,
        left: IdSet,
        *,
        max_decoding: int,
        workers: int,
        go_on: Callable[[], None],
    ) -> None:
        """``max_decoding``: bytes for all images that are decoded at a time, and so for the largest one.

        ``go_on`` is called often; an exception from it ends the reading.
        """
        self.left = left
        self.moved = False
        self._store = store
        self._snapshot = store.snapshot
        self._preprocessing = preprocessing
        self._workers = workers
        self._go_on = go_on
        self._most = max_decoding
        self._decoding = MemoryGate(self._most)
        self._reading = MemoryGate(store.memory.reading)

    def __iter__(self) -> Iterator[Found]:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="engine-reembed")
        try:
            for part in (self._kept, self._rows, self._members, self._files):
                if not len(self.left):
                    return
                for id_, picture in part(pool):
                    self.left.discard(np.array([id_]))
                    yield id_, picture
        finally:
            # Do not wait for an image that nobody uses.
            pool.shutdown(wait=False, cancel_futures=True)

    def _in_order(
        self, pool: ThreadPoolExecutor, read: Callable[[T], _Read | None], items: Iterable[T]
    ) -> Iterator[tuple[T, _Read | None]]:
        """What the workers read of each item, in order, a few items ahead."""
        waiting: deque[tuple[T, Future[_Read | None]]] = deque()
        size = 0  # bytes of members in memory
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            size += _bytes_of(item)
            while waiting and (
                len(waiting) >= _AHEAD * self._workers or size > self._store.memory.block // 2
            ):
                self._go_on()
                first, future = waiting.popleft()
                yield first, future.result()
                size -= _bytes_of(first)
        for item, future in waiting:
            self._go_on()
            yield item, future.result()

    # --- kept pixels ------------------------------------------------------------------------------

    def _kept(self, pool: ThreadPoolExecutor) -> Iterator[Found]:
        def images() -> Iterator[tuple[int, RecordRow, ImageRow]]:
            for ids in id_batches(self.left, _BATCH):
                yield from (one for one in kept_images(self._snapshot, ids) if one[2].place)

        for (id_, _, row), found in self._in_order(pool, self._read_kept, images()):
            if found is not None and found.proof == row.proof:
                yield id_, found.picture

    def _read_kept(self, image: tuple[int, RecordRow, ImageRow]) -> _Read | None:
        _, record, row = image
        assert row.place is not None
        try:
            data = self._snapshot.kept(row.place)
            if not row.canonical:
                same = hashing.file_hash(data) == record.file_hash
                return self._decoded(data) if same else None
            return (
                self._of(canonical.from_canonical(data))
                if hashing.proof(data) == row.proof
                else None
            )
        except MovedError:
            self.moved = True
        except (StoreDamagedError, ImageError, MemoryError):
            pass
        return None

    # --- rows of arrays ---------------------------------------------------------------------------

    def _rows(self, pool: ThreadPoolExecutor) -> Iterator[Found]:
        for name, array in self._snapshot.tables.arrays.arrays():
            self._go_on()
            if array.kind is Kind.VECTOR or name.startswith(in_memory.PREFIX.encode()):
                continue
            item: ArrayItem | None = None
            for start, end in self._spans(array.number):
                try:
                    item = item or _open_array(name, array)
                    if item is None or item.row_bytes > self._store.memory.chunk:
                        break
                    yield from self._rows_between(pool, item, array.number, start, end)
                except _UNREADABLE:
                    break

    def _spans(self, number: int) -> Iterator[tuple[int, int]]:
        """Rows of an array, [start, end), that are wanted images but for short gaps."""
        start = end = -1
        for run in self._snapshot.tables.runs.of_array(number):
            if not self._are_wanted(run.id, run.count if run.step else 1):
                continue
            if start >= 0 and run.row > end + _GAP:
                yield start, end
                start = -1
            start = run.row if start < 0 else start
            end = run.row + (run.count if run.step else 1)
        if start >= 0:
            yield start, end

    def _are_wanted(self, first: int, count: int) -> bool:
        return bool(self.left.has(np.arange(first, first + count)).any())

    def _rows_between(
        self, pool: ThreadPoolExecutor, item: ArrayItem, number: int, start: int, end: int
    ) -> Iterator[Found]:
        for block in item.blocks(start, _BATCH, self._store.memory.block):
            self._go_on()
            rows = self._wanted_rows(block, number, end)
            keys = hashing.keys(rows, self._snapshot.settings.hash_seed)
            wanted: list[tuple[int, npt.NDArray[np.uint8]]] = []
            for row, candidates in zip(rows, self._snapshot.images_of(keys), strict=True):
                proof = hashing.proof(row.data) if candidates else b""
                wanted += [(one.id, row) for one in candidates if one.proof == proof]
            # Rows may be equal.
            some = {id_: row for id_, row in wanted if id_ in self.left}
            made = pool.map(self._of_row, some.values())
            yield from zip(some, made, strict=True)
            if block.first + len(block.rows) >= end:
                return

    def _wanted_rows(self, block: RowBlock, number: int, end: int) -> list[npt.NDArray[np.uint8]]:
        """The rows of a block, before row ``end``, that were wanted images when they were ingested."""
        stop = min(end, block.first + len(block.rows))
        runs = self._snapshot.tables.runs
        before = runs.over_row(number, block.first)
        rows: list[npt.NDArray[np.uint8]] = []
        for run in [*([before] if before else []), *runs.of_array(number, block.first + 1)]:
            if run.row >= stop:
                break
            at = np.arange(max(run.row, block.first), min(run.row + run.count, stop))
            there = self.left.has(run.id + run.step * (at - run.row))
            rows += [block.rows[row - block.first] for row in at[there].tolist()]
        return rows

    def _of_row(self, row: npt.NDArray[np.uint8]) -> Picture:
        return self._preprocessing.of(canonical.from_canonical(row.data))

    # --- members and files ------------------------------------------------------------------------

    def _members(self, pool: ThreadPoolExecutor) -> Iterator[Found]:
        for name in self._snapshot.tables.arrays.archive_names():
            self._go_on()
            if not self._has_wanted(name + b"#"):
                continue
            try:
                archive = archive_of(os.fsdecode(name))
                if archive is None:
                    continue
                members = archive.members(0, self._store.memory.max_file)
                yield from self._matching(pool, self._wanted_members(members))
            except _UNREADABLE:
                continue

    def _has_wanted(self, prefix: bytes) -> bool:
        return any(row.id in self.left for _, row in self._snapshot.tables.names.items(prefix))

    def _wanted_members(self, members: Iterable[object]) -> Iterator[Member]:
        """The members that were wanted images when they were ingested."""
        for one in members:
            self._go_on()
            if isinstance(one, Member):
                row = self._snapshot.names([one.name])[0]
                if row is not None and row.id in self.left:
                    yield one

    def _files(self, pool: ThreadPoolExecutor) -> Iterator[Found]:
        def items() -> Iterator[FileItem]:
            for batch in in_batches(self._snapshot.tables.names.items(b"/"), _BATCH):
                self._go_on()
                for name, row in batch:
                    # A member of an archive has no file of its own name.
                    if row.id in self.left and os.path.lexists(name):
                        item = files.one(Path(os.fsdecode(name)))
                        if isinstance(item, FileItem):
                            yield item

        yield from self._matching(pool, items())

    def _matching(
        self, pool: ThreadPoolExecutor, items: Iterable[FileItem | Member]
    ) -> Iterator[Found]:
        for _, found in self._in_order(pool, self._read_item, items):
            if found is not None:
                for row in self._snapshot.image_of(found.key):
                    if row.proof == found.proof and row.id in self.left:
                        yield row.id, found.picture

    def _read_item(self, item: FileItem | Member) -> _Read | None:
        most = self._store.memory.max_file
        try:
            if isinstance(item, Member) and item.decoded is not None:
                return self._of(item.decoded.pixels)
            with self._reading.hold(min(item.size, most) if isinstance(item, FileItem) else 0):
                return self._decoded(item.read(most))
        except (ImageError, MemoryError):
            return None

    def _decoded(self, data: bytes) -> _Read:
        with self._decoding.hold(min(decode.memory_to_decode(data), self._most)):
            return self._of(decode.decode(data, max_bytes=self._most).pixels)

    def _of(self, pixels: Pixels) -> _Read:
        form = pixels.canonical
        return _Read(
            hashing.key(form, self._snapshot.settings.hash_seed),
            hashing.proof(form),
            self._preprocessing.of(pixels),
        )


def _bytes_of(item: object) -> int:
    """The bytes that an item takes in memory before it is read."""
    return item.memory_bytes if isinstance(item, Member) else 0


def _open_array(name: bytes, array: ArrayRow) -> ArrayItem | None:
    """An array by its name in results; None if it holds vectors now."""
    if name.startswith(PREFIX.encode()):
        return SyntheticBits(f"{os.fsdecode(name)}&n={array.rows}")
    found = array_named(name)
    return None if isinstance(found, VectorItem) else found
