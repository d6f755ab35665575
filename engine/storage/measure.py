"""Measures recall on a sample of a store's own vectors: what exact search finds, found by codes.

Each vector of the sample is looked for as a query would be, itself left out. The result is, for some k,
the settings worth using: each costs more than the one before, and finds more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.storage.build import sample_of
from engine.storage.idset import IdSet
from engine.storage.index import VectorIndex
from engine.storage.manifest import Measured, OperatingPoint
from engine.storage.recall import MEASURED_K
from engine.storage.vectors import Numbers

_SAMPLE = 1000  # vectors that are looked for
_LARGE = 2_000_000  # vectors, of which half as many are looked for
_SEED = 20
_DEPTHS = (1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 100)  # times k
_MOST_DEPTH = 2000
_SAME = 1e-6  # of a score, by which those of equal vectors may differ
_ENOUGH = 0.9995  # recall beyond which wider searches are not measured
_CONFIDENCE = 1.645  # standard errors: 95 %, one-sided
_NEVER_MISSED = 3.0  # of n that were all found, no more than 3 in n are missed (95 %)
# What a search costs, in nanoseconds of one core: a list and a row of it for each byte of code, and a
# candidate, whose vector is compared in full. Only their ratio matters.
_ROW_BYTE_COST, _LIST_COST, _CANDIDATE_COST = 0.06, 40.0, 250.0


def measure(
    index: VectorIndex,
    alive: IdSet | None,
    target: float,
    done: Callable[[], None] = lambda: None,
) -> Measured:
    """Recall at settings from the narrowest to the widest that is worth it.

    ``alive``: images to be found, where not all are. ``done`` is called every second or so.
    """
    quantizer, entry = index.quantizer, index.quantizer_entry
    assert quantizer is not None and entry is not None
    vectors = index.vectors
    most = _SAMPLE if vectors.rows < _LARGE else _SAMPLE // 2
    rows, queries = sample_of(vectors, most, _SEED)
    good = np.isfinite(queries).all(axis=1) & (queries != 0).any(axis=1)
    if alive is not None:
        good &= alive.has(vectors.ids(rows))
    rows, queries = rows[good], queries[good]
    largest = max(MEASURED_K)
    scores, near = index.search(queries, largest + 2, recall=1.0, wanted=alive)
    scores = np.take_along_axis(scores, _own_last(near, rows), 1)
    truth = _without(near, rows, largest)
    truth[~index.is_indexed(truth)] = -1  # always found
    done()
    depth = min(_MOST_DEPTH, max(int(max(_DEPTHS) * largest), largest))
    found: dict[int, list[tuple[float, OperatingPoint]]] = {k: [] for k in MEASURED_K}
    each = vectors.rows / quantizer.nlist
    for nprobe in _grid(quantizer.nlist):
        ranks = _ranks(index.ranked(queries, nprobe, depth + 1, alive), rows, truth)
        done()
        least = 1.0
        for k in MEASURED_K:
            # Of vectors that are as near as the next one, any will do: users have duplicates.
            next_ = scores[:, k : k + 1]
            margin = np.where(np.isfinite(next_), _SAME * np.abs(next_), 0)
            there = (truth[:, :k] >= 0) & (scores[:, :k] > next_ + margin)
            wanted = there.sum(axis=1)
            if not wanted.any():
                continue  # all are next to vectors that are equal: nothing is measured
            for depth_ in sorted({min(int(times * k), depth) for times in _DEPTHS}):
                hits = ((ranks[:, :k] < depth_) & there).sum(axis=1)
                recall, surely = _recall(hits[wanted > 0], wanted[wanted > 0])
                cost = nprobe * (_LIST_COST + each * quantizer.code_bytes * _ROW_BYTE_COST)
                cost += depth_ * _CANDIDATE_COST
                found[k].append((cost, OperatingPoint(nprobe, depth_, recall, surely)))
            least = min(least, recall)
        if least >= _ENOUGH:
            break
    points = tuple((k, _worthwhile(found[k])) for k in MEASURED_K if found[k])
    return Measured(target, entry.number, vectors.rows, len(rows), points)


def _grid(nlist: int) -> list[int]:
    steps = {nlist}
    for power in range(nlist.bit_length()):
        steps |= {1 << power, 3 << power}
    return sorted(step for step in steps if step <= nlist)


def _without(found: Numbers, rows: Numbers, most: int) -> Numbers:
    """Of (n, m) rows found the first ``most`` that are not the query's own row."""
    out = np.where(found == rows[:, None], -1, found)
    return np.take_along_axis(out, _own_last(found, rows), 1)[:, :most]


def _own_last(found: Numbers, rows: Numbers) -> Numbers:
    """The order of (n, m) rows found in which the query's own comes last."""
    return np.argsort(found == rows[:, None], axis=1, kind="stable")


def _ranks(candidates: Numbers, rows: Numbers, truth: Numbers) -> Numbers:
    """The rank of each true neighbour (n, k) among the (n, depth) candidates, best first."""
    candidates = _without(candidates, rows, candidates.shape[1])
    order = np.argsort(candidates, axis=1)
    ranks = np.full(truth.shape, candidates.shape[1], np.int64)
    for i, (mine, sorted_, true) in enumerate(
        zip(candidates, np.take_along_axis(candidates, order, 1), truth, strict=True)
    ):
        at = np.minimum(np.searchsorted(sorted_, true), len(mine) - 1)
        same = (sorted_[at] == true) & (true >= 0)
        ranks[i, same] = order[i, at[same]]
    return ranks


def _recall(hits: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The mean share that was found, and what it is at least with 95 % confidence."""
    shares = hits / wanted
    mean = float(shares.mean())
    error = float(shares.std()) / max(len(shares), 1) ** 0.5
    rare = _NEVER_MISSED / float(wanted.sum())
    return mean, max(0.0, min(mean - _CONFIDENCE * error, 1.0 - rare))


def _worthwhile(
    points: list[tuple[float, OperatingPoint]],
) -> tuple[OperatingPoint, ...]:
    """The points that find more than every cheaper one."""
    best, kept = -1.0, []
    for _, point in sorted(points, key=lambda pair: (pair[0], pair[1].nprobe)):
        if point.surely > best:
            best = point.surely
            kept.append(point)
    return tuple(kept)
