"""The plan of an ingest: what a dry run of it reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.api.encoder_files import installed_bytes
from engine.api.open_store import NO_ENCODER, encoder_named
from engine.config import DEFAULT_ENCODER
from engine.ingest.dry_run import DryRun
from engine.ingest.vector_arrays import check_admission
from engine.records import IngestPlan
from engine.sources.source_stream import Sources
from engine.sources.sources_with_vectors import SourcesWithVectors
from engine.storage.snapshot import Snapshot
from engine.storage.vector_space import NO_VECTORS


def planned(
    store: Snapshot | None,
    folder: Path,
    given: Sources | SourcesWithVectors,
    encoder: str | None,
    *,
    keep_pixels: str,
    normalize: bool,
    progress: Callable[[int], None] | None,
) -> IngestPlan:
    """What an ingest into the store in ``folder`` would do; ``store`` is None if it would be made."""
    if store is not None and isinstance(given, SourcesWithVectors):
        check_admission(store, given.dim, normalize=normalize)
    space = store.space if store is not None else NO_VECTORS
    dim, new = space.dim if space.has_encoder else 0, 0
    if not space.exists and (encoder or store is None) and encoder != NO_ENCODER:
        found = encoder_named(encoder or DEFAULT_ENCODER)
        dim, new = found.dim, installed_bytes(found)
    plan = DryRun(
        store,
        dim=dim if encoder != NO_ENCODER else 0,
        keep_pixels=keep_pixels,
        normalize=normalize,
        disk_bytes=new,
    )
    return plan.run(given, folder, progress)
