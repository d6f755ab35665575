"""Boxes of ISO base media files, the building blocks of AVIF and JPEG 2000."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.errors import ImageError

_MAX_BOXES = 10_000


class Box(NamedTuple):
    """A box as it declares itself; it may end beyond its file, or before its start."""

    name: bytes
    size: int  # bytes, with its header
    start: int  # of its content
    end: int

    def fits(self, view: memoryview) -> bool:
        """Return whether it lies within ``view``."""
        return self.start <= self.end <= len(view)


def walk(view: memoryview) -> Iterator[Box]:
    """Yield each box that begins directly in ``view``, up to the first one that does not fit.

    Raises ``ImageError`` for too many.
    """
    at = count = 0
    while at + 8 <= len(view):
        count += 1
        if count > _MAX_BOXES:
            raise ImageError("broken image: too many boxes")
        size = int.from_bytes(view[at : at + 4], "big")
        name = bytes(view[at + 4 : at + 8])
        head = 8
        if size == 1:
            size, head = int.from_bytes(view[at + 8 : at + 16], "big"), 16
        elif size == 0:  # up to the end
            size = len(view) - at
        yield Box(name, size, at + head, at + size)
        if size < head:
            return
        at += size


def boxes(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and content of each box that lies directly in ``view``.

    Raises ``ImageError`` for a box that does not end within it, and for too many.
    """
    for box in walk(view):
        if not box.fits(view):
            raise ImageError(f"broken image: a box {box.name!r} of {box.size:,} bytes does not fit")
        yield box.name, view[box.start : box.end]


def first(view: memoryview, *path: bytes) -> memoryview | None:
    """Return the content of the first box of each name in turn, one inside another; None without one."""
    found: memoryview | None = view
    for name in path:
        if found is None:
            return None
        found = next((content for each, content in boxes(found) if each == name), None)
    return found


def number(view: memoryview, at: int, size: int) -> int:
    """Return a big-endian number of ``size`` bytes; ``IndexError`` if it is not in ``view``."""
    if at + size > len(view):
        raise IndexError
    return int.from_bytes(view[at : at + size], "big")
