"""Chooses how far a search looks for a wanted recall, by measurements on the store itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from engine.errors import UsageError
from engine.storage.manifest import Measured, OperatingPoint, QuantizerEntry

DEFAULT_RECALL = 0.95
MEASURED_K = (10, 100)  # the k for which recall is measured
_UNMEASURED_SHARE = 16  # until recall is measured, one in so many lists is probed
_UNMEASURED_LISTS = 16  # or so many lists, if that is more


def check_recall(recall: float) -> float:
    """A recall as a float; ``UsageError`` unless it is a share in (0, 1]."""
    good = isinstance(recall, int | float | np.floating) and not isinstance(recall, bool)
    if not (good and 0 < recall <= 1):
        raise UsageError(
            f"recall is the share of the nearest to find, above 0 and at most 1, not {recall!r}"
        )
    return float(recall)


def choose(
    measured: Measured | None, quantizer: QuantizerEntry, k: int, recall: float | None
) -> OperatingPoint | None:
    """How far to look for k images with ``recall`` (None: the store's target); None is everywhere."""
    wanted = recall if recall is not None else measured.target if measured else DEFAULT_RECALL
    if wanted >= 1:
        return None
    if measured is None or measured.quantizer != quantizer.number:
        # A recall that a caller asked for is guaranteed; the store's default is a guess until measured.
        if recall is not None:
            return None
        nprobe = max(_UNMEASURED_LISTS, quantizer.nlist // _UNMEASURED_SHARE)
        return OperatingPoint(min(nprobe, quantizer.nlist), max(10 * k, 100), 0.0, 0.0)
    of = next((of for of in MEASURED_K if of >= k), MEASURED_K[-1])
    # There are no points for this k if all vectors had equal neighbours: then nothing was measured.
    points = dict(measured.points).get(of, ())
    for point in points:
        if point.recall_lower_bound >= wanted:
            break
    else:
        return None
    if k <= of:
        return replace(point, nprobe=min(point.nprobe, quantizer.nlist))
    # More than was measured: lists and candidates grow with k, since k times as many images lie in at
    # most k times as many lists. A cheaper point may have more lists or a larger depth, so take the
    # largest of both.
    times = k / of
    enough = points[: points.index(point) + 1]
    nprobe = math.ceil(max(one.nprobe for one in enough) * times)
    depth = math.ceil(max(one.rerank_depth for one in enough) * times)
    nprobe = min(nprobe, quantizer.nlist)
    return OperatingPoint(nprobe, depth, point.recall, point.recall_lower_bound)
