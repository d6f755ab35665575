"""Writes a segment's file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.index.segment_layout import (
    BLOCK,
    HEADER_BYTES,
    Codes,
    Labels,
    header,
    pack_codes,
    padded,
)
from engine.storage.durable import write_new
from engine.storage.index_files import make_index_folder

_BATCH_BYTES = 8 << 20  # bytes of lists collected before they are written


class CodedLists(Protocol):
    """Codes and labels, list by list."""

    sizes: npt.NDArray[np.int64]  # (nlist,)

    def take(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list; each list is read once, in ascending order."""


class SortedLists:
    """Coded rows sorted by list, from which a segment is written."""

    def __init__(self, lists: npt.NDArray[np.int64], codes: Codes, nlist: int) -> None:
        """``lists`` (n,) and ``codes`` (n, code bytes) of the rows labelled 0 to n - 1."""
        self.labels = np.argsort(lists, kind="stable")
        self.codes = codes[self.labels]
        self.sizes = np.bincount(lists, minlength=nlist)
        self._ends = np.cumsum(self.sizes)

    def take(self, number: int) -> tuple[Codes, Labels]:
        """The codes and labels of one list."""
        end = int(self._ends[number])
        start = end - int(self.sizes[number])
        return self.codes[start:end], self.labels[start:end]


def write_segment(
    path: Path,
    quantizer: int,
    nlist: int,
    code_bytes: int,
    pieces: Sequence[tuple[CodedLists, int]],
    step: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Write a segment with the joined lists of ``pieces``; returns its length and xxh64.

    Each piece comes with a number that is added to its labels. ``step`` is called after every few
    megabytes; an exception from it ends the writing. The file is durable when this returns, and live
    once the manifest names it. ``OSError`` if it cannot be written; then nothing is left of it.
    """
    root = path.parent.parent
    make_index_folder(root)
    sizes = np.sum([piece.sizes for piece, _ in pieces], axis=0).astype(np.uint32)
    head = header(quantizer, code_bytes, nlist, int(sizes.sum()))

    def parts() -> Iterator[bytes]:
        ready = [head.ljust(HEADER_BYTES, b"\0"), padded(sizes.tobytes())]
        size = 0
        for number in range(nlist):
            found = [(piece.take(number), raised) for piece, raised in pieces]
            codes = np.concatenate([codes for (codes, _), _ in found])
            labels = np.zeros(-(-len(codes) // BLOCK) * BLOCK, np.int64)
            labels[: len(codes)] = np.concatenate([mine + raised for (_, mine), raised in found])
            ready.append(padded(pack_codes(codes).tobytes() + labels.tobytes()))
            size += len(ready[-1])
            if size >= _BATCH_BYTES:
                step()
                yield b"".join(ready)
                ready, size = [], 0
        step()
        yield b"".join(ready)

    return write_new(path, parts(), root)
