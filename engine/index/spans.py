"""Maps the labels of a segment to vector rows, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.index.inner_product import Numbers
from engine.storage.manifest import SegmentEntry
from engine.storage.vectors import Vectors


class Span(NamedTuple):
    """Consecutive rows of a segment, labelled from ``label`` on."""

    label: int
    row: int
    rows: int


def spans_of(vectors: Vectors, entry: SegmentEntry) -> list[Span]:
    """The spans of a live segment over ``vectors``, by label."""
    spans, label = [], 0
    for extent, first, rows in entry.ranges:
        at = vectors.first_of(extent)
        assert at is not None  # the extents of a live segment are committed
        spans.append(Span(label, at + first, rows))
        label += rows
    return spans


def rows_of(spans: Sequence[Span], labels: Numbers) -> Numbers:
    """The vector rows of labels, in any shape; -1 stays -1."""
    if len(spans) == 1:
        first = spans[0].row
        return np.where(labels >= 0, labels + first, -1) if first else labels
    starts = np.array([span.label for span in spans])
    moved = np.array([span.row - span.label for span in spans])
    return np.where(labels >= 0, labels + moved[np.searchsorted(starts, labels, "right") - 1], -1)


def labels_of(spans: Sequence[Span], rows: Numbers) -> Numbers:
    """The labels of (n,) rows, -1 for rows outside of the spans."""
    labels = np.full(len(rows), -1, np.int64)
    for span in spans:
        here = (rows >= span.row) & (rows < span.row + span.rows)
        labels[here] = rows[here] - span.row + span.label
    return labels


def gaps(covered: Sequence[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    """The ranges of rows, (start, end), outside of the sorted ranges ``covered``."""
    found, at = [], 0
    for start, end in covered:
        if start > at:
            found.append((at, start))
        at = max(at, end)
    if at < rows:
        found.append((at, rows))
    return found
