"""The part of a lookup that needs no store: a query's pixels, fingerprints, and resized picture."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.errors import ImageError
from engine.images import fingerprint, hashing
from engine.images.preprocessing import Preprocessing
from engine.images.rgb_picture import pil_rgb8
from engine.records import Decoded, Kind
from engine.sources.query import Query

Bytes = npt.NDArray[np.uint8]


class Stage:
    """Adds the milliseconds spent inside to a stage; costs a third of a generator's context manager."""

    __slots__ = ("_name", "_spent", "_started")

    def __init__(self, spent: dict[str, float], name: str) -> None:
        self._spent = spent
        self._name = name
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = (perf_counter() - self._started) * 1e3
        self._spent[self._name] = self._spent.get(self._name, 0.0) + spent


class QueryWork:
    """One query of a lookup. Each part is computed once, when it is first needed.

    ``ahead`` computes all parts early. It may run in another thread, since nothing here is shared.
    """

    def __init__(
        self,
        query: Query,
        *,
        max_decoding: int,
        max_distance: int | None,
        preprocessing: Preprocessing | None,
        hash_seed: int | None = None,
    ) -> None:
        """``max_decoding`` is in bytes. Where one is None, ``ahead`` makes no fingerprints
        (``max_distance``), no picture (``preprocessing``), or no hashes (``hash_seed``).
        """
        self.query = query
        self.name = query.name
        self.spent: dict[str, float] = {}  # milliseconds of each stage
        # (1, dim): the image's imported one, or None until it is encoded.
        own = query.own_vector
        self.vector: npt.NDArray[np.float32] | None = own[None] if own is not None else None
        self._own_vector = self.vector
        self._max_decoding = max_decoding
        self._max_distance = max_distance
        self._preprocessing = preprocessing
        self._hash_seed = hash_seed
        self._file_hash: bytes | None = None
        self._decoded: Decoded | None = None
        self._key: bytes | None = None
        self._prints: Bytes | None = None
        self._shown: Image.Image | None = None  # between the fingerprints and the encoder's input
        self._picture: Bytes | None = None
        self._error: ImageError | None = None

    def stage(self, name: str) -> Stage:
        """A context manager that counts the time spent inside for a stage."""
        return Stage(self.spent, name)

    def file_hash(self) -> bytes | None:
        """The SHA-256 of the query's file; None if it did not come as a file."""
        if self._file_hash is None and self.query.data is not None:
            with self.stage("identical"):
                self._file_hash = hashing.file_hash(self.query.data)
        return self._file_hash

    def decoded(self) -> Decoded:
        """The query's pixels; ``ImageError`` if it cannot be decoded."""
        if self._error is not None:
            raise self._error
        if self._decoded is None:
            with self.stage("decode"):
                self._decoded = self.query.decode(self._max_decoding)
        return self._decoded

    def key(self, hash_seed: int) -> bytes:
        """The key of its pixels in a store with this seed."""
        if self._key is None:
            canonical = self.decoded().pixels.canonical
            with self.stage("identical"):
                self._key = hashing.key(canonical, hash_seed)
        return self._key

    def prints(self, max_distance: int) -> Bytes:
        """The fingerprints that an image within ``max_distance`` may have: (m, 32) uint8."""
        if self._prints is None:
            pixels = self.decoded().pixels
            with self.stage("near"):
                if pixels.kind is not Kind.BITS:
                    self._shown = pil_rgb8(pixels)
                self._prints = fingerprint.candidates(pixels, max_distance, self._shown)
        return self._prints

    def picture(self, preprocessing: Preprocessing) -> Bytes:
        """The encoder's input: (size, size, 3) uint8."""
        if self._picture is None:
            pixels = self.decoded().pixels
            with self.stage("encode"):
                self._picture = preprocessing.of(pixels, self._shown)
                self._shown = None
        return self._picture

    def forget_encoding(self) -> None:
        """Drop the picture and the vector of an encoder, to make those of another one."""
        self._picture = None
        self.vector = self._own_vector

    @property
    def has_picture(self) -> bool:
        """Whether ``picture`` was computed ahead."""
        return self._picture is not None

    def ahead(self) -> None:
        """Compute all parts; an ``ImageError`` is raised later, by ``decoded``."""
        try:
            if self._hash_seed is not None:
                self.file_hash()
            self.decoded()
            if self._hash_seed is not None:
                self.key(self._hash_seed)
            if self._max_distance is not None:
                self.prints(self._max_distance)
            if self._preprocessing is not None:
                self.picture(self._preprocessing)
        except ImageError as error:
            self._error = error
