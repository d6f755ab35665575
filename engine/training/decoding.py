"""Decodes the images of a training run into one file, in the threads of a pool."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.config import MemoryBudget
from engine.errors import ImageError, SourceError, UsageError
from engine.images import canonical, decode
from engine.images.preprocessing import squash
from engine.images.rgb_picture import to_rgb8
from engine.memory import MemoryGate
from engine.records import Rejection
from engine.sources.items import (
    ArchiveItem,
    ArrayItem,
    FileItem,
    Member,
    Reject,
    RowBlock,
    VectorItem,
)
from engine.training.cache import PictureFile, PictureWriter
from engine.training.run_sources import PictureName, RunSources, SourcePart, picture_name
from engine.training.shrinking import largest_side, shrunk

Array = npt.NDArray[np.uint8]

_IN_FLIGHT = 64  # files, members or blocks of rows that are being decoded or wait to be written
_BLOCK_ROWS = 32  # rows of an array decoded at a time


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One decoded image; without pixels if it was only measured."""

    picture: PictureName
    file_bytes: int
    size: tuple[int, int]  # original height and width
    shrunk: Array | None = None
    squashed: Array | None = None


@dataclass(frozen=True, slots=True)
class _Failed:
    rejection: Rejection
    retryable: bool = False  # whether another try of the same file may succeed


_Result = _Loaded | _Failed


