"""Encodes new images in batches, until the run is to stop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from engine.encoders.onnx import EncodingStoppedError, OnnxEncoder
from engine.images.preprocessing import Preprocessing
from engine.ingest.prepare import Picture, PreparedImage
from engine.ingest.stopping import Stopping
from engine.storage.session import Session

Vector = npt.NDArray[np.float32]  # (dim,)
_LAST_BATCH = 8


class Encoding:
    """The encoder of one run, if it has one."""

    def __init__(self, store: Session, encoder: OnnxEncoder | None, stopping: Stopping) -> None:
        self._store = store
        self._encoder = encoder
        self._stopping = stopping

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures become the encoder's input; None if images get no vectors."""
        return self._encoder.preprocessing if self._encoder is not None else None

    def max_decoding(self) -> int:
        """Bytes for all images that are decoded at a time, beside the encoder."""
        memory = self._store.memory
        if self._encoder is None:
            return memory.decoding
        return memory.beside_encoder(self._encoder.name, self._encoder.needs)

    @property
    def enabled(self) -> bool:
        """Whether images get vectors."""
        return self._encoder is not None

    def disable(self) -> None:
        """Give no more vectors to images."""
        self._encoder = None

    def encode(self, pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
        """The vectors (n, dim) of a batch; (0, dim) if the run stops before they are made."""
        if self._encoder is None:
            return np.empty((0, 0), np.float32)
        if pictures and not self._stopping.late():
            with suppress(EncodingStoppedError):
                return self._encoder.encode(pictures, self._stopping.late)
        return np.empty((0, self._encoder.dim), np.float32)

    def encode_new(self, images: Sequence[PreparedImage | None]) -> list[Vector | None]:
        """The vector of each image, None for those that are not new; fewer if the run stops.

        In ``images``, None stands for an image that is known by the hash of its file.
        """
        if self._encoder is None:
            return [None] * len(images)
        keys = [one.image.key for one in images if one is not None]
        known = iter(self._store.snapshot.images_of(keys))
        out: list[Vector | None] = []
        made: dict[bytes, Vector] = {}  # by proof: of equal images, any may be the one added
        batch: list[PreparedImage | None] = []
        fresh: dict[bytes, Picture] = {}
        for number, one in enumerate(images, 1):
            batch.append(one)
            if one is not None:
                proof = one.image.proof
                there = any(row.proof == proof for row in next(known))
                if not there and proof not in made and one.picture is not None:
                    fresh[proof] = one.picture
            # Once the run is to stop, batches are small: those done when time is up are committed.
            most = self._store.memory.encode_batch
            if self._stopping.asked():
                most = min(most, _LAST_BATCH)
            if len(fresh) < most and number < len(images):
                continue
            vectors = self.encode(list(fresh.values()))
            if len(vectors) < len(fresh):
                break
            made.update(zip(fresh, vectors, strict=True))
            out += [made.get(one.image.proof) if one is not None else None for one in batch]
            batch, fresh = [], {}
        return out
