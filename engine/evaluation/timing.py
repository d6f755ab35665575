"""Wraps an entrant, and measures how many pictures it encodes in how much time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.config import ENCODE_BATCH
from engine.errors import EncoderError
from engine.evaluation.entrants import Entrant
from engine.evaluation.pictures import Array

Vectors = npt.NDArray[np.float32]


class Timed:
    """Encodes in batches, and counts pictures and seconds."""

    def __init__(self, entrant: Entrant) -> None:
        self.entrant = entrant
        self.dim = entrant.dim
        self.images = 0
        self.seconds = 0.0

    def encode(self, pictures: Sequence[Array]) -> Vectors:
        """n pictures (H, W, 3) uint8 → (n, dim) float32, of unit length or zero."""
        out = np.empty((len(pictures), self.dim), np.float32)
        began = time.perf_counter()
        for start in range(0, len(pictures), ENCODE_BATCH):
            part = pictures[start : start + ENCODE_BATCH]
            try:
                vectors = self.entrant.encode(part)
            except EncoderError as error:
                raise EncoderError(f"{self.entrant.name}: {error}") from None
            if vectors.shape != (len(part), self.dim):
                raise EncoderError(
                    f"{self.entrant.name} returned an array of {vectors.shape} for {len(part)} "
                    f"pictures, instead of {(len(part), self.dim)}"
                )
            out[start : start + len(part)] = vectors
        self.seconds += time.perf_counter() - began
        self.images += len(pictures)
        return out