class PictureDecoder:
    """Decodes the items of the sources in order, in the threads of a pool."""

    def __init__(
        self,
        square: int,
        pool: Executor,
        tick: Callable[[int, int], None],
        stop: Callable[[], bool],
        total: int,
    ) -> None:
        self._square = square
        self._pool = pool
        self._tick = tick
        self._stop = stop
        self._total = total
        self._memory = MemoryBudget()
        self._gate = MemoryGate(self._memory.decoding)
        self._side: int | None = None  # None: only measure the pictures

    def read(
        self, plan: RunSources, side: int, most: int, writer: Callable[[], PictureWriter]
    ) -> PictureFile:
        """Decode all pictures into at most ``most`` bytes, with a smaller side if they do not fit."""
        sizes = array("q")
        file = self._written(plan, side, most, writer, sizes)
        if file is not None:
            return file
        smaller = largest_side(np.array(sizes, np.int64).reshape(-1, 2), side, self._square, most)
        file = self._written(plan, smaller, most, writer, array("q"))
        # The images have grown since they were measured.
        if file is None:
            raise UsageError("the images changed while they were read: start again")
        return file

    def _written(
        self,
        plan: RunSources,
        side: int,
        most: int,
        writer: Callable[[], PictureWriter],
        sizes: array[int],
    ) -> PictureFile | None:
        """The pictures; None if they exceed ``most`` bytes. Appends all image sizes to ``sizes``."""
        rejected: list[Rejection] = []
        whole = True
        into = writer()
        fits = True
        self._side = side
        try:
            for result in self._results(plan):
                if isinstance(result, _Failed):
                    rejected.append(result.rejection)
                    whole = whole and not result.retryable
                    continue
                sizes.extend(result.size)
                if result.shrunk is None or result.squashed is None:
                    continue
                fits = fits and into.bytes + result.shrunk.size + result.squashed.size <= most
                if not fits:
                    self._side = None
                    continue
                into.add(
                    result.picture.name,
                    result.picture.label,
                    result.file_bytes,
                    result.shrunk,
                    result.squashed,
                    held_out=result.picture.held_out,
                )
            if fits:
                return into.finish(rejected, side, self._square, keep=whole)
        except BaseException:
            into.abandon()
            raise
        into.abandon()
        return None

    def _results(self, plan: RunSources) -> Iterator[_Result]:
        """The result for every image, in order; a few are decoded ahead."""
        waiting: deque[tuple[int, Future[list[_Result]]]] = deque()
        in_memory = 0
        done = 0
        try:
            for cost, task in self._tasks(plan):
                while waiting and (
                    len(waiting) >= _IN_FLIGHT or in_memory + cost > self._memory.chunk
                ):
                    before, future = waiting.popleft()
                    results = future.result()
                    in_memory -= before
                    done += len(results)
                    yield from results
                    self._tick(done, max(done, self._total))
                    if self._stop():
                        raise KeyboardInterrupt
                waiting.append((cost, self._pool.submit(task)))
                in_memory += cost
            while waiting:
                results = waiting.popleft()[1].result()
                done += len(results)
                yield from results
                self._tick(done, self._total if not waiting else max(done, self._total))
                if self._stop():
                    raise KeyboardInterrupt
        finally:
            for _, future in waiting:
                future.cancel()

    def _tasks(self, plan: RunSources) -> Iterator[tuple[int, Callable[[], list[_Result]]]]:
        """Yield each task, with the bytes that it keeps in memory until it is written."""
        for part, item in plan:
            try:
                if isinstance(item, Reject):
                    yield 0, _refused(item.name, item.reason)
                elif isinstance(item, FileItem):
                    yield self._waiting, self._file(part, item)
                elif isinstance(item, VectorItem):
                    yield 0, _refused(item.name, "holds vectors: an encoder is trained on images")
                elif isinstance(item, ArchiveItem):
                    yield from self._archive(part, item)
                else:
                    yield from self._rows(part, item)
            except SourceError as error:
                yield 0, _refused(item.name, str(error))
            except OSError as error:
                yield 0, _refused(item.name, f"cannot be read: {error.strerror}", retryable=True)

    @property
    def _waiting(self) -> int:
        """About how many bytes a picture takes in both its sizes until it is written."""
        return 3 * (2 * self._side**2 + self._square**2) if self._side is not None else 0

    def _archive(
        self, part: SourcePart, archive: ArchiveItem
    ) -> Iterator[tuple[int, Callable[[], list[_Result]]]]:
        for member in archive.members(0, self._memory.max_file):
            if isinstance(member, Reject):
                yield 0, _refused(member.name, member.reason)
            elif isinstance(member, Member):
                yield member.memory_bytes + self._waiting, self._member(part, member)

    def _rows(
        self, part: SourcePart, rows: ArrayItem
    ) -> Iterator[tuple[int, Callable[[], list[_Result]]]]:
        if rows.row_bytes > self._memory.max_file:
            limit = f"the limit of {self._memory.max_file:,}"
            yield 0, _refused(rows.name, f"has rows of {rows.row_bytes:,} bytes, over {limit}")
            return
        for block in rows.blocks(0, _BLOCK_ROWS, self._memory.block):
            cost = block.rows.nbytes + len(block.rows) * self._waiting
            yield cost, self._block(part, rows, block)

    def _file(self, part: SourcePart, item: FileItem) -> Callable[[], list[_Result]]:
        def load() -> list[_Result]:
            if item.size > self._memory.max_file:
                limit = f"{item.size:,} bytes are over the limit of {self._memory.max_file:,}"
                return [_failed(item.name, limit)]
            try:
                data = item.read(self._memory.max_file)
            except ImageError as error:
                return [_failed(item.name, str(error), retryable=True)]
            return [self._decoded(picture_name(part, item.name), item.name, data)]

        return load

    def _member(self, part: SourcePart, member: Member) -> Callable[[], list[_Result]]:
        picture = picture_name(part, member.name, member.metadata)
        return lambda: [self._decoded(picture, member.name, member.data)]

    def _block(
        self, part: SourcePart, rows: ArrayItem, block: RowBlock
    ) -> Callable[[], list[_Result]]:
        def load() -> list[_Result]:
            results: list[_Result] = []
            for number, row in enumerate(block.rows, block.first):
                rgb = to_rgb8(canonical.from_canonical(row.data))
                picture = picture_name(part, b"%b#%d" % (rows.name, number))
                results.append(self._shrunk(picture, rows.size, rgb))
            return results

        return load

    def _decoded(self, picture: PictureName, name: bytes, data: bytes) -> _Result:
        try:
            if self._side is None:
                return _Loaded(picture, len(data), decode.size_of(data))
            with self._gate.hold(decode.memory_to_decode(data)):
                found = decode.decode(data, max_bytes=self._memory.decoding).pixels
                return self._shrunk(picture, len(data), to_rgb8(found))
        except ImageError as error:
            return _failed(name, str(error))
        except MemoryError:
            return _failed(name, "not enough memory to read it", retryable=True)

    def _shrunk(self, picture: PictureName, file_bytes: int, rgb: Array) -> _Loaded:
        height, width, _ = rgb.shape
        side = self._side
        if side is None:
            return _Loaded(picture, file_bytes, (height, width))
        squashed = squash(rgb, self._square)
        return _Loaded(picture, file_bytes, (height, width), shrunk(rgb, side), squashed)


def _failed(name: bytes, reason: str, *, retryable: bool = False) -> _Failed:
    return _Failed(Rejection(os.fsdecode(name), reason), retryable)


def _refused(name: bytes, reason: str, *, retryable: bool = False) -> Callable[[], list[_Result]]:
    return lambda: [_failed(name, reason, retryable=retryable)]
