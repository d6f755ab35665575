"""Finds the pixels of images, kept or in a source, and keeps damaged ones again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from engine.errors import ImageError, StoreDamagedError
from engine.images import canonical, decode, hashing
from engine.maintenance.repair.outcome import Outcome, named
from engine.records import Buffer, Pixels
from engine.search.stored_query import MAX_SOURCES, in_sources
from engine.sources.file_presence import Whereabouts
from engine.sources.query import Query
from engine.storage.changeset import Chunk, Rekept
from engine.storage.session import Session

_IMAGES = 256  # images in one commit


class ImagePixels:
    """Reads the pixels of a store's images from wherever they still are."""

    def __init__(self, store: Session) -> None:
        self._store = store
        self._disks = Whereabouts()

    def require_gone(self, ids: Iterable[int]) -> None:
        """Raise ``StoreDamagedError`` if a source of one of these images may come back with its disk.

        Nothing else says what was damaged, so it must not be given up.
        """
        for id_ in ids:
            try:
                names = self._store.snapshot.sources_of(id_, MAX_SOURCES)[0]
            except StoreDamagedError:
                continue
            self.require_no_disk_away(names, f"the pixels of image {id_}")

    def require_no_disk_away(self, names: Iterable[bytes], what: str) -> None:
        """Raise ``StoreDamagedError`` if the file of a source may come back; it may hold ``what``."""
        for name in names:
            why = self._disks.why_away(name)
            if why is not None:
                raise StoreDamagedError(
                    f"{os.fsdecode(name)} may have {what} ({why}); mount the disk and run 'engine check "
                    f"--fix' again, or remove the source with 'engine remove' if it is gone for good"
                )

    def of(self, id_: int) -> Pixels | None:
        """The pixels of an image, kept or from a source; None if neither has them."""
        if self._store.snapshot.record(id_) is None:
            return None
        kept = self._store.snapshot.kept_whole(id_)
        if kept is not None:
            try:
                data, is_canonical = kept
                if is_canonical:
                    return canonical.from_canonical(data)
                return decode.decode(data, max_bytes=self._store.memory.decoding).pixels
            except ImageError:  # the decoder may have changed since the ingest
                pass
        return next((found for _, found in self.from_sources(id_)), None)

    def from_sources(self, id_: int) -> Iterator[tuple[Query, Pixels]]:
        """The image as each of its sources has it, leaving out sources that have changed."""
        proof = self._store.snapshot.get(id_).proof
        for query, decoded in in_sources(self._store, id_):
            if hashing.proof(decoded.pixels.canonical) == proof:
                yield query, decoded.pixels


class PixelsRepair:
    """Keeps damaged pixels again, or leaves their images without kept pixels."""

    def __init__(self, store: Session, pixels: ImagePixels, outcome: Outcome) -> None:
        self._store = store
        self._pixels = pixels
        self._outcome = outcome

    def run(self, ids: Sequence[int]) -> None:
        """Keep the pixels of these images again, in commits of bounded size.

        Raises ``StoreDamagedError`` at the end if sources of some may come back; those stay damaged.
        """
        images = self._store.snapshot.tables.images
        chunk, size = Chunk(), 0
        lost = []
        away: StoreDamagedError | None = None
        for id_ in dict.fromkeys(ids):
            record = self._store.snapshot.get(id_)
            rows = self._store.snapshot.image_of(record.key)
            row = next(row for row in rows if row.id == id_)
            key = record.key if row is rows[0] else images.further_key(record.key, id_)
            keep: Buffer | None = None
            for query, found in self._pixels.from_sources(id_):
                if row.canonical:
                    keep = found.canonical
                elif query.data is not None and hashing.file_hash(query.data) == record.file_hash:
                    keep = query.data
                if keep is not None:
                    size += len(keep)
                    break
            else:
                try:
                    self._pixels.require_gone([id_])
                except StoreDamagedError as error:
                    away = away or error
                    continue
                lost.append(id_)
            chunk.rekept.append(Rekept(key, row, keep))
            if len(chunk.rekept) == _IMAGES or size >= self._store.memory.chunk:
                self._store.writer.commit(chunk)
                chunk, size = Chunk(), 0
        self._store.writer.commit(chunk)
        if lost:
            self._outcome.set_aside(
                "pixels",
                f"{named(lost)}: the kept pixels are lost, and no source has them any more; from now "
                f"on SHA-256 alone verifies a match",
            )
        if away is not None:
            raise away
