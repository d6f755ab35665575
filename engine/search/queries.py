"""What a caller of a lookup gave, as queries: paths, bytes, arrays, PIL images, ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.config import MemoryBudget, whole
from engine.errors import ImageError, UsageError
from engine.images import canonical
from engine.images.packed_bits import PackedBits
from engine.records import Decoded
from engine.search.stored_query import stored_id
from engine.sources.exclusions import NOTHING, Exclusions
from engine.sources.in_memory import decoded_image, unlike
from engine.sources.items import Reject
from engine.sources.query import Query, open_images

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
) -> Iterator[Query | Reject]:
    """What there is to look up in what a caller gave: nearly always one image.

    ``number``: its place among many, of which one that cannot be read is a ``Reject``. Alone it is
    an ``ImageError``. ``stored`` gives the image of an id. ``exclude``: see ``open_images``.
    """
    try:
        yield from _queries(query, number, memory, stored, exclude)
    except (ImageError, UsageError) as error:
        if number is None:
            raise
        yield Reject(os.fsencode(_name(query, number)), str(error))


def rows_of(images: npt.NDArray[Any]) -> Iterator[Query]:
    """The images of an array, all of the kind that it has as a whole, as an ingest takes them."""
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
        if array.ndim == 0:  # as None is to NumPy
            raise UsageError(
                f"a query is a path, a file's bytes, an array, a PIL image, PackedBits or an id, not "
                f"{type(query).__name__}"
            )
        yield Query(_called("array", number), None, Decoded(canonical.from_array(array), "array"))


def _is_id(query: object) -> TypeGuard[int | np.integer[Any]]:
    return isinstance(query, int | np.integer) and not isinstance(query, bool)


def _path(query: str | os.PathLike[str]) -> str:
    """A path as text; ``ImageError`` for what no file can be called."""
    try:
        return os.fsdecode(os.fsencode(query))
    except UnicodeEncodeError:
        raise ImageError(f"no file can be called {str(query)!r}") from None


def _as_array(query: object) -> npt.NDArray[Any]:
    """An image as an array; ``UsageError`` for what is none."""
    try:
        return np.asarray(query)
    except (TypeError, ValueError, RuntimeError) as error:
        why = unlike(query) or " ".join(str(error).split())
        raise UsageError(f"a query is no array of numbers: {why}") from None


def _called(kind: str, number: int | None) -> str:
    """What a query that has no name is called in its result."""
    return kind if number is None else f"image {number}"


def _name(query: object, number: int) -> str:
    """What one of many that cannot be looked up is called in its result."""
    if _is_id(query):
        return f"#{query}"
    if not isinstance(query, str):
        return _called("", number)
    try:
        os.fsencode(query)
    except UnicodeEncodeError:
        return _called("", number)
    return query
