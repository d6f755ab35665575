"""The ids of images that have a record, as far as the records could be read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.storage.bitmap import IdSet


class KnownImages:
    """The images that were found by their records."""

    def __init__(self, next_id: int) -> None:
        """``next_id`` is the first id that no image was given."""
        self._next_id = next_id
        self.ids = IdSet.none(next_id)
        self.complete = False  # whether all records could be read
        self.count = 0
        self.vectors = 0  # images that are vectors without pixels
        self.without_pixels = IdSet.none(next_id)  # the ids of these

    def add(self, ids: npt.NDArray[np.int64], has_key: npt.NDArray[np.bool_]) -> None:
        """Add images with a record, (n,) both; vectors have no key."""
        self.ids.add(ids)
        self.count += len(ids)
        self.vectors += int((~has_key).sum())
        self.without_pixels.add(ids[~has_key])

    def have_records(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each of (n,) ids has a record, or may have one if not all could be read: (n,)."""
        return self.ids.has(ids) if self.complete else self.were_given(ids)

    def were_given(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each of (n,) ids was ever given to an image: (n,)."""
        given: npt.NDArray[np.bool_] = (ids > 0) & (ids < self._next_id)
        return given

    def missing(self) -> IdSet:
        """The ids that were given to an image but have no record."""
        every = IdSet.none(self._next_id)
        every.add_span(1, self._next_id - 1)
        return every.without(self.ids)
