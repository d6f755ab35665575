"""Replaces the metadata of one image, as one commit."""

from __future__ import annotations

import json
from typing import Any

from engine.errors import UsageError
from engine.storage.changeset import Chunk
from engine.storage.session import Session


def redescribe(store: Session, id_: int, metadata: dict[str, Any] | None) -> None:
    """Let ``metadata``, checked, be what is said of image ``id_``; the store becomes its writer.

    ``UnknownImageError`` if there is none, ``UsageError`` for a row of an array. What is refused is
    refused before the lock is taken, and again behind it: another process may have written until then.
    """
    _require_own_record(store, id_)
    store.become_writer()
    _require_own_record(store, id_)
    # As JSON: to Python 1, 1.0 and True are equal, and to a store they are not.
    if json.dumps(store.snapshot.get(id_).metadata) != json.dumps(metadata):
        store.writer.commit(Chunk(redescribed=[(id_, metadata)]))


def _require_own_record(store: Session, id_: int) -> None:
    store.snapshot.get(id_)
    if store.snapshot.tables.records.is_shared(id_):
        raise UsageError(
            f"image {id_} is a row of an array, of which no metadata is kept: ingest it as a file or "
            f"as one image with metadata="
        )
