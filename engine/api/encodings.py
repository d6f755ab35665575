"""The methods of ``Store`` that return the vectors of images and texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.api.open_store import OpenStore
from engine.config import cpu_count
from engine.errors import ImageError, UsageError, shortened
from engine.images.packed_bits import PackedBits
from engine.search.batches import batches
from engine.search.queries import QueryLike, queries_of, text_queries
from engine.search.stored_query import stored_query
from engine.sources.exclusions import NOTHING, Exclusions
from engine.sources.items import Reject
from engine.sources.query import Query

# A list that holds one of these is several queries. A list of numbers is an array.
QUERIES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, PackedBits)


class Encodings(OpenStore):
    """The methods of ``Store`` that encode queries."""

    def encode(self, images: Iterable[QueryLike]) -> npt.NDArray[np.float32]:
        """The vectors that the store's encoder makes of images: (n, dim) float32, of length 1.

        An image is anything that ``lookup`` takes; nothing is added to the store. They are decoded on
        all cores, in batches that fit ``memory=``. A row is zero if the encoder has no vector for an
        image. Raises ``ImageError`` for one that cannot be read, ``UsageError`` if the store has no
        encoder, and ``EncoderError``.
        """
        if isinstance(images, QUERIES):
            raise UsageError("images come in a list: encode([image]) is for one")
        self._session.follow()
        encoder, memory = self._again(self._own_encoder), self._session.memory
        asked = (self._only(image) for image in images)
        parts = [np.empty((0, encoder.dim), np.float32)]
        with ThreadPoolExecutor(cpu_count(), thread_name_prefix="engine-encode") as workers:

            def picture(query: Query) -> npt.NDArray[np.uint8]:
                try:
                    pixels = query.decode(memory.decoding).pixels
                except ImageError as error:
                    raise ImageError(f"{query.name}: {error}") from None
                return encoder.preprocessing.of(pixels)

            for batch in batches(asked, memory):
                parts.append(encoder.encode(list(workers.map(picture, batch))))
        return np.concatenate(parts)

    def encode_text(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors that the store's encoder makes of texts: (n, dim) float32, of length 1.

        ``search_vectors`` takes them. A text of more tokens than the encoder takes is cut, with a
        warning. A row is zero if the encoder has no vector for a text. Raises ``EncoderError``, and
        ``UsageError`` for an empty text, or if the store's encoder takes no texts.
        """
        named = [query.name for query in text_queries(texts)]
        self._session.follow()
        return self._again(self._own_text_encoder).encode(named)

    def _only(self, image: QueryLike) -> Query:
        """The one image that a caller named; ``UsageError`` if it is none, several, or a vector."""
        found = list(islice(self._queries_of(image, None), 2))
        if len(found) != 1:
            raise UsageError(
                f"{shortened(image)} holds {'several images' if found else 'no image'}"
            )
        if isinstance(found[0], Reject):
            raise ImageError(f"{os.fsdecode(found[0].name)}: {found[0].reason}")
        if found[0].unreadable:
            raise ImageError(f"{found[0].name}: {found[0].unreadable}")
        if found[0].vector is not None:
            raise UsageError(f"{found[0].name} is a vector: there is nothing to encode")
        return found[0]

    def _queries_of(
        self, query: object, number: int | None, exclude: Exclusions = NOTHING
    ) -> Iterator[Query | Reject]:
        vectors, memory = self.has_given_vectors, self._session.memory
        return queries_of(query, number, memory, self._stored_query, exclude, vectors=vectors)

    def _stored_query(self, id_: int) -> Query:
        return self._again(lambda: stored_query(self._session, id_))
