"""Chooses the held-out pictures of a training run: those of a folder, else a share by their names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from engine.training.cache import PictureFile
from engine.training.run_sources import utf8

HELD_OUT_SHARE = 0.05
HELD_OUT_IMAGES = 1024  # the most that are held out
_MIN_SCORED = 2  # the fewest that can be scored
_MIN_IMAGES = 64  # the fewest images of a run of which a share is held out


def split(
    file: PictureFile, share: float | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows to train on and the held-out rows, each in order."""
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
    # Pictures of a held-out folder that exceed the limit are not trained on either.
    trained = np.flatnonzero(~by_folder)
    return np.setdiff1d(trained, kept, assume_unique=True), kept


def not_as_asked(file: PictureFile, share: float | None, kept: int) -> str:
    """Why ``kept`` pictures are held out instead of the requested ``share``; empty if as requested.

    The usual share comes from a recipe. It is no reason for a note that folders or the limit of
    pictures replace it.
    """
    if not share:
        return ""
    n, asked = len(file.rows), f"held_out= {share:g}"
    if file.rows["held_out"].any():
        note = f"{asked} is not used: {kept:,} of the {n:,} images are held out by their folder"
        return note if share != HELD_OUT_SHARE else ""
    if n < _MIN_IMAGES:
        return f"{asked} holds nothing out: it takes at least {_MIN_IMAGES} images, not {n:,}"
    wanted = round(share * n)
    if wanted < _MIN_SCORED:
        return (
            f"{asked} of {n:,} images is {wanted}, but scoring takes at least {_MIN_SCORED}: raise it "
            f"to {_MIN_SCORED / n:.2g} or more"
        )
    if wanted > kept and share != HELD_OUT_SHARE:
        return f"{asked} of {n:,} images is {wanted:,}: only {kept:,}, the maximum, are held out"
    return ""
