"""AVIF: the items of a file, the places of their bytes, and their relations (ISO 14496-12)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.errors import ImageError
from engine.images.formats.boxes import boxes, first, number

_MAX_ITEMS = 4096
# For all items together. An extent or a link may be declared in less than a byte, but takes a hundred.
_MAX_EXTENTS = 10_000
_MAX_LINKS = 1 << 16  # properties of items, and references from one to another


@dataclass(slots=True)
class AvifItem:
    """A picture, or a part of one."""

    kind: bytes = b""
    extents: list[tuple[bool, int, int]] = field(default_factory=list)  # in idat, offset, length
    properties: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)  # of a grid


class AvifItems(NamedTuple):
    """The items of a ``meta`` box by number, and the numbers of each item's alpha items."""

    items: dict[int, AvifItem]
    alphas: dict[int, list[int]]

    def read_for(self, main: int) -> Iterator[AvifItem]:
        """Yield the items that a decoder reads for ``main``: with its alpha, and the tiles of both."""
        nothing = AvifItem()
        wanted = dict.fromkeys([main, *self.alphas.get(main, [])])
        for each in list(wanted):
            wanted |= dict.fromkeys(self.items.get(each, nothing).parts)
        # A grid may have an alpha item for each tile.
        for each in list(wanted):
            wanted |= dict.fromkeys(self.alphas.get(each, []))
        return (self.items.get(each, nothing) for each in wanted)


def descriptions(meta: memoryview) -> Iterator[memoryview]:
    """Yield the description of each item in a ``meta`` box: the contents of the ``infe`` boxes."""
    infos = first(meta, b"iinf")
    if infos is not None:
        for name, info in boxes(infos[6 if infos[0] == 0 else 8 :]):
            if name == b"infe":
                yield info


def kind_of(info: memoryview) -> memoryview:
    """Return the four letters for an item's kind, as a view into its description."""
    at = 8 if info[0] == 2 else 10
    return info[at : at + 4]


def primary_of(meta: memoryview) -> int | None:
    """Return the number of the item that is the picture, or None."""
    primary = first(meta, b"pitm")
    return None if primary is None else number(primary, 4, 2 if primary[0] == 0 else 4)


def items_of(meta: memoryview) -> AvifItems:
    """Return the items of a ``meta`` box; ``IndexError`` or ``ImageError`` if it is malformed."""
    items: dict[int, AvifItem] = {}
    for info in descriptions(meta):
        if info[0] >= 2:
            wide = 2 if info[0] == 2 else 4
            items.setdefault(number(info, 4, wide), AvifItem()).kind = bytes(kind_of(info))
    _locate(first(meta, b"iloc"), items)
    links = 0
    associations = first(meta, b"iprp")
    if associations is not None:
        for name, content in boxes(associations):
            if name == b"ipma":
                links += _associate(content, items)
                _refuse_many(links)
    alphas: dict[int, list[int]] = {}
    references = first(meta, b"iref")
    if references is not None:
        wide = 2 if references[0] == 0 else 4
        for name, content in boxes(references[4:]):
            source, count = number(content, 0, wide), number(content, wide, 2)
            links += count
            _refuse_many(links)
            targets = [number(content, wide + 2 + wide * i, wide) for i in range(count)]
            if name == b"dimg":
                items.setdefault(source, AvifItem()).parts += targets
            elif name == b"auxl":
                for target in targets:
                    alphas.setdefault(target, []).append(source)
    return AvifItems(items, alphas)


def _locate(content: memoryview | None, items: dict[int, AvifItem]) -> None:
    if content is None:
        return
    version = content[0]
    offset_size, length_size = content[4] >> 4, content[4] & 15
    base_size, index_size = content[5] >> 4, content[5] & 15 if version in (1, 2) else 0
    wide = 2 if version < 2 else 4
    count, at, left = number(content, 6, wide), 6 + wide, _MAX_EXTENTS
    for _ in range(min(count, _MAX_ITEMS)):
        item, at = items.setdefault(number(content, at, wide), AvifItem()), at + wide
        within = False
        if version in (1, 2):
            within, at = number(content, at, 2) & 15 == 1, at + 2
        at += 2  # data reference
        base, at = number(content, at, base_size), at + base_size
        extents, at = number(content, at, 2), at + 2
        left -= extents
        if left < 0:
            raise ImageError(f"broken image: an AVIF file in more than {_MAX_EXTENTS:,} pieces")
        for _ in range(extents):
            at += index_size
            offset, at = number(content, at, offset_size), at + offset_size
            length, at = number(content, at, length_size), at + length_size
            item.extents.append((within, base + offset, length))


def _refuse_many(links: int) -> None:
    if links > _MAX_LINKS:
        raise ImageError("broken image: too many properties or references in an AVIF file")


def _associate(content: memoryview, items: dict[int, AvifItem]) -> int:
    """Give items their properties; return how many there are."""
    wide, large = (2 if content[0] < 1 else 4), content[3] & 1
    count, at, given = number(content, 4, 4), 8, 0
    for _ in range(min(count, _MAX_ITEMS)):
        item, at = items.setdefault(number(content, at, wide), AvifItem()), at + wide
        properties, at = content[at], at + 1
        given += properties
        _refuse_many(given)
        for _ in range(properties):
            value, at = number(content, at, 1 + large), at + 1 + large
            item.properties.append(value & (0x7FFF if large else 0x7F))
    return given
