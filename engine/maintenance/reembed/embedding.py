"""Encodes pictures in batches, and hands their vectors on in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from engine.encoders.onnx import EncodingStoppedError, OnnxEncoder
from engine.stop import StoppedError
from engine.storage.bitmap import IdSet

Rows = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class Embedding:
    """The vectors of some images, on their way to where they are kept."""

    def __init__(
        self,
        encoder: OnnxEncoder,
        keep: Callable[[Numbers, Rows], None],
        *,
        size: int,
        batch: int,
        chunk: int,
        stop: Callable[[], bool],
    ) -> None:
        """``keep(ids, vectors)`` makes (n,) and (n, dim) durable, about ``chunk`` at a time.

        ``size`` is the first id that no image has; ``batch`` is how many pictures are encoded at once.
        """
        self.done = 0  # vectors kept
        self.without = IdSet.none(size)  # images for which the encoder gives no vector
        self._encoder = encoder
        self._keep = keep
        self._batch = batch
        self._chunk = chunk
        self._stop = stop
        self._ids: list[Numbers] = []
        self._vectors: list[Rows] = []

    def take(
        self, found: Iterable[tuple[int, npt.NDArray[np.uint8]]], count: Callable[[int], None]
    ) -> None:
        """Embed all images; ``count(n)`` is called after each batch.

        Raises what ``found``, ``keep`` and the encoder raise, and ``StoppedError``; the vectors that are
        complete are kept first.
        """
        ids: list[int] = []
        pictures: list[npt.NDArray[np.uint8]] = []
        try:
            for id_, picture in found:
                ids.append(id_)
                pictures.append(picture)
                if len(ids) == self._batch:
                    self._encode(ids, pictures)
                    count(len(ids))
                    ids, pictures = [], []
            if ids:
                self._encode(ids, pictures)
                count(len(ids))
        finally:
            self._flush()

    def _encode(self, ids: list[int], pictures: list[npt.NDArray[np.uint8]]) -> None:
        try:
            vectors = self._encoder.encode(pictures, self._stop)
        except EncodingStoppedError:
            raise StoppedError from None
        numbers, real = np.array(ids, np.int64), vectors.any(axis=1)
        self.without.add(numbers[~real])
        self._ids.append(numbers[real])
        self._vectors.append(vectors[real])
        if sum(map(len, self._ids)) >= self._chunk:
            self._flush()

    def _flush(self) -> None:
        ids, vectors = self._ids, self._vectors
        # Emptied first, because this is called again after an error.
        self._ids, self._vectors = [], []
        count = sum(map(len, ids))
        if count:
            self._keep(np.concatenate(ids), np.concatenate(vectors))
            self.done += count
