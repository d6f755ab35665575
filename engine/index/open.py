"""Keeps the index of a store open, as of the store's newest snapshot."""

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

_TRIES = 10  # attempts to open an index while a writer publishes others
_log = logging.getLogger("engine.index")


class IndexedSnapshot(Protocol):
    """The part of a snapshot that the index needs."""

    @property
    def path(self) -> Path:
        """The folder of the store."""

    @property
    def manifest(self) -> Manifest:
        """The manifest, which names the live files."""

    @property
    def state(self) -> State:
        """The committed state, which has the numbers of rows."""

    @property
    def files(self) -> object:
        """The open files; another object once files were replaced under their names."""

    def open_vectors(self) -> Vectors:
        """The committed vectors; the caller closes them."""

    def alive(self) -> IdSet | None:
        """The images that are there; None if no image with a vector was removed."""

    def those_alive(self, wanted: IdSet) -> IdSet:
        """The wanted images that are there; the same set object for the same ``wanted``."""


class IndexedStore(Protocol):
    """The part of an open store that the index needs."""

    @property
    def snapshot(self) -> IndexedSnapshot:
        """The commit that this process sees; ``StoreError`` if the store is closed."""

    def read_index(self) -> bool:
        """Take only the index from the newest manifest; returns whether it changed."""


def has_index_files(store: Path, named: Manifest) -> bool:
    """Whether all files of the index that a manifest names are there.

    ``StoreError`` if that cannot be found out, for example in a folder without permission.
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

    One thread at a time may use this object. The index that it returns may be searched by several
    threads, and stays open while it is used as a context, even if this object closes it.
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
        self._snapshot: IndexedSnapshot | None = None  # of the last call of ``current``
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
            snapshot = self._store.snapshot  # opening may have switched to another index
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

        Best first, padded with -inf and -1. Only images that are there are found, and only ``wanted``
        ones if that is not None. ``recall`` is the share of them to find, 1 for all. ``StoreError`` for
        a store without vectors.
        """
        index, among = self.to_search(wanted)
        with index:
            return index.search_ids(queries, k, recall=recall, wanted=among)

    def to_search(self, wanted: IdSet | None) -> tuple[VectorIndex, IdSet | None]:
        """The index, and the images that it may find, None for all: existing and ``wanted`` ones.

        ``StoreError`` for a store without vectors.
        """
        index, snapshot = self.current, self._store.snapshot
        if index is None:
            raise StoreError(f"{snapshot.path} has no vectors")
        return index, snapshot.alive() if wanted is None else snapshot.those_alive(wanted)

    def close(self) -> None:
        """Close the index; the next call opens it again."""
        if self._index is not None:
            self._index.close()
        self._index, self._snapshot, self._key = None, None, ()

    def _open(self) -> VectorIndex:
        started = time.perf_counter()
        for _ in range(self._tries):
            if not self._is_there():
                # The writer may have merged segments since the manifest was read.
                self._store.read_index()
            index = self._make()
            try:
                if self._is_there() or not self._store.read_index():
                    break  # the files are there, or are missing in the newest manifest too
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
    """The parts of a snapshot that an index depends on: if they change, it is opened again."""
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
