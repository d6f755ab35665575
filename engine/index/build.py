"""Builds the segments of an index.

Files are written durably below ``root``, which is a store or a staging folder. They become live once
the manifest names them. Memory is bounded: vectors are coded in blocks, and codes are sorted in
pieces. A segment of several pieces is written piece by piece and then merged, list by list.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.index.background import BackgroundWork
from engine.index.quantizer import Quantizer, mean_closeness
from engine.index.segment import Segment
from engine.index.segment_layout import LABEL_BYTES
from engine.index.segment_writer import SortedLists, write_segment
from engine.storage.durable import remove
from engine.storage.index_files import segment_path
from engine.storage.manifest import QuantizerEntry, SegmentEntry
from engine.storage.vectors import Vectors

_MIN_PIECE = 1 << 14  # rows sorted at a time, however little memory there is
_MAX_PIECE = 1 << 20  # rows sorted at a time, at most
_log = logging.getLogger("engine.index")

Range = tuple[int, int, int]  # extent, first row in it, rows


def build_segment(
    root: Path,
    number: int,
    entry: QuantizerEntry,
    quantizer: Quantizer,
    vectors: Vectors,
    spans: Sequence[tuple[int, int]],
    work: BackgroundWork,
    *,
    min_piece: int = _MIN_PIECE,
    max_piece: int = _MAX_PIECE,
) -> tuple[SegmentEntry, float]:
    """Write segment ``number`` over ``spans`` of rows, (start, end); returns it and its mean closeness.

    The closeness of a row is its inner product with its centroid. Temporary pieces use the numbers
    from ``number + 1`` on. A piece has ``min_piece`` to ``max_piece`` rows, as many as memory allows.
    """
    started = time.perf_counter()
    budget = work.memory.training // (2 * (quantizer.code_bytes + LABEL_BYTES))
    piece_rows = max(min_piece, min(max_piece, budget))
    whole = [
        (at, min(at + piece_rows, end))
        for start, end in spans
        for at in range(start, end, piece_rows)
    ]
    closeness, finite = 0.0, 0
    made: list[SegmentEntry] = []
    try:
        for at, (start, end) in enumerate(whole):
            lists, close, count = _lists(quantizer, vectors, start, end, work)
            closeness += close * count
            finite += count
            ranges = _ranges(vectors, [(start, end)])
            own = number if len(whole) == 1 else number + 1 + at
            made.append(_write(root, own, entry, quantizer, ranges, [(lists, 0)], work))
        one = made[0]
        if len(whole) > 1:
            one = merge_segments(root, number, entry, quantizer, made, work)
        _log.info(
            "%s: built segment %d over %d vectors in %.1f s",
            root,
            number,
            sum(end - start for start, end in whole),
            time.perf_counter() - started,
        )
        return one, closeness / finite if finite else 1.0
    finally:
        for piece in made:
            if piece.number != number:
                remove(segment_path(root, piece.number), root)


def merge_segments(
    root: Path,
    number: int,
    entry: QuantizerEntry,
    quantizer: Quantizer,
    parts: Sequence[SegmentEntry],
    work: BackgroundWork,
) -> SegmentEntry:
    """Write segment ``number`` with the rows of all ``parts``."""
    started = time.perf_counter()
    pieces, label = [], 0
    for part in parts:
        opened = Segment(segment_path(root, part.number), part, quantizer)
        pieces.append((opened, label))
        label += part.rows
    ranges = [found for part in parts for found in part.ranges]
    made = _write(root, number, entry, quantizer, ranges, pieces, work)
    took = time.perf_counter() - started
    _log.info("%s: merged %d segments into segment %d in %.1f s", root, len(parts), number, took)
    return made


def _lists(
    quantizer: Quantizer, vectors: Vectors, start: int, end: int, work: BackgroundWork
) -> tuple[SortedLists, float, int]:
    """Code and sort rows; returns their mean closeness too, and of how many it is the mean."""
    lists = np.empty(end - start, np.int64)
    codes = np.empty((end - start, quantizer.code_bytes), np.uint8)
    close = np.empty(end - start, np.float32)
    at = 0
    for block in vectors.blocks(start, end, vectors.at_once):
        stop = at + len(block)
        lists[at:stop], codes[at:stop], close[at:stop] = quantizer.encode(block)
        at = stop
        vectors.let_go()
        work.report(len(block))
    return SortedLists(lists, codes, quantizer.nlist), *mean_closeness(close)


def _ranges(vectors: Vectors, spans: Sequence[tuple[int, int]]) -> list[Range]:
    """Spans of rows as ranges in extents."""
    return [found for start, end in spans for found in vectors.ranges(start, end)]


def _write(
    root: Path,
    number: int,
    entry: QuantizerEntry,
    quantizer: Quantizer,
    ranges: Sequence[Range],
    pieces: Sequence[tuple[SortedLists | Segment, int]],
    work: BackgroundWork,
) -> SegmentEntry:
    path = segment_path(root, number)
    size, xxh64 = write_segment(
        path, entry.number, quantizer.nlist, quantizer.code_bytes, pieces, work.check_stop
    )
    return SegmentEntry(number, entry.generation, entry.number, _joined(ranges), False, size, xxh64)


def _joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Ranges, with adjacent ones joined."""
    out: list[Range] = []
    for extent, first, rows in ranges:
        if out and out[-1][0] == extent and sum(out[-1][1:]) == first:
            out[-1] = (extent, out[-1][1], out[-1][2] + rows)
        else:
            out.append((extent, first, rows))
    return tuple(out)
