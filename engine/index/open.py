"""Keeps the index of a store open, as the store's newest snapshot has it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.errors import StoreError
from engine.index.search import VectorIndex
from engine.storage import nofollow
from engine.storage.bitmap import IdSet
from engine.storage.durable import cannot_read
from engine.storage.manifest import Manifest
from engine.storage.state import State
from engine.storage.vectors import Vectors

_TRIES = 10  # to open an index, while a writer publishes others
_log = logging.getLogger("engine.index")


class IndexedSnapshot(Protocol):
    """What the index needs of a snapshot, which does not change."""

    @property
    def path(self) -> Path:
        """The folder of the store."""

    @property
    def manifest(self) -> Manifest:
        """Which files are live."""

    @property
    def state(self) -> State:
        """How many rows of them are committed."""

    @property
    def files(self) -> object:
        """What is open; another object once files were replaced under their names."""

    def open_vectors(self) -> Vectors:
        """The committed vectors; whoever asks closes them."""

    def alive(self) -> IdSet | None:
        """The images that are there; None where none of those with a vector was removed."""

    def those_alive(self, wanted: IdSet) -> IdSet:
        """Those of the wanted images that are there; the same set for the same question."""


class IndexedStore(Protocol):
    """What the index needs of an open store."""

    @property
    def snapshot(self) -> IndexedSnapshot:
        """The commit that this process sees; ``StoreError`` if the store is closed."""

    def read_index(self) -> bool:
        """Take the index from the manifest as it is now, and all else as it was; whether it changed."""


def has_index_files(store: Path, named: Manifest) -> bool:
    """Whether all files of the index that a manifest names are there.

    ``StoreError`` where that cannot be told, as of a folder that one may not open.
    """
    for path in named.index_files(Path()):
        try:
            if nofollow.status(store, path.as_posix()) is None:
                return False
        except OSError as error:
            raise cannot_read(store / path, error) from None
    return True


class OpenIndex:
    """The index of one open store, opened when it is first needed and again when it has changed.

    One thread at a time may ask for it. What is given may be searched by several, and stays open while
    it is used as a context, whatever happens here.
    """

    def __init__(
        self,
        store: IndexedStore,
        *,
        tries: int = _TRIES,
        has_files: Callable[[Path, Manifest], bool] = has_index_files,
    ) -> None:
        self._store = store
        self._tries = tries
        self._has_files = has_files
        self._index: VectorIndex | None = None
        self._snapshot: IndexedSnapshot | None = None  # that it was last asked for
        self._key: tuple[object, ...] = ()

    @property
    def current(self) -> VectorIndex | None:
        """The vectors with their segments; None for a store without vectors.

        ``StoreError`` if the store is closed.
        """
        snapshot = self._store.snapshot
        if not snapshot.manifest.space.exists:
            self.close()
            return None
        if self._index is not None and snapshot is self._snapshot:
            return self._index
        if self._index is None or self._key != _key(snapshot):
            self.close()
            self._index = self._open()
            snapshot = self._store.snapshot  # opening may have gone over to another index
            self._key = _key(snapshot)
        self._snapshot = snapshot
        return self._index

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        recall: float | None = None,
        wanted: IdSet | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k images whose vectors are closest to each of (nq, dim) queries: scores and ids, (nq, k).

        Best first, padded with -inf and -1; of images that are there, and ``wanted`` if that is said.
        ``recall``: the share of them to be found, 1 for all. ``StoreError`` for a store without vectors.
        """
        index, among = self.to_search(wanted)
        with index:
            return index.search_ids(queries, k, recall=recall, wanted=among)

    def to_search(self, wanted: IdSet | None) -> tuple[VectorIndex, IdSet | None]:
        """The index, and which images it may find, if not all: those that are there and ``wanted``.

        ``StoreError`` for a store without vectors.
        """
        index, snapshot = self.current, self._store.snapshot
        if index is None:
            raise StoreError(f"{snapshot.path} has no vectors")
        return index, snapshot.alive() if wanted is None else snapshot.those_alive(wanted)

    def close(self) -> None:
        """Let go of it; the next call opens it again."""
        if self._index is not None:
            self._index.close()
        self._index, self._snapshot, self._key = None, None, ()

    def _open(self) -> VectorIndex:
        started = time.perf_counter()
        for _ in range(self._tries):
            if not self._is_there():
                self._store.read_index()  # the writer may have merged them since the manifest was read
            index = self._make()
            try:
                if self._is_there() or not self._store.read_index():
                    break  # whole, or as damaged as the manifest has it
            except BaseException:
                index.close()
                raise
            index.close()
        else:
            index = self._make()
        for problem in index.problems:
            _log.warning("%s", problem)
        _log.debug(
            "%s: opened %d vectors with %d segments in %.3f s",
            self._store.snapshot.path,
            index.vectors.rows,
            len(index.segments),
            time.perf_counter() - started,
        )
        return index

    def _is_there(self) -> bool:
        snapshot = self._store.snapshot
        return self._has_files(snapshot.path, snapshot.manifest)

    def _make(self) -> VectorIndex:
        snapshot = self._store.snapshot
        vectors = snapshot.open_vectors()
        try:
            vectors.open_all()
            return VectorIndex(
                snapshot.path,
                vectors,
                snapshot.manifest.quantizers,
                snapshot.state.live_segments(snapshot.manifest),
                snapshot.manifest.measured,
            )
        except BaseException:
            vectors.close()
            raise


def _key(snapshot: IndexedSnapshot) -> tuple[object, ...]:
    """What an index is opened from: it is another one once this is."""
    named = snapshot.manifest
    parts = snapshot.state.vector_parts(named.space)
    return (
        snapshot.files,
        named.space,
        tuple(map(tuple, parts)),
        named.segments,
        named.quantizers,
        named.measured,
    )
