"""Lists the images of a training run's sources with names, labels and splits; decodes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from engine.sources.items import FileItem, Item, Reject, Skipped, absolute
from engine.sources.metadata import LABELS
from engine.sources.source_stream import Sources

TRAIN = "train"
HELD_OUT = ("valid", "val", "test")
# In detection data sets, the folder of images beside "labels". It is not a label.
_IMAGES = "images"


def check_sources(sources: Sequence[str]) -> None:
    """``UsageError`` for a source that does not exist; reads nothing."""
    for source in sources:
        _parts(source)


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A source, or one of its splits."""

    sources: Sources
    base: bytes | None  # the folder that names are relative to; None: the item's own folder
    labels: str  # the folder that labels are relative to, itself relative to ``base``
    held_out: bool


@dataclass(frozen=True, slots=True)
class PictureName:
    """The name, label and split of an image, known before it is decoded."""

    name: str
    label: str | None
    held_out: bool


class RunSources:
    """The items of all sources, each file once; may be iterated several times."""

    def __init__(self, sources: Sequence[str]) -> None:
        """``UsageError`` for a source that does not exist."""
        self._parts = [part for source in sources for part in _parts(source)]
        # Keep the items of a pipe, which can be read only once.
        self._listed = list(self._found()) if "-" in sources else None
        self._spec = "\n".join(sources)

    def key(self, settings: tuple[object, ...]) -> tuple[str, int]:
        """The cache key, a hash of settings, names, stamps and sizes; and the number of items."""
        digest = xxhash.xxh3_128(utf8(f"{settings}\n{self._spec}\n"))
        total = 0
        for part, item in self:
            name = item.name
            if isinstance(item, Reject):
                digest.update(b"%d %b %b\n" % (part.held_out, name, utf8(item.reason)))
                continue
            # A synthetic set has no stamp, and its name does not contain its count.
            count = getattr(item, "count", 1) or 1
            stamp = b"%d %d %d" % (item.mtime_ns, item.size, count)
            digest.update(b"%d %b %b\n" % (part.held_out, name, stamp))
            total += count
        return str(digest.hexdigest()), total

    def __iter__(self) -> Iterator[tuple[SourcePart, Any]]:
        return iter(self._listed) if self._listed is not None else self._found()

    def _found(self) -> Iterator[tuple[SourcePart, Any]]:
        """Yield files, arrays, archives and rejects, each with its part."""
        seen: set[bytes] = set()
        for part in self._parts:
            for item in part.sources:
                if isinstance(item, Skipped) or _is_hidden(part, item):
                    continue
                name = item.name
                # Several links may lead to one file.
                if isinstance(item, FileItem):
                    name = os.path.realpath(name)
                mark = xxhash.xxh3_128_digest(name)
                if mark not in seen:
                    seen.add(mark)
                    yield part, item


def _parts(source: str) -> list[SourcePart]:
    folder = Path(source)
    if source == "-" or not folder.is_dir():
        return [SourcePart(Sources([source]), None, "", held_out=False)]
    base = absolute(source)
    splits = [name for name in HELD_OUT if (folder / name).is_dir()]
    if not splits or not (folder / TRAIN).is_dir():
        return [SourcePart(Sources([source]), base, "", held_out=False)]
    return [
        SourcePart(Sources([str(folder / name)]), base, name, held_out=name != TRAIN)
        for name in (TRAIN, *splits)
    ]


def _is_hidden(part: SourcePart, item: Item) -> bool:
    """Whether the name of a file, or of a folder around it, begins with a dot."""
    if part.base is None or not isinstance(item, FileItem):
        return False
    inside = item.name[len(part.base) :]
    return inside.startswith(b".") or b"/." in inside


def picture_name(
    part: SourcePart, name: bytes, metadata: dict[str, Any] | None = None
) -> PictureName:
    """The name of an image relative to its source, and its label from metadata or its folder."""
    if part.base is not None:
        inside = name[len(part.base) :].lstrip(b"/")
    # The text after "#" or "?" may hold slashes.
    else:
        ends = [at for at in (name.find(b"#"), name.find(b"?")) if at >= 0]
        inside = name[name.rfind(b"/", 0, min(ends, default=len(name))) + 1 :]
    shown = os.fsdecode(inside)
    said = next((metadata[key] for key in LABELS if key in metadata), None) if metadata else None
    if isinstance(said, str | int):
        return PictureName(shown, str(said), part.held_out)
    member = shown.partition("#")[2] or shown
    return PictureName(shown, _folder(member, part.labels), part.held_out)


def _folder(name: str, base: str) -> str | None:
    """The first folder of a name, relative to ``base``; None if there is none."""
    folders = [part for part in PurePosixPath(name).parts[:-1] if part not in ("/", ".", "..")]
    if base:
        folders = folders[1:]
        if folders[:1] == [_IMAGES]:
            folders = folders[1:]
    return folders[0] if folders else None


def utf8(text: str) -> bytes:
    """The bytes of a name for hashing; bytes of a file name that are not UTF-8 are kept."""
    return text.encode("utf-8", "surrogateescape")
