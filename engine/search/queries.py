"""Makes queries from what a caller gives a lookup: paths, bytes, arrays, PIL images, ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.config import MemoryBudget, whole
from engine.encoders.text import require_text
from engine.errors import ImageError, UsageError, shortened
from engine.images import canonical
from engine.images.packed_bits import PackedBits
from engine.records import Decoded
from engine.search.stored_query import stored_id
from engine.sources.exclusions import NOTHING, Exclusions
from engine.sources.in_memory import decoded_image, unlike
from engine.sources.items import Reject
from engine.sources.query import Query, open_images
from engine.sources.vectors import vector_of

QueryLike = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | npt.NDArray[Any]
    | Image.Image
    | PackedBits
    | int
)


def queries_of(
    query: object,
    number: int | None,
    memory: MemoryBudget,
    stored: Callable[[int], Query],
    exclude: Exclusions = NOTHING,
    *,
    vectors: bool = False,
) -> Iterator[Query | Reject]:
    """The queries in what a caller gave: nearly always one image.

    ``number`` is its position among several, None if it is alone. If it cannot be read, it is a
    ``Reject``, or raises ``ImageError`` if alone. ``stored`` returns the image of an id as a query.
    ``exclude``: see ``open_images``. ``vectors``: a float array (d,) is a query too.
    """
    try:
        if vectors and _is_vector(query):
            yield Query(_called("vector", number), None, None, vector_of(query))
        else:
            yield from _queries(query, number, memory, stored, exclude)
    except (ImageError, UsageError) as error:
        if number is None:
            raise
        yield Reject(os.fsencode(_name(query, number)), str(error))


def rows_of(images: npt.NDArray[Any]) -> Iterator[Query]:
    """The images of an array; all get the kind of the whole array, as in an ingest."""
    if images.dtype != np.bool_ and images.dtype != np.uint8:
        for number, image in enumerate(images):
            found = Decoded(canonical.from_array(image), "array")
            yield Query(_called("array", number), None, found)
        return
    kind = canonical.array_kind(images)
    for number in range(len(images)):
        (row,) = canonical.rows_from_array(images[number : number + 1], kind)
        found = Decoded(canonical.from_canonical(row.tobytes()), "array")
        yield Query(_called("array", number), None, found)


def text_query(text: object) -> Query:
    """A text as a query; ``UsageError`` if it is not text, or is empty."""
    return Query(require_text(text), None, None, is_text=True)


def text_queries(texts: object) -> list[Query]:
    """Texts as queries; ``UsageError`` if they are not a list of texts, or one is empty."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise UsageError(f"texts= is a list of texts, not {shortened(texts)}")
    return [text_query(text) for text in texts]


def _queries(
    query: object,
    number: int | None,
    memory: MemoryBudget,
    stored: Callable[[int], Query],
    exclude: Exclusions,
) -> Iterator[Query | Reject]:
    if isinstance(query, str | os.PathLike):
        spec = _path(query)
        id_ = stored_id(spec)
        if id_ is None:
            yield from open_images(spec, memory.max_file, exclude)
        else:
            yield stored(id_)
    elif _is_id(query):
        yield stored(whole(query))
    elif isinstance(query, Query):
        yield query
    elif isinstance(query, bytes | bytearray | memoryview):
        yield Query(_called("bytes", number), bytes(query), None)
    elif isinstance(query, PackedBits | Image.Image):
        kind = "bits" if isinstance(query, PackedBits) else "image"
        yield Query(_called(kind, number), None, decoded_image(query, memory.decoding))
    else:
        array = _as_array(query)
        # NumPy makes such an array of None, for example.
        if array.ndim == 0:
            raise UsageError(
                f"a query is a path, a file's bytes, an array, a PIL image, PackedBits or an id, not "
                f"{type(query).__name__}"
            )
        if array.ndim == 1:
            raise UsageError(
                f"an array of shape {array.shape} is no image: search_vectors takes vectors"
            )
        yield Query(_called("array", number), None, Decoded(canonical.from_array(array), "array"))


def _is_id(query: object) -> TypeGuard[int | np.integer[Any]]:
    return isinstance(query, int | np.integer) and not isinstance(query, bool)


def _is_vector(query: object) -> TypeGuard[npt.NDArray[np.floating[Any]]]:
    return isinstance(query, np.ndarray) and query.ndim == 1 and query.dtype.kind == "f"


def _path(query: str | os.PathLike[str]) -> str:
    """A path as text; ``ImageError`` if it cannot be the name of a file."""
    try:
        return os.fsdecode(os.fsencode(query))
    except UnicodeEncodeError:
        raise ImageError(f"a file cannot be named {str(query)!r}") from None


def _as_array(query: object) -> npt.NDArray[Any]:
    """An image as an array; ``UsageError`` if it is not one."""
    try:
        return np.asarray(query)
    except (TypeError, ValueError, RuntimeError) as error:
        why = unlike(query) or " ".join(str(error).split())
        raise UsageError(f"a query is not an array of numbers: {why}") from None


def _called(kind: str, number: int | None) -> str:
    """The name in its result of a query that has none."""
    return kind if number is None else f"image {number}"


def _name(query: object, number: int) -> str:
    """The name in its result of one of several queries that cannot be looked up."""
    if _is_id(query):
        return f"#{query}"
    if not isinstance(query, str):
        return _called("", number)
    try:
        os.fsencode(query)
    except UnicodeEncodeError:
        return _called("", number)
    return query
