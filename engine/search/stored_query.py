"""Makes a query of an image in the store, from its kept pixels or from one of its sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError, ImageError, StoreDamagedError, UsageError
from engine.images import hashing
from engine.images.canonical import from_canonical
from engine.records import Decoded, Kind
from engine.sources.locate import is_folder
from engine.sources.named_arrays import exists
from engine.sources.query import Query, StoredVector, open_images
from engine.storage.session import Session

MAX_SOURCES = 1000  # sources of an image that are tried, at most


def stored_id(spec: str) -> int | None:
    """The id in ``#ID``; None if ``spec`` is something else, or a file has this name."""
    digits = spec[1:]
    is_id = spec.startswith("#") and digits.isascii() and digits.isdigit() and len(digits) < 19
    return int(digits) if is_id and not exists(spec) else None


def stored_query(store: Session, id_: int) -> Query:
    """Image ``id_`` as a query named ``#ID``.

    If its pixels are not kept and all of its sources are gone or have changed, the query is its vector.
    Raises ``ImageError`` if it has none, or if there is no such image.
    """
    name = f"#{id_}"
    try:
        record = store.snapshot.get(id_)
    except UsageError as error:
        raise ImageError(str(error)) from None
    stored = StoredVector(id_, store.snapshot.space.generation)
    if record.kind is Kind.VECTOR:
        return Query(name, None, None, _vector(store, id_), stored=stored)
    # No encoder could make an imported vector again.
    own = _vector(store, id_) if store.snapshot.space.of_images else None
    kept = store.snapshot.kept_whole(id_)
    if kept is not None:
        data, is_canonical = kept
        if is_canonical:
            decoded = Decoded(from_canonical(data), record.container)
            return Query(name, None, decoded, own_vector=own)
        return Query(name, data, None, own_vector=own)
    for _, decoded in in_sources(store, id_):
        if hashing.proof(decoded.pixels.canonical) == record.proof:
            return Query(name, None, decoded, own_vector=own)
    reason = "its pixels are not kept, and all of its sources are gone or have changed"
    vector = own if own is not None else _vector(store, id_)
    if vector is None:
        raise ImageError(f"{name}: {reason}: look up a file")
    return Query(name, None, None, vector, reason, stored=stored)


def _vector(store: Session, id_: int) -> npt.NDArray[np.float32] | None:
    """The vector of an image, (dim,); None if it has none."""
    if not store.snapshot.space.exists:
        return None
    vectors = store.snapshot.open_vectors()
    try:
        row = vectors.rows_of(np.array([id_], np.int64), store.snapshot.state.next_id)
        return vectors.gather(row)[0] if row[0] >= 0 else None
    finally:
        vectors.close()


def in_sources(store: Session, id_: int) -> Iterator[tuple[Query, Decoded]]:
    """The readable images in the sources of an image; a changed source may have another image."""
    try:
        names = store.snapshot.sources_of(id_, MAX_SOURCES)[0]
    except StoreDamagedError:
        return
    for name in names:
        source = os.fsdecode(name)
        # Do not wait for standard input, and do not search a folder that has taken a file's place.
        if source == "-" or is_folder(Path(source)):
            continue
        try:
            for query in open_images(source, store.memory.max_file):
                if isinstance(query, Query) and query.vector is None:
                    yield query, query.decode(store.memory.decoding)
        except EngineError:
            continue
