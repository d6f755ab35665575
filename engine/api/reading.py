"""The methods of ``Store`` that list its content or copy it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engine.api.open_store import OpenStore
from engine.api.paths import folder_named
from engine.config import (
    FORMAT_VERSION,
    whole,
)
from engine.errors import EncoderError, ImageError, StoreError, UnknownImageError, UsageError
from engine.images.thumbnail import thumbnail_png
from engine.index.maintain import recall_of
from engine.index.random_pairs import score_at
from engine.maintenance.backup import Backup
from engine.maintenance.export import Export
from engine.maintenance.reembed.staging import staged_bytes
from engine.records import (
    BackupReport,
    ExportReport,
    ImageRecord,
    StoreInfo,
)
from engine.search.stored_query import stored_query
from engine.storage import ballast
from engine.storage.durable import tree_bytes
from engine.storage.extent_reader import MovedError
from engine.storage.scan import records_from
from engine.storage.staged_space import staged_in
from engine.storage.staged_vectors import staged_rows
from engine.storage.writer import REJECTS

_MAX_THUMBNAIL = 4096  # pixels
_PARTS = ("keys", "pixels", "fingerprints", "vectors", "index", "encoder")


class Reading(OpenStore):
    """The methods of ``Store`` that read without searching."""

    def get(self, id_: int, *, vector: bool = False) -> ImageRecord:
        """The record of image ``id_``; ``UnknownImageError`` if there is none.

        With ``vector``, its ``vector`` is (dim,) float32, or None if the image has none. That reads the
        ids of all vectors, as ``vectors`` does.
        """
        number = _whole(id_, "an id")
        self._session.follow()
        if not vector:
            return self._session.snapshot.get(number)
        return self._again(lambda: self._get_with_vector(number))

    def _get_with_vector(self, id_: int) -> ImageRecord:
        found = self._session.snapshot.get(id_)
        if not self._session.snapshot.space.exists:
            return found
        row = self._vectors([id_])[0]
        return replace(found, vector=None if np.isnan(row).all() else row)

    def __getitem__(self, id_: int) -> ImageRecord:
        """``store[7]`` is ``store.get(7)``; ``UnknownImageError`` is a ``KeyError`` too."""
        return self.get(id_)

    def __iter__(self) -> Iterator[ImageRecord]:
        """``for record in store`` iterates over ``records()``."""
        return self.records()

    def sources(self, id_: int, most: int | None = None) -> list[str]:
        """Up to ``most`` sources of image ``id_``; ``lookup`` takes each but those of "memory:"."""
        number = _whole(id_, "an id")
        limit = _whole(most, "most") if most is not None else 1 << 62
        if limit < 0:
            raise UsageError(f"most must be 0 or more, not {limit}")
        self._session.follow()
        self._session.snapshot.get(number)  # UnknownImageError if there is none
        names, _ = self._session.snapshot.sources_of(number, limit)
        return [os.fsdecode(name) for name in names]

    def thumbnail(self, id_: int, size: int = 128) -> bytes:
        """Image ``id_`` as the bytes of a PNG.

        Its longer side has at most ``size`` pixels (1 to 4,096). The pixels are the kept ones, or those
        of a source that still holds this image. Smaller images are not enlarged. Raises
        ``UnknownImageError`` if there is no such image, and ``ImageError`` if its pixels cannot be read
        or it is a vector.
        """
        number, side = _whole(id_, "an id"), _whole(size, "size=")
        if not 1 <= side <= _MAX_THUMBNAIL:
            raise UsageError(f"size= must be 1 to {_MAX_THUMBNAIL:,} pixels, not {side}")
        self._session.follow()
        return self._again(lambda: self._thumbnail(number, side))

    def vectors(self, ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """The vectors of images, in the order of ``ids``: (n, dim) float32.

        The row of an image without a vector is NaN. They are as ``search_vectors`` compares them: of
        length 1 where the encoder or ``normalize=`` made them so. Each call reads the ids of all
        vectors, 8 bytes each. Raises ``UnknownImageError`` if there is no such image, and
        ``UsageError`` if the store has no vectors.
        """
        wanted = [_whole(id_, "an id") for id_ in ids]
        self._session.follow()
        return self._again(lambda: self._vectors(wanted))

    def _vectors(self, wanted: list[int]) -> npt.NDArray[np.float32]:
        snapshot = self._session.snapshot
        if not snapshot.space.exists:
            raise UsageError(f'{self.path} has no vectors: it was created with encoder="none"')
        for id_ in dict.fromkeys(wanted):
            if not 0 < id_ < snapshot.state.next_id or snapshot.record(id_) is None:
                raise UnknownImageError(f"{self.path} has no image {id_}")
        ids = np.array(wanted, np.int64)
        out = np.full((len(ids), snapshot.space.dim), np.nan, np.float32)
        vectors = snapshot.open_vectors()
        try:
            rows = vectors.rows_of(ids, snapshot.state.next_id)
            out[rows >= 0] = vectors.gather(rows[rows >= 0])
        finally:
            vectors.close()
        return out

    def _thumbnail(self, id_: int, size: int) -> bytes:
        self._session.snapshot.get(id_)  # UnknownImageError if there is none
        query = stored_query(self._session, id_)
        if query.vector is not None:
            why = query.unreadable or "it is a vector, and has no pixels"
            raise ImageError(f"{query.name}: {why}")
        return thumbnail_png(query.decode(self._session.memory.decoding).pixels, size)

    def records(self, start: int = 1) -> Iterator[ImageRecord]:
        """The records of all images from id ``start`` on, in the order of ids.

        It reads about a thousand records at a time, each thousand as of the newest commit. So it also
        yields images that are committed during the iteration, and yields none twice. The ``Store`` may
        be used for anything else in between.
        """
        start = _whole(start, "an id")
        if start < 1:
            raise UsageError(f"ids begin at 1: start at 1 or more, not {start}")
        return self._records(start)

    def _records(self, start: int) -> Iterator[ImageRecord]:
        while True:
            self._session.follow()
            records = records_from(self._session.snapshot, start, self._session.limits.read_records)
            if not records:
                return
            yield from records
            start = records[-1].id + 1

    def info(self) -> StoreInfo:
        """Counts, bytes by part, encoder and segments."""
        files = self._session
        files.follow()
        # These may move to a newer commit.
        texts, pairs = self._again(self._takes_texts), self._again(self._random_pairs)
        space = files.snapshot.space
        return StoreInfo(
            path=str(self.path),
            uuid=files.snapshot.manifest.uuid,
            format=FORMAT_VERSION,
            images=files.snapshot.state.images,
            vectors=files.snapshot.state.live_vectors,
            sources=files.snapshot.state.sources,
            removed=files.snapshot.state.removed,
            rejects=files.snapshot.tables.rejects.count(),
            bytes={part: tree_bytes(self.path / part) for part in (*_PARTS, REJECTS, ballast.NAME)},
            encoder=None
            if not space.exists
            else {
                "name": space.name,
                "dim": space.dim,
                "generation": space.generation,
                "fingerprint": space.fingerprint,
                "normalized": space.is_cosine,
                "text": texts,
            },
            segments=[
                {"rows": s.rows, "bytes": s.bytes, "ordered": s.ordered}
                for s in files.snapshot.manifest.segments
            ],
            recall=recall_of(files.snapshot.manifest),
            random_pairs=pairs,
            reembed=self._unfinished_reembed(),
        )

    def _random_pairs(self) -> dict[str, float] | None:
        # A store of which something is damaged has an info too.
        try:
            index = self._index.current
            pairs = index.random_pairs if index is not None else None
        except MovedError:
            raise
        except StoreError:
            return None
        if pairs is None:
            return None
        shares = {"median": 0.5, "99 %": 0.99, "99.9 %": 0.999}
        return {name: round(score_at(pairs, share), 6) for name, share in shares.items()}

    def _takes_texts(self) -> bool | None:
        """Whether texts can be looked up; None if the encoder's description is damaged."""
        try:
            return self._text_tower() is not None
        except EncoderError:
            return None

    def _unfinished_reembed(self) -> dict[str, object] | None:
        """What an unfinished reembed has made so far, or None."""
        named = self._session.snapshot.manifest
        staged = staged_in(self.path, named)
        if staged is None:
            return None
        return {
            "name": staged.entry.name,
            "dim": staged.entry.dim,
            "fingerprint": staged.entry.fingerprint,
            "vectors": staged_rows(self.path, staged, bytes.fromhex(named.uuid)),
            "bytes": staged_bytes(self.path, staged),
        }

    def backup(
        self,
        dest: str | os.PathLike[str],
        *,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> BackupReport:
        """Copy the store to ``dest``, a new or empty folder, while others read it and write to it.

        The copy is a store with the same uuid, as of one commit made before or during the call. The
        call takes no lock and writes nothing to this store. Either the whole copy is durable at
        ``dest``, or nothing is there. ``progress(done, total)`` counts bytes.

        Raises ``UsageError`` if something is at ``dest``, ``StoreDamagedError``, or ``StoreError``
        (a full disk).
        """
        _ = self._session.snapshot.keys  # StoreError if it is closed or has failed
        return Backup(
            self.path, self._session.memory, folder_named(dest), progress, self._session.limits
        ).run()

    def export(
        self,
        dest: str | os.PathLike[str],
        *,
        format: str = "csv",
        vectors: bool = True,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> ExportReport:
        """Write the store's data to ``dest``, a new or empty folder, for other tools.

        ``images.csv`` has a row for each image, and ``sources.csv`` a row for each of its sources;
        ``format`` may be "parquet". ``vectors.npy`` is (n, dim) float32 and ``vector_ids.npy`` (n,)
        int64; a store without vectors has neither. All files are as of one commit.
        ``engine.maintenance.export`` documents the columns, and how names that are not text are
        written. ``progress(done, total)`` counts images.

        Raises ``UsageError`` if something is at ``dest``, ``StoreDamagedError`` or ``StoreError``;
        then nothing is at ``dest``.
        """
        self._session.follow()
        _ = self._session.snapshot.keys  # StoreError if it is closed or has failed
        run = Export(
            self._session, folder_named(dest), format=format, vectors=vectors, progress=progress
        )
        return run.run()


def _whole(value: object, name: str) -> int:
    """``value`` as an int; ``UsageError`` if it is not a whole number."""
    try:
        return whole(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, not {value!r:.60}") from None
