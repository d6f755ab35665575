"""From the recall that is wanted to how far a search looks: by what was measured on the store itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from engine.errors import UsageError
from engine.storage.manifest import Measured, OperatingPoint, QuantizerEntry

DEFAULT_RECALL = 0.95
MEASURED_K = (10, 100)  # the recall of searches for so many is measured
_UNMEASURED_SHARE = 16  # of the lists, until recall has been measured
_UNMEASURED_LISTS = 16


def check_recall(recall: float) -> float:
    """``UsageError`` unless it is a share in (0, 1]."""
    good = isinstance(recall, int | float | np.floating) and not isinstance(recall, bool)
    if not (good and 0 < recall <= 1):
        raise UsageError(
            f"recall is the share of the nearest that is to be found, above 0 and at most 1, "
            f"not {recall!r}"
        )
    return float(recall)


def choose(
    measured: Measured | None, quantizer: QuantizerEntry, k: int, recall: float | None
) -> OperatingPoint | None:
    """How far to look for k images with ``recall`` (None: what the store wants); None is everywhere."""
    wanted = recall if recall is not None else measured.target if measured else DEFAULT_RECALL
    if wanted >= 1:
        return None
    if measured is None or measured.quantizer != quantizer.number:
        if recall is not None:
            return None  # what is asked for is kept, and what is not is guessed
        nprobe = max(_UNMEASURED_LISTS, quantizer.nlist // _UNMEASURED_SHARE)
        return OperatingPoint(min(nprobe, quantizer.nlist), max(10 * k, 100), 0.0, 0.0)
    of = next((of for of in MEASURED_K if of >= k), MEASURED_K[-1])
    # None for so many where all are next to equal ones: then nothing is known of any part of the lists.
    points = dict(measured.points).get(of, ())
    for point in points:
        if point.recall_lower_bound >= wanted:
            break
    else:
        return None
    if k <= of:
        return replace(point, nprobe=min(point.nprobe, quantizer.nlist))
    # More than was measured: their share of lists and candidates, for which the wanted k lie in as many
    # more lists at most, wherever these are. Of cheaper points, too, one may look farther in one way.
    times = k / of
    enough = points[: points.index(point) + 1]
    nprobe = math.ceil(max(one.nprobe for one in enough) * times)
    depth = math.ceil(max(one.rerank_depth for one in enough) * times)
    nprobe = min(nprobe, quantizer.nlist)
    return OperatingPoint(nprobe, depth, point.recall, point.recall_lower_bound)
