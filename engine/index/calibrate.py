"""Measures recall on a sample of a store's own vectors: what exact search finds, found by codes.

Each vector of the sample is looked for as a query would be, itself left out. The result is, for some k,
the settings worth using: each costs more than the one before, and finds more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.config import RECALL_SAMPLE, RERANK_DEPTHS
from engine.index.inner_product import Block, Numbers
from engine.index.operating_point import MEASURED_K
from engine.index.scan import CodeScan
from engine.index.search import VectorIndex
from engine.index.train import sample_of
from engine.storage.bitmap import IdSet
from engine.storage.manifest import Measured, OperatingPoint

_LARGE = 2_000_000  # vectors, of which half as many are looked for
_SAMPLE_BYTES = 32 << 20  # of them, at most
_MIN_SAMPLE = 128
_SEED = 20
_MAX_RERANK_DEPTH = 2000
_SAME = 1e-6  # of a score, by which those of equal vectors may differ
_ENOUGH = 0.9995  # recall beyond which wider searches are not measured
_CONFIDENCE = 1.645  # standard errors: 95 %, one-sided
_NEVER_MISSED = 3.0  # of n queries that found all, no more than 3 in n do not (95 %)
_LOST_BY = 10  # queries, that tell how much one misses that misses anything
_PROBE_RADII = (1.1, 1.2, 1.3, 1.4, 1.5, 1.65, 1.8, 2.0, 2.2, 2.5, 3.0, 4.0)
_FEWER = 0.95  # of the lists, at most, or leaving some out is not worth it
_BLOCK = 256  # queries whose distances to all lists are in hand
_FINER = 0.05  # of the missing recall: a point that is worth keeping finds as much more
_COARSER = 128  # lists, from which on not every fifth more is tried, but every second
# What a search costs, in nanoseconds of one core: a list and a row of it for each byte of code, and a
# candidate, whose vector is compared in full. Only their ratio matters.
_ROW_BYTE_COST, _LIST_COST, _CANDIDATE_COST = 0.1, 40.0, 300.0
_log = logging.getLogger("engine.index")


@dataclass(frozen=True, slots=True)
class _Sample:
    """Vectors that are looked for, with what exact search finds."""

    rows: Numbers  # (n,) of the vectors themselves
    queries: Block  # (n, dim)
    truth: Numbers  # (n, k) rows of the true neighbours, -1 for those in no segment
    scores: Block  # (n, k + 2) of the nearest, the vector itself last
    distances: Block  # (n, k): how many times as far as the nearest list that of each neighbour is
    # By radius: (n,) lists that lie within; None is no radius.
    in_radius: dict[float | None, Numbers]


def measure(
    index: VectorIndex,
    alive: IdSet | None,
    target: float,
    done: Callable[[], None] = lambda: None,
    *,
    sample: int = RECALL_SAMPLE,
    rerank_depths: Sequence[float] = RERANK_DEPTHS,
) -> Measured:
    """Recall at settings from the narrowest to the widest that is worth it.

    ``alive``: images to be found, where not all are. ``done`` is called every second or so. ``sample``:
    vectors that are looked for, at most; half as many where searches take long. ``rerank_depths``:
    candidates that are tried, as multiples of k.
    """
    started = time.perf_counter()
    entry, scan = index.quantizer_entry, index.scan
    assert entry is not None and scan is not None
    drawn = _draw(index, scan, alive, sample, done)
    largest = max(MEASURED_K)
    depth = min(_MAX_RERANK_DEPTH, max(int(max(rerank_depths) * largest), largest))
    found: dict[int, list[tuple[float, OperatingPoint]]] = {k: [] for k in MEASURED_K}
    lost = dict.fromkeys(MEASURED_K, 1.0)
    list_rows = index.vectors.rows / entry.nlist
    list_cost = _LIST_COST + list_rows * scan.quantizer.code_bytes * _ROW_BYTE_COST
    for nprobe in _grid(entry.nlist):
        candidates = index.ranked(drawn.queries, nprobe, depth + 1, alive)
        ranks = _ranks(candidates, drawn.rows, drawn.truth)
        done()
        least = 1.0
        for k in MEASURED_K:
            points, lost[k] = _points(
                drawn, k, nprobe, ranks, depth, list_cost, lost[k], rerank_depths
            )
            found[k] += points
            everywhere = [p.recall for _, p in points if p.probe_radius is None]
            least = min([least, *everywhere[-1:]])
        if least >= _ENOUGH:
            break
    kept = tuple((k, _worthwhile(found[k])) for k in MEASURED_K if found[k])
    _log.info(
        "measured recall with %d of %d vectors in %.1f s",
        len(drawn.rows),
        index.vectors.rows,
        time.perf_counter() - started,
    )
    return Measured(target, entry.number, index.vectors.rows, len(drawn.rows), kept)


def _draw(
    index: VectorIndex, scan: CodeScan, alive: IdSet | None, sample: int, done: Callable[[], None]
) -> _Sample:
    vectors = index.vectors
    most = sample if vectors.rows < _LARGE else sample // 2
    most = min(most, max(_MIN_SAMPLE, _SAMPLE_BYTES // (4 * vectors.dim)))
    rows, queries = sample_of(vectors, most, _SEED)
    good = np.isfinite(queries).all(axis=1) & (queries != 0).any(axis=1)
    if alive is not None:
        good &= alive.has(vectors.ids(rows))
    rows, queries = rows[good], queries[good]
    largest = max(MEASURED_K)
    scores, near = index.search(queries, largest + 2, recall=1.0, wanted=alive, step=done)
    scores = np.take_along_axis(scores, _own_last(near, rows), 1)
    truth = _without(near, rows, largest)
    truth[~index.is_indexed(truth)] = -1  # always found
    vectors.let_go()
    done()
    distances, in_radius = _distances(scan, queries, truth)
    done()
    return _Sample(rows, queries, truth, scores, distances, in_radius)


def _points(
    drawn: _Sample,
    k: int,
    nprobe: int,
    ranks: Numbers,
    depth: int,
    list_cost: float,
    lost: float,
    rerank_depths: Sequence[float],
) -> tuple[list[tuple[float, OperatingPoint]], float]:
    """What ``nprobe`` lists find of the k nearest, by radius and re-rank depth, each with its cost.

    ``lost``: the share that a query misses, if it misses anything, as known so far; returned updated.
    """
    # Of vectors that are as near as the next one, any will do: users have duplicates.
    next_ = drawn.scores[:, k : k + 1]
    margin = np.where(np.isfinite(next_), _SAME * np.abs(next_), 0)
    there = (drawn.truth[:, :k] >= 0) & (drawn.scores[:, :k] > next_ + margin)
    wanted = there.sum(axis=1)
    found: list[tuple[float, OperatingPoint]] = []
    if not wanted.any():
        return found, lost  # all are next to vectors that are equal: nothing is measured
    some = wanted > 0
    depths = sorted({min(int(times * k), depth) for times in rerank_depths})
    for radius, count in drawn.in_radius.items():
        lists = float(np.minimum(count, nprobe).mean())
        if radius is not None and lists > _FEWER * nprobe:
            continue
        # Fewer lists bring no other candidate before one: its rank is no worse then.
        inside = there if radius is None else there & (drawn.distances[:, :k] <= radius)
        rank = np.where(inside, ranks[:, :k], depth)[some]
        for rerank_depth in depths:
            hits = (rank < rerank_depth).sum(axis=1)
            missing = hits < wanted[some]
            if missing.sum() >= _LOST_BY:
                lost = float(1 - (hits / wanted[some])[missing].mean())
            recall, lower_bound = _recall(hits, wanted[some], lost)
            cost = lists * list_cost + rerank_depth * _CANDIDATE_COST
            found.append((cost, OperatingPoint(nprobe, rerank_depth, recall, lower_bound, radius)))
    return found, lost


def _distances(
    scan: CodeScan, queries: Block, truth: Numbers
) -> tuple[Block, dict[float | None, Numbers]]:
    """How far off the list of each true neighbour is, (n, k); and how many lists lie in each radius."""
    of = scan.lists_of(truth.reshape(-1)).reshape(truth.shape)
    far = np.full(truth.shape, np.inf, np.float32)
    counts: dict[float | None, Numbers] = {
        radius: np.zeros(len(queries), np.int64) for radius in _PROBE_RADII
    }
    for at in range(0, len(queries), _BLOCK):
        some = slice(at, at + _BLOCK)
        every = scan.list_distances(queries[some])
        near = np.take_along_axis(every, np.maximum(of[some], 0), axis=1)
        far[some] = np.where(of[some] >= 0, near, np.inf)
        for radius in _PROBE_RADII:
            counts[radius][some] = (every <= radius).sum(axis=1)
    counts[None] = np.full(len(queries), scan.quantizer.nlist)
    return far, counts


def _grid(nlist: int) -> list[int]:
    steps = {1, 2, 3, nlist}
    for power in range(max(nlist.bit_length() - 2, 0)):
        steps |= {part << power for part in ((4, 5, 6, 7) if 4 << power < _COARSER else (4, 6))}
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
    most = candidates.shape[1]
    bits = most.bit_length()
    # Sorted by row with their ranks in the lowest bits, which is several times as fast as argsort.
    ordered = np.sort(candidates << bits | np.arange(most), axis=1)
    ranks = np.full(truth.shape, most, np.int64)
    for mine, keys, true in zip(ranks, ordered, truth, strict=True):
        at = np.minimum(np.searchsorted(keys, true << bits), most - 1)
        same = (keys[at] >> bits == true) & (true >= 0)
        mine[same] = keys[at[same]] & ((1 << bits) - 1)
    return ranks


def _recall(
    hits: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], lost: float
) -> tuple[float, float]:
    """The mean share that was found, and what it is at least with 95 % confidence.

    ``lost``: the share that a query misses, if it misses anything. Where no query did, no more than
    three in so many do (95 %).
    """
    shares = hits / wanted
    mean = float(shares.mean())
    error = float(shares.std()) / max(len(shares), 1) ** 0.5
    rare = _NEVER_MISSED / len(shares) * lost
    return mean, max(0.0, min(mean - _CONFIDENCE * error, 1.0 - rare))


def _worthwhile(
    points: list[tuple[float, OperatingPoint]],
) -> tuple[OperatingPoint, ...]:
    """The points that find more than every cheaper one, by so much that it matters."""
    best, kept = -1.0, []
    for _, point in sorted(points, key=lambda pair: (pair[0], pair[1].nprobe)):
        if point.recall_lower_bound > best + _FINER * (1 - best):
            best = point.recall_lower_bound
            kept.append(point)
    return tuple(kept)
