"""Iterates over a store in bounded memory: all records, and the sources of a bucket of ids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.records import ImageRecord
from engine.storage.image_rows import no_image
from engine.storage.record_rows import RecordRow, unpack_records
from engine.storage.runs import BUCKET_BITS
from engine.storage.snapshot import Snapshot

BUCKET = 1 << BUCKET_BITS  # ids
# Bytes of rows that are unpacked at a time: parsed metadata takes twenty times its JSON.
_MAX_BYTES = 1 << 20


def records_from(view: Snapshot, start: int, most: int) -> list[ImageRecord]:
    """Return about ``most`` images from id ``start`` on, in id order; empty at the end."""
    found: list[tuple[int, RecordRow]] = []
    size = 0
    for key, value in view.tables.records.scan_from(start):
        found += [(id_, record) for id_, record in unpack_records(key, value) if id_ >= start]
        size += len(value)
        if len(found) >= most or size >= _MAX_BYTES:
            break
    images = []
    rows = iter(view.images_of([record.key for _, record in found if record.key]))
    for id_, record in found:
        candidates = next(rows) if record.key else [no_image(id_)]
        row = next((row for row in candidates if row.id == id_), None)
        if row is None:
            raise StoreDamagedError(f"image {id_} has a record and no key; run 'engine check'")
        images.append(record.with_image(row))
    return images


def sources_of_bucket(
    view: Snapshot, bucket: int, there: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, bytes]]:
    """Yield id and name of each source of a bucket's images; ``there`` (4096,): ids that exist.

    Files come first, then rows of arrays. They are not sorted by id, because that would hold as many
    runs at a time as there are arrays with the same images.
    """
    first, tables = bucket * BUCKET, view.tables
    for key, _ in tables.sources.scan_from(first):
        id_, name = tables.sources.parts(key)
        if id_ >= first + BUCKET:
            break
        if there[id_ - first]:
            yield id_, name
    for run in tables.runs.of_one_from(first):
        if run.id >= first + BUCKET:
            break
        if there[run.id - first]:
            base = view.array_name(run.array)
            for row in range(run.row, run.row + run.count):
                yield run.id, b"%s#%d" % (base, row)
    for run in tables.runs.in_bucket(first):
        base = view.array_name(run.array)
        for at in range(run.count):
            if there[run.id - first + at]:
                yield run.id + at, b"%s#%d" % (base, run.row + at)
