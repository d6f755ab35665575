"""Makes hits of the ids that a tier found: with sources and metadata."""

from __future__ import annotations

import os

from engine.records import IdenticalHit, NearHit, Pixels, SimilarHit
from engine.search.near import NearImages
from engine.storage.session import Session


def identical_hit(
    store: Session, id_: int, verified: str, *, in_runs: bool = False
) -> IdenticalHit:
    """The hit of an image that is the query; ``in_runs``: what the image's row says."""
    names, count = _sources(store, id_, in_runs=in_runs)
    # Rows of arrays have none, and what is not read costs nothing.
    record = store.snapshot.record(id_) if not in_runs else None
    return IdenticalHit(id_, names, count, verified, record.metadata if record else None)


def near_hits(store: Session, query: Pixels, found: NearImages) -> tuple[NearHit, ...]:
    """The hits of images near a query, in their order."""
    values = query.height * query.width * query.channels
    hits = []
    for id_, distance, unlike in zip(*(column.tolist() for column in found), strict=True):
        record = store.snapshot.record(id_)
        if record is None:  # removed since
            continue
        names, count = _sources(store, id_)
        by_pixels = (None, None) if unlike < 0 else (unlike, values)
        hits.append(
            NearHit(id_, distance, by_pixels[0], names, count, by_pixels[1], record.metadata)
        )
    return tuple(hits)


def similar_hit(store: Session, id_: int, score: float) -> SimilarHit | None:
    """The hit of an image with its score; None if it was removed since."""
    record = store.snapshot.record(id_)
    if record is None:
        return None
    names, count = _sources(store, id_)
    return SimilarHit(id_, score, names, count, record.metadata)


def _sources(store: Session, id_: int, *, in_runs: bool = False) -> tuple[tuple[str, ...], int]:
    names, count = store.snapshot.sources_of(id_, in_runs=in_runs)
    return tuple([os.fsdecode(name) for name in names]), count
