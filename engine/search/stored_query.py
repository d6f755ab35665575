"""An image of the store as a query: its kept pixels, or what one of its sources still holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.errors import EngineError, ImageError, StoreDamagedError, UsageError
from engine.images import hashing
from engine.images.canonical import from_canonical
from engine.records import Decoded, Kind
from engine.sources.locate import is_folder
from engine.sources.named_arrays import exists
from engine.sources.query import Query, open_images
from engine.storage.session import Session

_SOURCES = 1000  # of an image that are tried


def stored_id(spec: str) -> int | None:
    """The id in ``#ID``; None of anything else, and where there is a file of this name."""
    digits = spec[1:]
    is_id = spec.startswith("#") and digits.isascii() and digits.isdigit() and len(digits) < 19
    return int(digits) if is_id and not exists(spec) else None


def stored_query(store: Session, id_: int) -> Query:
    """Image ``id_`` as a query, called ``#ID``.

    Raises ``ImageError`` if there is no such image, or if its pixels are not kept and none of its
    sources is as it was.
    """
    name = f"#{id_}"
    try:
        record = store.snapshot.get(id_)
    except UsageError as error:
        raise ImageError(str(error)) from None
    if record.kind is Kind.VECTOR:
        vectors = store.snapshot.open_vectors()
        try:
            row = vectors.rows_of(np.array([id_], np.int64), store.snapshot.state.next_id)
            return Query(name, None, None, vectors.gather(row)[0])
        finally:
            vectors.close()
    kept = store.snapshot.kept_whole(id_)
    if kept is not None:
        data, is_canonical = kept
        if is_canonical:
            return Query(name, None, Decoded(from_canonical(data), record.container))
        return Query(name, data, None)
    for _, decoded in in_sources(store, id_):
        if hashing.proof(decoded.pixels.canonical) == record.proof:
            return Query(name, None, decoded)
    raise ImageError(
        f"{name}: its pixels are not kept, and none of its sources is as it was: look up a file, or "
        f"ingest with keep_pixels="
    )


def in_sources(store: Session, id_: int) -> Iterator[tuple[Query, Decoded]]:
    """What the sources of an image hold by now, as far as it can be read: it may be another image."""
    try:
        names = store.snapshot.sources_of(id_, _SOURCES)[0]
    except StoreDamagedError:
        return
    for name in names:
        source = os.fsdecode(name)
        # Nobody waits for standard input here, and what has become a folder is not the image.
        if source == "-" or is_folder(Path(source)):
            continue
        try:
            for query in open_images(source, store.memory.max_file):
                if isinstance(query, Query) and query.vector is None:
                    yield query, query.decode(store.memory.decoding)
        except EngineError:
            continue
