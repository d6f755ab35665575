"""The sources that a caller passes to an ingest, on the disk or in memory, as one stream of items."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from engine.config import MemoryBudget, parse_memory
from engine.errors import ImageError, UsageError
from engine.images.packed_bits import PackedBits
from engine.sources.exclusions import Patterns
from engine.sources.in_memory import OneImage, array_of, is_image, members, unlike
from engine.sources.items import Item
from engine.sources.metadata import checked_metadata
from engine.sources.source_stream import Sources
from engine.sources.sources_with_vectors import SourcesWithVectors
from engine.sources.vector_files import open_vectors

Stream = Iterable[
    tuple[str, OneImage]
    | tuple[str, OneImage, dict[str, Any] | None]
    | tuple[str, OneImage, dict[str, Any] | None, npt.ArrayLike | None]
]


class InMemory:
    """Images in memory, with the interface of ``Sources``."""

    def __init__(self, items: Iterable[Item], count: int | None) -> None:
        self._items = items
        self._count = count

    def count(self) -> int | None:
        """The number of items; None for a stream."""
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)


Given = Sources | SourcesWithVectors | InMemory


def given_sources(
    sources: Sequence[object],
    *,
    name: str | None,
    metadata: dict[str, Any] | None,
    files_from: str | os.PathLike[str] | None,
    recursive: bool,
    null: bool,
    exclude: Patterns,
    memory: MemoryBudget,
) -> Sources | InMemory:
    """The sources of an ingest; ``UsageError`` if they are not valid, before anything is read."""
    given = _in_memory(sources, name, metadata, memory.decoding)
    if given is None:
        return Sources(
            paths_of(sources),
            files_from=files_from,
            recursive=recursive,
            null=null,
            exclude=exclude,
        )
    if len(sources) > 1 or files_from is not None:
        raise UsageError("images in memory are ingested alone: call ingest once for each")
    return given


def check_sources(
    sources: Sequence[str],
    *,
    files_from: str | None,
    recursive: bool,
    null: bool,
    exclude: Patterns,
    vectors: str | None,
    encoder: str | None,
    memory: str | None,
) -> None:
    """``UsageError`` if an ingest would refuse these sources, or the vectors that go with them."""
    named = Sources(sources, files_from=files_from, recursive=recursive, null=null, exclude=exclude)
    if vectors is not None:
        with ExitStack() as stack:
            sources_with_vectors(named, vectors, encoder, parse_memory(memory), stack)


def sources_with_vectors(
    sources: Sources | InMemory,
    vectors: str | os.PathLike[str],
    encoder: str | None,
    memory: MemoryBudget,
    stack: ExitStack,
) -> SourcesWithVectors:
    """Sources with the vectors of a file, which is open until ``stack`` is closed.

    ``UsageError`` if they do not go together.
    """
    if isinstance(sources, InMemory):
        raise UsageError(
            "vectors= is for files; images in memory bring theirs in a stream of (name, image, "
            "metadata, vector)"
        )
    if encoder is not None and encoder != "none":
        raise UsageError(
            "vectors= brings vectors, and encoder= makes others: leave one of them out"
        )
    found = open_vectors(vectors, memory.block)
    stack.callback(found.close)
    return SourcesWithVectors(sources, found)


def _in_memory(
    sources: Sequence[object], name: str | None, metadata: dict[str, Any] | None, most: int
) -> InMemory | None:
    """The images passed to ``ingest``, if they are in memory; else None."""
    for source in sources:
        other = unlike(source)
        if other:
            raise UsageError(f"a source must be a path, or images in memory, not {other}")
        one = is_image(source)
        if metadata is not None and not one:
            break
        if one:
            try:
                checked_metadata(metadata)
            except ImageError as error:
                raise UsageError(str(error)) from None
            # Read it now, so that anything but an image is an error before any work is done.
            found = list(members([(name or "", source, metadata)], most, strict=True))
            return InMemory(found, 1)
        if isinstance(source, PackedBits | np.ndarray):
            array = array_of(source, name or "")
            return InMemory([array], array.count)
        if name is None and _is_stream(source):
            return InMemory(members(source, most), None)
    if metadata is not None:
        raise UsageError("metadata= is for one image in memory; images of a stream have their own")
    if name is not None:
        raise UsageError("name= is for images in memory; images of a stream have their own")
    return None


def _is_stream(source: object) -> TypeGuard[Iterable[object]]:
    """Whether ``source`` may be pairs of names and images; a list of paths is not."""
    if isinstance(source, str | os.PathLike | Mapping | io.IOBase):
        return False
    if not isinstance(source, Iterable):
        return False
    listed = isinstance(source, list | tuple | set | frozenset)
    return not (listed and any(isinstance(part, str | os.PathLike) for part in source))


def paths_of(sources: Sequence[object]) -> list[str]:
    """Sources as paths; ``UsageError`` if one is not a path."""
    found = []
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            raise UsageError(
                f"a source must be a path, each its own argument, or images in memory, "
                f"not a {type(source).__name__}"
            )
        found.append(os.fspath(source))
    return found
