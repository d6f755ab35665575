"""Vectors that callers bring for images: which are accepted, and which images have none yet.

An image keeps its first vector. A stored image without a vector gets the one that it comes with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from engine.errors import UsageError
from engine.ingest.checked_vectors import reason_of
from engine.ingest.counts import Tally
from engine.ingest.encode import Encoding
from engine.ingest.vector_arrays import check_space
from engine.sources.items import ArchiveItem, FileItem, Item, Member, Reject, Skipped, Vector
from engine.sources.items import VectorArchive as VectorArchiveItem
from engine.storage import swaps
from engine.storage.bitmap import IdSet
from engine.storage.changeset import Chunk
from engine.storage.session import Session

_IDS = 1 << 16  # ids of vectors read at a time


class ImageVectors:
    """The vectors of images in one run."""

    def __init__(
        self, store: Session, encoding: Encoding, tally: Tally, *, normalize: bool
    ) -> None:
        """With ``normalize``, vectors are divided by their length."""
        self._store = store
        self._encoding = encoding
        self._tally = tally
        self._normalize = normalize
        self._dim = 0  # of the first valid vector of this run
        self._have: IdSet | None = None  # images that have a vector

    # --- what is accepted -------------------------------------------------------------------------

    def checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of a run; an image whose vector cannot be used becomes a ``Reject``."""
        for number, item in enumerate(items):
            if isinstance(item, FileItem | Member) and item.vector is not None:
                try:
                    self.admit(None)
                except UsageError as error:
                    if not number:
                        raise
                    yield Reject(item.name, str(error))
                else:
                    yield self._checked(item, item.vector, stamped=False)
            elif isinstance(item, VectorArchiveItem) and item.brings_vectors:
                yield _CheckedArchive(item, self)
            else:
                yield item

    def admit(self, dim: int | None) -> None:
        """Raise ``UsageError`` if the store takes no vectors of ``dim`` numbers, None if unknown.

        From then on, no encoder makes vectors in this run.
        """
        store = self._store.snapshot
        check_space(store, normalize=self._normalize)
        if not store.vector_rows:
            self._encoding.disable()
        elif dim is not None and dim != store.space.dim:
            raise UsageError(_other_dim(dim, store.space.dim))

    def _checked(self, item: FileItem | Member, vector: Vector, *, stamped: bool) -> Item:
        """An item with its vector as it will be stored, or a reject.

        ``stamped``: the stamp of the item covers its vector, so that it is not tried again.
        """
        snapshot = self._store.snapshot
        dim = snapshot.space.dim if snapshot.vector_rows else self._dim
        normalize = snapshot.space.normalized if snapshot.vector_rows else self._normalize
        reason = ""
        if dim and len(vector) != dim:
            reason = _other_dim(len(vector), dim)
        else:
            vector, reason = reason_of(vector, normalize=normalize)
        if reason:
            stamp = (item.mtime_ns, item.size) if stamped else (0, 0)
            return Reject(item.name, f"its vector {reason}", *stamp)
        self._dim = len(vector)
        return replace(item, vector=vector)

    def member(self, item: Member, *, stamped: bool) -> Member | Reject:
        """A member of an archive, as ``checked`` yields it."""
        if item.vector is None:
            return item
        found = self._checked(item, item.vector, stamped=stamped)
        assert isinstance(found, Member | Reject)
        return found

    # --- which images have one --------------------------------------------------------------------

    def adopt(self, dim: int) -> None:
        """Let images of the store have vectors of ``dim`` numbers; call it before such a commit."""
        swaps.adopt_image_vectors(self._store.writer, dim, normalized=self._normalize)

    def lacks(self, id_: int) -> bool:
        """Whether a stored image has no vector."""
        return id_ not in self._all()

    def committed(self, chunk: Chunk) -> None:
        """Note the vectors of a chunk that was committed."""
        if chunk.image_vectors is None:
            return
        ids, have = chunk.image_vectors.ids, self._all()
        if int(ids[-1]) >= have.size:
            have = self._have = IdSet.none(2 * int(ids[-1]) + 1).union(have)
        have.add(ids)
        self._tally.counts.image_vectors += len(ids)

    def _all(self) -> IdSet:
        """The ids of images that have a vector."""
        if self._have is None:
            snapshot = self._store.snapshot
            self._have = IdSet.none(snapshot.state.next_id)
            if snapshot.vector_rows:
                vectors = snapshot.open_vectors()
                try:
                    for block in vectors.id_blocks(0, vectors.rows, _IDS):
                        self._have.add(np.asarray(block, np.int64))
                finally:
                    vectors.close()
        return self._have


class _CheckedArchive:
    """An archive whose members' vectors are checked as they are read."""

    def __init__(self, archive: VectorArchiveItem, vectors: ImageVectors) -> None:
        self.name, self.mtime_ns, self.size = archive.name, archive.mtime_ns, archive.size
        self.brings_vectors = True
        self.vector_dim = archive.vector_dim
        self.vectors_stamped = archive.vectors_stamped
        self._archive: ArchiveItem = archive
        self._vectors = vectors

    @property
    def count(self) -> int | None:
        """About how many members it has."""
        return self._archive.count

    def members(self, start: int, max_bytes: int) -> Iterator[Member | Reject | Skipped]:
        """Its members from number ``start`` on; see ``ArchiveItem``."""
        for found in self._archive.members(start, max_bytes):
            if isinstance(found, Member):
                yield self._vectors.member(found, stamped=self.vectors_stamped)
            else:
                yield found


def _other_dim(dim: int, store_dim: int) -> str:
    return (
        f"has {dim} dimensions, and the vectors of the store have {store_dim}: make another store "
        f"for it"
    )
