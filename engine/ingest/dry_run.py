"""The dry run of an ingest: what it would read and how much disk it would take.

It compares names and stamps to find new files, and reads the headers of arrays for their numbers of
rows. It decodes nothing, so duplicates and broken files count as images, and the disk is an upper
estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from engine.config import KEEP_BITS_LIMIT, Limits
from engine.errors import UsageError
from engine.ingest.resume import FileState, Resumed, resume_archive, resume_array, resume_files
from engine.ingest.vector_arrays import check_admission
from engine.records import IngestPlan, Kind
from engine.sources.items import (
    ArchiveItem,
    ArrayItem,
    FileItem,
    Item,
    Member,
    Reject,
    Skipped,
    VectorArchive,
    VectorItem,
)
from engine.storage.disk import disk
from engine.storage.snapshot import Snapshot

# Bytes of disk for each image, measured: its rows in the keys without its name, and its fingerprint.
_FILE_BYTES = 400 + 32
_ROW_BYTES = 90 + 32
# Bytes of disk for one run that writes, however little: RocksDB's log and options, and a table each.
_RUN_BYTES = 512 << 10


class DryRun:
    """One dry run over some sources, against a store or, if it is not made yet, an empty one."""

    def __init__(
        self,
        store: Snapshot | None,
        *,
        dim: int,
        keep_pixels: str,
        normalize: bool,
        disk_bytes: int = 0,
    ) -> None:
        """``dim`` is the length of the vectors that would be made, 0 for none.

        ``disk_bytes`` is the size of the empty store, if it would be made.
        """
        self._store = store
        self._group_files = (store.limits if store is not None else Limits()).chunk_files
        self._keep = keep_pixels
        self._normalize = normalize
        self._vector = vector_bytes(dim) if dim else 0
        self._images = self._unchanged = self._rejected = self._skipped = 0
        self._archives = self._bytes = self._done = 0
        self._disk = disk_bytes

    def run(
        self, items: Iterable[Item], path: Path, progress: Callable[[int], None] | None = None
    ) -> IngestPlan:
        """Go through all items; ``path`` is the folder of the store, whether it exists or not."""
        for group in _groups(items, self._group_files):
            self._files([item for item in group if isinstance(item, FileItem | Member)])
            for item in group:
                self._other(item)
            self._done += len(group)
            if progress is not None:
                progress(self._done)
        folder = path.absolute()
        while not folder.exists():
            folder = folder.parent
        return IngestPlan(
            images=self._images,
            unchanged=self._unchanged,
            rejected=self._rejected,
            skipped=self._skipped,
            archives=self._archives,
            bytes_to_read=self._bytes,
            disk_bytes=self._disk + (_RUN_BYTES if self._images or self._archives else 0),
            free_bytes=disk().free(folder),
        )

    def _files(self, items: list[FileItem | Member]) -> None:
        for item, state in zip(items, resume_files(self._store, items), strict=True):
            if state is FileState.UNCHANGED:
                self._unchanged += 1
            elif state is FileState.REJECTED:
                self._rejected += 1
            else:
                size = item.size if isinstance(item, FileItem) else item.memory_bytes
                self._images += 1
                self._bytes += size
                brought = vector_bytes(len(item.vector)) if item.vector is not None else 0
                self._disk += _FILE_BYTES + len(item.name) + max(self._vector, brought)
                if self._keep == "yes":
                    self._disk += size

    @property
    def _met(self) -> int:
        """The number of items counted so far."""
        counts = (self._images, self._unchanged, self._rejected, self._skipped, self._archives)
        return sum(counts)

    def _other(self, item: Item) -> None:
        if isinstance(item, Reject):
            self._rejected += 1
        elif isinstance(item, Skipped):
            self._skipped += 1
        elif isinstance(item, ArchiveItem):
            self._archive(item)
        elif isinstance(item, VectorItem):
            self._vectors(item)
        elif not isinstance(item, FileItem | Member):
            self._array(item)

    def _array(self, item: ArrayItem) -> None:
        found = resume_array(self._store, item)
        left = item.count - found.done
        if self._is_done(found) or not left:
            return
        self._images += left
        self._bytes += item.size * left // item.count
        # If only reading the whole array would tell its kind, assume the one that takes more.
        kinds = list(Kind) if item.declared_kind is None else [item.declared_kind]
        kept = max(self._kept_bytes(item.row_bytes, kind) for kind in kinds)
        self._disk += left * (_ROW_BYTES + self._vector + kept)

    def _kept_bytes(self, row_bytes: int, kind: Kind) -> int:
        """The kept bytes of a row that takes ``row_bytes`` in memory."""
        values = -(-row_bytes // 8) if kind is Kind.BITS else row_bytes
        small = kind is Kind.BITS and values <= KEEP_BITS_LIMIT
        return values if self._keep == "yes" or (self._keep == "auto" and small) else 0

    def _is_done(self, found: Resumed[object]) -> bool:
        """Count what earlier runs did with a source; returns whether the rest was rejected for good."""
        self._unchanged += found.unchanged
        self._rejected += found.rejected + found.hopeless
        self._skipped += found.skipped
        return found.hopeless

    def _vectors(self, item: VectorItem) -> None:
        found = resume_array(self._store, item)
        left = item.count - found.done
        is_first = not self._met
        if self._is_done(found):
            return
        try:
            if left and self._store is not None:
                check_admission(self._store, item.dim, normalize=self._normalize)
        except UsageError:
            if is_first:
                raise
            self._rejected += 1
            return
        self._images += left
        self._bytes += item.size * left // max(item.count, 1)
        self._disk += left * vector_bytes(item.dim)

    def _archive(self, item: ArchiveItem) -> None:
        found = resume_archive(self._store, item)
        if self._is_done(found) or (found.row is not None and found.row.complete):
            return
        # Only reading an archive would tell how much of it is left.
        self._bytes += item.size
        if self._keep == "yes":
            self._disk += item.size
        if item.count is None:
            self._archives += 1
            return
        left = item.count - found.done
        dim = item.vector_dim if isinstance(item, VectorArchive) and item.brings_vectors else 0
        vector = max(self._vector, vector_bytes(dim) if dim else 0)
        self._images += left
        self._disk += left * (_FILE_BYTES + len(item.name) + vector)


def vector_bytes(dim: int) -> int:
    """Bytes of disk of one vector: float32, an id, and a code and a row number in the index."""
    return 4 * dim + 8 + dim // 4 + 8


def _groups(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group
