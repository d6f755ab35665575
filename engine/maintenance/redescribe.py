"""Replaces the metadata of one image, as one commit."""

from __future__ import annotations

import json
from typing import Any

from engine.errors import UsageError
from engine.storage.changeset import Chunk
from engine.storage.session import Session


def redescribe(store: Session, id_: int, metadata: dict[str, Any] | None) -> None:
    """Replace the metadata of image ``id_`` by ``metadata``, already checked; becomes the writer.

    ``UnknownImageError`` if there is no such image, ``UsageError`` for a row of an array.
    """
    # Before the lock is taken, and again after: another process may have written in between.
    _require_own_record(store, id_)
    store.become_writer()
    _require_own_record(store, id_)
    # Compared as JSON: 1, 1.0 and True are equal in Python, but not in a store.
    if json.dumps(store.snapshot.get(id_).metadata) != json.dumps(metadata):
        store.writer.commit(Chunk(redescribed=[(id_, metadata)]))


def _require_own_record(store: Session, id_: int) -> None:
    store.snapshot.get(id_)
    if store.snapshot.tables.records.is_shared(id_):
        raise UsageError(
            f"image {id_} is a row of an array, and rows have no metadata: ingest it as a file or "
            f"as one image with metadata="
        )
