"""Computes damaged fingerprints again from the pixels of their images."""

from __future__ import annotations

import numpy as np

from engine.images import fingerprint
from engine.maintenance.check.damage import DamagedAppend
from engine.maintenance.repair.appends import Appends
from engine.maintenance.repair.outcome import Outcome, named
from engine.maintenance.repair.pixels import ImagePixels
from engine.storage.extents import first_row
from engine.storage.session import Session

_BYTES = fingerprint.FINGERPRINT_BYTES


def mend_fingerprints(
    store: Session,
    appends: Appends,
    pixels: ImagePixels,
    outcome: Outcome,
    append: DamagedAppend,
) -> None:
    """Overwrite the fingerprints of a damaged append; those whose pixels are lost stay as they are.

    Raises ``StoreDamagedError`` if the pixels of some may come back with a disk.
    """
    data = appends.read(append)
    lost = []
    committed = store.snapshot.state.extents[append.family.name]
    row = first_row(committed, append.family, append.place)
    ids = np.arange(row, row + len(data) // _BYTES, dtype=np.int64) + 1
    bare = ~store.snapshot.may_be_images(ids)
    for i in range(len(ids)):
        at = i * _BYTES
        if bare[i]:
            data[at : at + _BYTES] = bytes(_BYTES)
            continue
        found = pixels.of(row + i + 1)
        if found is None:
            lost.append(row + i + 1)
            continue
        data[at : at + _BYTES] = fingerprint.fingerprint(found)[0]
    appends.overwrite(append, data)
    lost = store.snapshot.those_there(lost)
    pixels.require_gone(lost)
    if lost:
        outcome.set_aside(
            append.family.folder,
            f"{named(lost)}: a fingerprint may be wrong, and the pixels are no longer kept or in "
            f"a source",
        )
