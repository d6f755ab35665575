"""Prepares files and members in worker threads, as many at a time as memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from engine.errors import ImageError, StoreError
from engine.images import decode, hashing
from engine.ingest.encode import Encoding
from engine.ingest.prepare import PreparedImage, PrepareSettings, prepare, prepare_decoded
from engine.memory import MemoryGate
from engine.sources.items import FileItem, Member, Reject
from engine.storage.session import Session


@dataclass(frozen=True, slots=True)
class ReadItem:
    """One image file, read; ``prepared`` is None if image ``known`` has the same file hash."""

    item: FileItem | Member
    file_hash: bytes
    known: int | None = None
    prepared: PreparedImage | None = None


Waiting = tuple[FileItem | Member, Future[ReadItem | Reject]]


class Preparing:
    """Reads and prepares images for one store."""

    def __init__(self, store: Session, encoding: Encoding, keep_pixels: str) -> None:
        self._store = store
        self._encoding = encoding
        self._keep_pixels = keep_pixels
        self._max_decoding = encoding.max_decoding()
        self._decoding = MemoryGate(self._max_decoding, crowded=self._crowd)
        self._reading = MemoryGate(store.memory.reading)

    def begin(self, pool: ThreadPoolExecutor, items: Iterable[FileItem | Member]) -> list[Waiting]:
        """Let the workers prepare some images."""
        return [(item, pool.submit(self.prepare, item)) for item in items]

    def reserve(self, count: int) -> None:
        """Keep ``count`` bytes of the memory for decoding free, for other data."""
        self._decoding.reserve(count)

    def prepare(self, item: FileItem | Member) -> ReadItem | Reject:
        """Read one file and prepare its image; runs in a worker thread."""
        try:
            if isinstance(item, Member) and item.decoded is not None:
                found = ReadItem(item, b"", None, prepare_decoded(item.decoded, self._settings()))
            else:
                found = self._read(item)
        except ImageError as error:
            stamp = (0, 0) if error.retryable else (item.mtime_ns, item.size)
            return Reject(item.name, str(error), *stamp)
        except MemoryError:
            return Reject(item.name, "not enough memory to read it")
        if isinstance(item, Member) and found.prepared is not None:
            found.prepared.image.metadata = item.metadata
        return found

    def _read(self, item: FileItem | Member) -> ReadItem:
        max_file = self._store.memory.max_file
        # The bytes of a member of an archive are in memory already, and counted with its group.
        waiting = item.size if isinstance(item, FileItem) else 0
        with self._reading.hold(min(waiting, max_file)):
            data = item.read(max_file)
            file_hash = hashing.file_hash(data)
            known = self._store.snapshot.ids_of_files([file_hash])[0]
            if known is not None:
                return ReadItem(item, file_hash, known)
            with self._decoding.hold(min(decode.memory_to_decode(data), self._max_decoding)):
                prepared = prepare(data, file_hash, self._settings())
        return ReadItem(item, file_hash, None, prepared)

    def _settings(self) -> PrepareSettings:
        return PrepareSettings(
            hash_seed=self._store.snapshot.settings.hash_seed,
            keep_pixels=self._keep_pixels,
            max_decoding_bytes=self._max_decoding,
            preprocessing=self._encoding.preprocessing,
        )

    def _crowd(self, crowded: bool) -> None:
        """Shrink the block cache while large images are decoded, and restore it afterwards."""
        memory = self._store.memory
        # A failed write closes the store, and its cache.
        with suppress(StoreError):
            self._store.snapshot.files.limit_cache(
                memory.crowded_cache if crowded else memory.block_cache
            )


@contextmanager
def worker_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Worker threads; when the run ends, tasks that have not begun are cancelled.

    Threads, not processes, because decoding, hashing and the encoder all release the GIL.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="engine-ingest")
    try:
        yield pool
    finally:
        # Do not wait: an image may take a minute to decode, and its result is not used.
        pool.shutdown(wait=False, cancel_futures=True)
