"""The write path: wires the rooms, one commit a chunk.

    items → prepare (read, hash, decode, digest, fingerprint; in threads) → known? → encode → commit

The images of a chunk are prepared while the chunk before is encoded and committed. An image that
cannot be read becomes a row of the rejects and the run goes on; what stops a run is the store.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine import digest, fingerprint, pixels
from engine.config import (
    CHUNK_ENCODED_ROWS,
    CHUNK_FILES,
    CHUNK_ROWS,
    ENCODE_BATCH,
    EXACT_ROWS,
    KEEP_BITS_LIMIT,
    check_keep_pixels,
    cpu_count,
)
from engine.encoders.onnx import OnnxEncoder
from engine.errors import ImageError, SourceError, UsageError
from engine.memory import PeakMemory
from engine.records import Buffer, IngestReport, Kind, Pixels
from engine.sources.base import ArrayItem, FileItem, Item, Problem, RowBlock, Skipped
from engine.storage.chunk import Chunk, NewImage, NewName
from engine.storage.rows import ARRAY, ArrayRow, Run, keeps_canonical
from engine.store import REJECTS, StoreFiles

Picture = npt.NDArray[np.uint8]
_log = logging.getLogger("engine")
_SEGMENT_ROWS = 16 * EXACT_ROWS  # unindexed vectors after which a running ingest stops to index


@dataclass(slots=True)
class _Prepared:
    """One image file, read; ``image`` is None where its bytes are those of image ``known``."""

    item: FileItem
    file_hash: bytes
    known: int | None = None
    image: NewImage | None = None
    picture: Picture | None = None


@dataclass(slots=True)
class _Counts:
    added: int = 0
    duplicates: int = 0
    unchanged: int = 0
    rejected: int = 0
    skipped: int = 0

    @property
    def seen(self) -> int:
        return self.added + self.duplicates + self.unchanged + self.rejected


@dataclass(slots=True)
class _Pending:
    """What a chunk is about to add, found by proof: equal images inside one chunk are one image."""

    chunk: Chunk = field(default_factory=Chunk)
    ids: dict[bytes, int] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)  # fewer than a batch of the encoder
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)


class Ingest:
    """One run over some sources. ``run`` may be called once."""

    def __init__(
        self,
        store: StoreFiles,
        encoder: OnnxEncoder | None,
        *,
        keep_pixels: str = "auto",
        workers: int | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``progress`` is told how many items are done; ``stop`` ends the run after a commit."""
        check_keep_pixels(keep_pixels)
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be 1 or more, not {workers}")
        self._store = store
        self._encoder = encoder
        self._keep = keep_pixels
        self._workers = workers or cpu_count()
        self._progress = progress or (lambda done: None)
        self._stop = stop or (lambda: False)
        self._gate = _MemoryGate(store.memory.decoding)
        # What is kept of the images of a group, and their shrunk pictures, wait for the commit.
        each = KEEP_BITS_LIMIT + (3 * encoder.image_size**2 if encoder else 0)
        self._group_files = max(1, min(CHUNK_FILES, store.memory.chunk // each))
        self._counts = _Counts()
        self._done = 0
        self._peak = PeakMemory()

    def run(self, items: Iterable[Item]) -> IngestReport:
        """Ingest everything; returns what was done."""
        started = time.perf_counter()
        self._store.become_writer()
        # Threads, not processes: decoding, hashing and the encoder all let go of the GIL.
        with _pool(self._workers) as pool:
            waiting: list[Future[_Prepared | Problem]] = []
            for group in self._groups(items):
                if isinstance(group, list):
                    ahead = [pool.submit(self._prepare, item) for item in self._changed(group)]
                    self._commit_files(waiting)
                    waiting = ahead
                else:
                    self._commit_files(waiting)
                    waiting = []
                    self._array(group, pool)
                if self._stop():
                    break
            self._commit_files(waiting)
        self._index(EXACT_ROWS)
        return self._report(time.perf_counter() - started)

    # --- grouping ---------------------------------------------------------------------------------

    def _groups(self, items: Iterable[Item]) -> Iterator[list[FileItem] | ArrayItem]:
        """Files in groups of one commit; arrays alone. Problems and skipped files end here."""
        group: list[FileItem] = []
        size = 0
        for item in items:
            if self._stop():
                break
            if isinstance(item, Problem):
                self._reject([(item.name, item.reason, 0, 0)])
                self._advance(1)
            elif isinstance(item, Skipped):
                self._counts.skipped += 1
                self._advance(1)
            elif isinstance(item, FileItem):
                group.append(item)
                size += item.size
                if len(group) >= self._group_files or size >= self._store.memory.chunk:
                    yield group
                    group, size = [], 0
            else:
                if group:
                    yield group
                    group, size = [], 0
                yield item
        if group:
            yield group

    def _changed(self, group: list[FileItem]) -> list[FileItem]:
        """The files of a group that are new or changed by their stamp; the rest is not read."""
        changed = []
        for item, known in zip(group, self._store.names([i.name for i in group]), strict=True):
            if known and (known.mtime_ns, known.size) == (item.mtime_ns, item.size):
                self._counts.unchanged += 1
                self._advance(1)
            else:
                changed.append(item)
        return changed

    # --- files ------------------------------------------------------------------------------------

    def _prepare(self, item: FileItem) -> _Prepared | Problem:
        """Everything about one file that needs its bytes or pixels; runs in a worker thread."""
        memory = self._store.memory
        try:
            data = item.read(memory.max_file)
            file_hash = digest.file_hash(data)
            known = self._store.files([file_hash])[0]
            if known is not None:
                return _Prepared(item, file_hash, known)
            cost = pixels.decoding_bytes(data)
            with self._gate.hold(cost):
                decoded = pixels.decode(data, max_bytes=memory.decoding)
                image = self._new_image(decoded.pixels, decoded.container, data, file_hash)
                picture = self._picture(decoded.pixels)
                self._peak.sample()
        except ImageError as error:
            return Problem(item.name, str(error))
        except MemoryError:
            return Problem(item.name, "not enough memory to read it")
        return _Prepared(item, file_hash, None, image, picture)

    def _new_image(self, found: Pixels, container: str, data: bytes, file_hash: bytes) -> NewImage:
        canonical = found.canonical
        print_, quality = fingerprint.fingerprint(found)
        keep: Buffer | None = None
        if self._keep != "no" and keeps_canonical(found.kind, len(canonical), container):
            keep = canonical
        elif self._keep == "yes":
            keep = data
        return NewImage(
            # The pixels are let go here: only what is kept of them waits for the commit.
            pixels=Pixels(found.kind, found.height, found.width, found.channels, found.frames, b""),
            key=digest.key(canonical, self._store.settings.hash_seed),
            proof=digest.proof(canonical),
            container=container,
            decoder=pixels.DECODER,
            file_bytes=len(data),
            file_hash=file_hash,
            fingerprint=print_,
            quality=quality,
            keep=keep,
        )

    def _picture(self, found: Pixels) -> Picture | None:
        if self._encoder is None:
            return None
        return pixels.squash(pixels.to_rgb8(found), self._encoder.image_size)

    def _commit_files(self, futures: Sequence[Future[_Prepared | Problem]]) -> None:
        done: list[_Prepared] = []
        rejects = []
        for future in futures:
            result = future.result()
            if isinstance(result, Problem):
                rejects.append((result.name, result.reason, 0, 0))
                self._advance(1)
            else:
                done.append(result)
        pending = _Pending()
        before = self._store.names([prepared.item.name for prepared in done])
        images = [prepared.image for prepared in done if prepared.image is not None]
        known = iter(self._known(images))
        named: dict[bytes, NewName] = {}
        for prepared, name_row in zip(done, before, strict=True):
            if prepared.image is None:
                id_ = prepared.known
            else:
                id_ = next(known) or pending.ids.get(prepared.image.proof)
            if id_ is None:
                assert prepared.image is not None
                id_ = self._add(pending, prepared.image, prepared.picture)
            else:
                self._counts.duplicates += 1
            item = prepared.item
            named[item.name] = NewName(
                item.name, id_, item.mtime_ns, item.size, prepared.file_hash, name_row
            )
            self._advance(1)
        pending.chunk.names = list(named.values())
        self._commit(pending)
        if rejects:
            self._reject(rejects)

    # --- arrays -----------------------------------------------------------------------------------

    def _array(self, array: ArrayItem, pool: ThreadPoolExecutor) -> None:
        """Ingest the rows of an array that are not committed yet, block by block."""
        row = self._store.array(array.name)
        stamp = (array.mtime_ns, array.size)
        start = 0
        try:
            if array.row_bytes > self._store.memory.chunk:
                raise SourceError(f"has rows of {array.row_bytes:,} bytes: raise --memory")
            kind = array.kind if row is None or (row.mtime_ns, row.size) != stamp else row.kind
            if row is None or (row.mtime_ns, row.size, row.kind) != (*stamp, kind):
                row = ArrayRow(self._store.state.next_array, *stamp, 0, kind)
            start = min(row.rows, array.count)
            self._counts.unchanged += start
            self._advance(start)
            memory = self._store.memory
            # Rows wait in the block being hashed, the batch being written and the one being read.
            most = CHUNK_ROWS if self._encoder is None else min(CHUNK_ROWS, CHUNK_ENCODED_ROWS)
            blocks = array.blocks(start, most, memory.chunk // 2)
            for block in _one_ahead(blocks, pool):
                end = block.first + len(block.rows)
                row = ArrayRow(row.number, *stamp, max(row.rows, end), kind)
                self._commit_rows(array.name, row, block, pool)
                start = end
                if self._stop():
                    return
        except (SourceError, ImageError) as error:
            self._reject([(array.name, str(error), *stamp)])
            self._advance(max(array.count - start, 1))

    def _commit_rows(
        self, name: bytes, array: ArrayRow, block: RowBlock, pool: ThreadPoolExecutor
    ) -> None:
        images = self._row_images(block, pool)
        pending = _Pending()
        ids = np.empty(len(images), np.int64)
        for i, (image, known) in enumerate(zip(images, self._known(images), strict=True)):
            id_ = known or pending.ids.get(image.proof)
            if id_ is None:
                picture = None
                if self._encoder is not None:
                    picture = self._picture(pixels.from_canonical(memoryview(block.rows[i])))
                id_ = self._add(pending, image, picture)
            else:
                self._counts.duplicates += 1
            ids[i] = id_
        pending.chunk.runs = runs_of(array.number, block.first, ids)
        pending.chunk.arrays = [(name, array)]
        self._commit(pending)
        self._advance(len(images))

    def _row_images(self, block: RowBlock, pool: ThreadPoolExecutor) -> list[NewImage]:
        rows = block.rows
        seed = self._store.settings.hash_seed
        shape = pixels.from_canonical(memoryview(rows[0]))
        bare = Pixels(shape.kind, shape.height, shape.width, shape.channels, shape.frames, b"")
        views = [memoryview(row) for row in rows]
        step = -(-len(views) // (4 * self._workers))
        parts = [views[at : at + step] for at in range(0, len(views), step)]
        proofs = [proof for part in pool.map(_proofs, parts) for proof in part]
        keys = [digest.key(view, seed) for view in views]
        if block.kind is Kind.BITS:
            bits = shape.height * shape.width * shape.channels
            prints, qualities = fingerprint.fingerprint_bits(rows[:, pixels.HEADER_BYTES :], bits)
            made = [(p.tobytes(), int(q)) for p, q in zip(prints, qualities, strict=True)]
            small = rows.shape[1] <= pixels.HEADER_BYTES + KEEP_BITS_LIMIT
            keeps = self._keep == "yes" or (self._keep == "auto" and small)
        else:
            made = list(pool.map(_row_fingerprint, views))
            keeps = self._keep == "yes"
        return [
            NewImage(bare, key, proof, ARRAY, "", 0, b"", *print_, view if keeps else None)
            for view, key, proof, print_ in zip(views, keys, proofs, made, strict=True)
        ]

    # --- both -------------------------------------------------------------------------------------

    def _known(self, images: Sequence[NewImage]) -> list[int | None]:
        """The stored image that each of ``images`` is, by key and then by proof."""
        rows = self._store.images_of([image.key for image in images])
        known: list[int | None] = []
        for image, candidates in zip(images, rows, strict=True):
            image.first = candidates[0] if candidates else None
            known.append(next((row.id for row in candidates if row.proof == image.proof), None))
        return known

    def _add(self, pending: _Pending, image: NewImage, picture: Picture | None) -> int:
        id_ = self._store.state.next_id + len(pending.chunk.images)
        pending.chunk.images.append(image)
        pending.ids[image.proof] = id_
        if picture is not None:
            pending.pictures.append(picture)
            if len(pending.pictures) == ENCODE_BATCH:
                self._encode(pending)
        self._counts.added += 1
        return id_

    def _encode(self, pending: _Pending) -> None:
        if self._encoder is not None and pending.pictures:
            pending.vectors.append(self._encoder.encode(pending.pictures))
            pending.pictures = []

    def _commit(self, pending: _Pending) -> None:
        self._encode(pending)
        if pending.vectors:
            pending.chunk.vectors = np.concatenate(pending.vectors)
        self._peak.sample()
        self._store.commit(pending.chunk)
        self._index(_SEGMENT_ROWS)

    def _reject(self, rejects: Sequence[tuple[bytes, str, int, int]]) -> None:
        """Record what could not be read; a row that says the same as before is not repeated."""
        self._counts.rejected += len(rejects)
        chunk, lines = Chunk(), []
        for name, reason, mtime_ns, size in rejects:
            row = {"reason": reason, "mtime_ns": mtime_ns, "size": size}
            if self._store.rejected(name) != row:
                chunk.rejects.append((name, row))
                lines.append({"source": os.fsdecode(name), "reason": reason, "time": time.time()})
        if lines:
            self._store.log_rejects(lines)
            self._store.commit(chunk)

    def _index(self, least: int) -> None:
        """Index the vectors that are in no segment, if there are at least ``least`` of them."""
        first = self._store.unindexed_from(least)
        if first is not None:
            try:
                self._store.build_segment(first)
            except (OSError, MemoryError) as error:
                # Derived: the vectors are committed, and are searched exactly until it succeeds.
                _log.warning("the index was not built: %s; lookups go on without it", error)

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done)

    def _report(self, seconds: float) -> IngestReport:
        self._peak.sample()
        counts = self._counts
        return IngestReport(
            seen=counts.seen,
            added=counts.added,
            duplicates=counts.duplicates,
            unchanged=counts.unchanged,
            rejected=counts.rejected,
            skipped=counts.skipped,
            seconds=round(seconds, 3),
            images_per_second=round(counts.seen / seconds, 1) if seconds else 0.0,
            peak_memory_bytes=self._peak.anonymous,
            peak_rss_bytes=self._peak.resident,
            rejects_file=str(self._store.path / REJECTS) if counts.rejected else None,
            interrupted=self._stop(),
        )


class _MemoryGate:
    """Lets images be decoded at a time as memory allows; one always gets through."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + count <= self._most)
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Worker threads; what has not begun when an error ends the run is not begun any more."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="engine-ingest")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def runs_of(array: int, first_row: int, ids: npt.NDArray[np.int64]) -> list[Run]:
    """The shortest list of runs that says which image each row of a block is.

    ``ids`` is (n,): the images of rows ``first_row`` … ``first_row + n - 1``.
    """
    runs: list[Run] = []
    steps = np.diff(ids)
    # Where the step changes, a run may end; between two such places it is constant.
    edges = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)] if len(steps) else []
    at = 0
    for edge in edges:
        step = int(steps[edge - 1])
        if at >= edge:
            continue
        if step in (0, 1):
            runs.append(Run(array, first_row + at, edge - at + 1, step, int(ids[at])))
            at = edge + 1
        else:
            while at < edge:
                runs.append(Run(array, first_row + at, 1, 1, int(ids[at])))
                at += 1
    if at < len(ids):
        runs.append(Run(array, first_row + at, 1, 1, int(ids[at])))
    return runs


def _one_ahead(blocks: Iterator[RowBlock], pool: ThreadPoolExecutor) -> Iterator[RowBlock]:
    """The same blocks, each read or generated while the one before it is worked on."""
    coming = pool.submit(next, blocks, None)
    while (block := coming.result()) is not None:
        coming = pool.submit(next, blocks, None)
        yield block


def _proofs(views: Sequence[Buffer]) -> list[bytes]:
    return [digest.proof(view) for view in views]


def _row_fingerprint(view: Buffer) -> tuple[bytes, int]:
    return fingerprint.fingerprint(pixels.from_canonical(view))
