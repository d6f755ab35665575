"""Boxes of ISO base media files, which AVIF and JPEG 2000 are made of."""

from __future__ import annotations

from collections.abc import Iterator

from engine.errors import ImageError

_MAX_BOXES = 10_000


def boxes(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The name and content of each box that lies directly in ``view``.

    Raises ``ImageError`` for one that does not end within it.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > len(view):
            return
        size = int.from_bytes(view[at : at + 4], "big")
        name = bytes(view[at + 4 : at + 8])
        head = 8
        if size == 1:
            size, head = int.from_bytes(view[at + 8 : at + 16], "big"), 16
        elif size == 0:  # to the end
            size = len(view) - at
        if size < head or at + size > len(view):
            raise ImageError(f"broken image: a box {name!r} of {size:,} bytes does not fit")
        yield name, view[at + head : at + size]
        at += size
    raise ImageError("broken image: too many boxes")


def first(view: memoryview, *path: bytes) -> memoryview | None:
    """The content of the first box of each name in turn, one inside the other."""
    found: memoryview | None = view
    for name in path:
        if found is None:
            return None
        found = next((content for each, content in boxes(found) if each == name), None)
    return found
