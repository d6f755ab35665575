"""Computes damaged fingerprints again from the pixels of their images."""

from __future__ import annotations

import numpy as np

from engine.images import fingerprint
from engine.maintenance.check.damage import DamagedAppend
from engine.maintenance.repair.appends import Appends, first_row
from engine.maintenance.repair.outcome import Outcome, named
from engine.maintenance.repair.pixels import ImagePixels
from engine.storage.writer import StoreFiles

_BYTES = fingerprint.FINGERPRINT_BYTES


def mend_fingerprints(
    store: StoreFiles,
    appends: Appends,
    pixels: ImagePixels,
    outcome: Outcome,
    append: DamagedAppend,
) -> None:
    """Overwrite the fingerprints of a damaged append; one whose pixels are lost stays as it is."""
    data = appends.read(append)
    lost = []
    row = first_row(append.family, append.place)
    ids = np.arange(row, row + len(data) // _BYTES, dtype=np.int64) + 1
    bare = ~store.may_be_images(ids)
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
    lost = store.those_there(lost)
    if lost:
        outcome.set_aside(
            append.family.folder,
            f"{named(lost)}: a fingerprint may be wrong, and the pixels are neither kept nor in "
            f"a source any more",
        )
