"""Which pictures of a training run are held out: those of a folder, else a share by their names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from engine.training.cache import PictureFile
from engine.training.run_sources import utf8

HELD_OUT_SHARE = 0.05
HELD_OUT_IMAGES = 1024  # at most so many are held out
_MIN_IMAGES = 64  # in all: of fewer none are held out by their names


def split(
    file: PictureFile, share: float | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows to train on and the rows that are held out, each in their order."""
    by_folder = (file.rows["held_out"] != 0) & (share != 0)
    out, most = by_folder, HELD_OUT_IMAGES
    n = len(out)
    if share and not out.any() and n >= _MIN_IMAGES:
        out = np.ones(n, np.bool_)
        most = min(most, round(share * n))
    left = np.flatnonzero(out)
    hashes = np.array(
        [xxhash.xxh3_64_intdigest(utf8(file.texts.names[row])) for row in left], np.uint64
    )
    kept = np.sort(left[np.argsort(hashes, kind="stable")[:most]])
    # By folder, what is over the limit is not trained on either.
    trained = np.flatnonzero(~by_folder)
    return np.setdiff1d(trained, kept, assume_unique=True), kept
