"""Reads the pictures of sources as a stream, in which each picture always has the same number.

Only wanted pictures are read. So a source can be iterated several times, once for the queries and once
for the rest, with few pictures in memory.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.errors import ImageError, SourceError
from engine.images import canonical as px
from engine.images.decode import decode, memory_to_decode
from engine.images.rgb_picture import to_rgb8
from engine.sources.items import ArchiveItem, FileItem, Item, Member, Reject, Skipped, VectorItem
from engine.sources.metadata import CAPTIONS, LABELS
from engine.sources.source_stream import Sources

Array = npt.NDArray[np.uint8]

SIDE = 512
"""The longer side after shrinking, so that distortions in pixels mean the same for all pictures."""

_IN_FLIGHT = 32  # pictures that are decoded ahead
_MAX_CAPTIONS = 16  # of one picture
_MAX_FILE = 256 << 20  # bytes
_MAX_DECODING = 1 << 30  # bytes to decode one picture
_LARGE = 256 << 20  # bytes; pictures that take more to decode are decoded one at a time
_ROWS, _ROW_BYTES = 256, 8 << 20  # read of an array at a time

_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: (H, W, 3) uint8, or the reason why it has no pixels."""

    number: int  # its place in the stream, from 0
    name: str
    label: str | None
    rgb: Array | None
    reason: str = ""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    label: str | None
    read: Callable[[], Array]  # may raise ImageError
    captions: tuple[str, ...] = ()


class Stream:
    """All pictures of some sources, in order."""

    def __init__(self, specs: Iterable[str], pool: Executor) -> None:
        """``UsageError`` for a source that does not exist."""
        self._specs = list(specs)
        self._pool = pool
        self._listed: list[Item] | None = None  # the items of a pipe, which can be read only once
        if self._specs:
            Sources(self._specs)

    def names(self) -> Iterator[tuple[int, str]]:
        """The number and name of each picture; reads pixels only of arrays and archives."""
        for number, item in enumerate(self._items()):
            yield number, item.name

    def __call__(self, wanted: Callable[[int], bool] | None = None) -> Iterator[Picture]:
        """The pictures whose number is ``wanted``, or all."""
        waiting: deque[Future[Picture]] = deque()
        for number, item in enumerate(self._items()):
            if wanted is None or wanted(number):
                waiting.append(self._pool.submit(_load, number, item))
            if len(waiting) > _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _items(self) -> Iterator[_Item]:
        for spec in self._specs:
            if spec != "-":
                yield from _items_of(spec, Sources([spec]))
                continue
            if self._listed is None:
                self._listed = list(Sources([spec]))
            yield from _items_of(spec, self._listed)


def choose(numbers: Iterable[tuple[int, str]], most: int, seed: int) -> set[int]:
    """Up to ``most`` numbers of a stream, drawn by ``seed``, file name and place in the stream."""

    def draw() -> Iterator[tuple[int, int]]:
        for number, name in numbers:
            data = f"{seed}\0{Path(name).name}\0{number}".encode("utf-8", "surrogateescape")
            yield int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()), number

    return {number for _, number in heapq.nsmallest(most, draw())}


def shrunk(rgb: Array, side: int = SIDE) -> Array:
    """(H, W, 3) uint8 with the longer side shrunk to at most ``side``."""
    height, width, _ = rgb.shape
    factor = side / max(height, width)
    if factor >= 1:
        return rgb
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC, reducing_gap=3))


def _load(number: int, item: _Item) -> Picture:
    try:
        return Picture(number, item.name, item.label, item.read(), captions=item.captions)
    except ImageError as error:
        return Picture(number, item.name, item.label, None, str(error))
    except MemoryError:
        return Picture(number, item.name, item.label, None, "not enough memory to decode it")


def _items_of(spec: str, items: Iterable[Item]) -> Iterator[_Item]:
    root = Path(os.path.abspath(spec)) if Path(spec).is_dir() else None  # noqa: PTH100
    for item in items:
        try:
            yield from _of(item, root)
        except SourceError as error:
            name = spec if isinstance(item, Skipped) else os.fsdecode(item.name)
            yield _Item(name, None, _raises(str(error)))


def _of(item: Item, root: Path | None) -> Iterator[_Item]:
    if isinstance(item, Skipped):
        return
    name = os.fsdecode(item.name)
    if isinstance(item, Reject):
        yield _Item(name, None, _raises(item.reason))
    elif isinstance(item, FileItem):
        yield _Item(name, _folder(name, root), lambda: _decoded(item.read(_MAX_FILE)))
    elif isinstance(item, Member):
        yield _Item(name, _label(item.metadata), _reads(item), _captions(item.metadata))
    elif isinstance(item, ArchiveItem):
        for member in item.members(0, _MAX_FILE):
            if isinstance(member, Member):
                label = _label(member.metadata)
                captions = _captions(member.metadata)
                yield _Item(os.fsdecode(member.name), label, _reads(member), captions)
            elif isinstance(member, Reject):
                yield _Item(os.fsdecode(member.name), None, _raises(member.reason))
    elif isinstance(item, VectorItem):
        yield _Item(name, None, _raises("holds vectors: images are needed"))
    else:
        for block in item.blocks(0, _ROWS, _ROW_BYTES):
            for row, canonical in enumerate(block.rows, block.first):
                yield _Item(f"{name}#{row}", None, _from_row(canonical))


def _reads(member: Member) -> Callable[[], Array]:
    return lambda: _decoded(member.read(_MAX_FILE))


def _from_row(canonical: Array) -> Callable[[], Array]:
    return lambda: shrunk(to_rgb8(px.from_canonical(canonical.data)))


def _raises(reason: str) -> Callable[[], Array]:
    def read() -> Array:
        raise ImageError(reason)

    return read


def _decoded(data: bytes) -> Array:
    if memory_to_decode(data) <= _LARGE:
        return shrunk(to_rgb8(decode(data, max_bytes=_MAX_DECODING).pixels))
    with _large:
        return shrunk(to_rgb8(decode(data, max_bytes=_MAX_DECODING).pixels))


def _folder(name: str, root: Path | None) -> str | None:
    """The class of a file: the first folder below its source, if any."""
    if root is None:
        return None
    parts = Path(name).relative_to(root).parts
    return parts[0] if len(parts) > 1 else None


def _label(metadata: dict[str, object] | None) -> str | None:
    for field in LABELS:
        if metadata and field in metadata:
            return str(metadata[field])
    return None


def _captions(metadata: dict[str, object] | None) -> tuple[str, ...]:
    """The captions in the first field of them; a field may have one text or several."""
    for field in CAPTIONS:
        value = (metadata or {}).get(field)
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list):
            return tuple(text for text in value if isinstance(text, str))[:_MAX_CAPTIONS]
    return ()
