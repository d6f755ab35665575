"""Measures recall on a sample of a store's own vectors: how much of an exact search the index finds.

Each vector of the sample is a query, and is left out of its own results. The result is a list of
settings for each measured k. Each setting costs more than the one before, and finds more.
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
from engine.index.random_pairs import measure_pairs
from engine.index.scan import CodeScan
from engine.index.search import VectorIndex
from engine.index.train import sample_of
from engine.storage.bitmap import IdSet
from engine.storage.manifest import Measured, OperatingPoint

_LARGE = 2_000_000  # vectors, from which on the sample is half as large
_SAMPLE_BYTES = 32 << 20  # bytes of sampled vectors, at most
_MIN_SAMPLE = 128
_SEED = 20
_MAX_RERANK_DEPTH = 2000
_SAME = 1e-6  # the share of a score by which the scores of equal vectors may differ
_ENOUGH = 0.9995  # recall from which on wider searches are not measured
_CONFIDENCE = 1.645  # standard errors: 95 %, one-sided
_NEVER_MISSED = 3.0  # if n queries all found everything, at most 3 in n do not (95 %)
_LOST_BY = 10  # queries with misses, from which on their mean loss is used
_PROBE_RADII = (1.1, 1.2, 1.3, 1.4, 1.5, 1.65, 1.8, 2.0, 2.2, 2.5, 3.0, 4.0)
_FEWER = 0.95  # a radius is worth it if it probes at most this share of the lists
_BLOCK = 256  # queries whose distances to all lists are in memory
_FINER = 0.05  # the share of the missing recall that a kept point must gain
_COARSER = 128  # lists, from which on the steps of nprobe are twice as large
# The cost of a search in nanoseconds of one core: of a list, of a byte of code of each of its rows, and
# of a candidate, whose vector is compared in full. Only their ratio matters.
_ROW_BYTE_COST, _LIST_COST, _CANDIDATE_COST = 0.1, 40.0, 300.0
_log = logging.getLogger("engine.index")


@dataclass(frozen=True, slots=True)
class _Sample:
    """The sampled vectors, with the results of an exact search for each."""

    rows: Numbers  # (n,) rows of the vectors
    queries: Block  # (n, dim)
    truth: Numbers  # (n, k) rows of the true neighbours, -1 for those that are in no segment
    scores: Block  # (n, k + 2) scores of the nearest, the vector itself last
    distances: (
        Block  # (n, k) distance of each neighbour's list, as a multiple of the nearest list's
    )
    # By radius: (n,) numbers of lists within it; the key None is no radius.
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
    """Measure recall at settings from the narrowest to the widest that is worth it.

    ``alive`` are the images to find, None for all. ``done`` is called every second or so. ``sample`` is
    the largest number of queries, halved in a large store. ``rerank_depths`` are the depths to try, as
    multiples of k.
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
    return Measured(
        target,
        entry.number,
        index.vectors.rows,
        len(drawn.rows),
        kept,
        measure_pairs(index.vectors),
    )


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
    # Rows in no segment are compared exactly, so they are always found.
    truth[~index.is_indexed(truth)] = -1
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
    """The recall of ``nprobe`` lists for k, by radius and re-rank depth, each with its cost.

    ``lost`` is the mean share that a query with misses misses, as far as known; returned updated.
    """
    # Neighbours as near as the next vector do not count, since any of these is right: users have
    # duplicates.
    next_ = drawn.scores[:, k : k + 1]
    margin = np.where(np.isfinite(next_), _SAME * np.abs(next_), 0)
    there = (drawn.truth[:, :k] >= 0) & (drawn.scores[:, :k] > next_ + margin)
    wanted = there.sum(axis=1)
    found: list[tuple[float, OperatingPoint]] = []
    if not wanted.any():
        # All neighbours are as near as the next vector, so nothing can be measured.
        return found, lost
    some = wanted > 0
    depths = sorted({min(int(times * k), depth) for times in rerank_depths})
    for radius, count in drawn.in_radius.items():
        lists = float(np.minimum(count, nprobe).mean())
        if radius is not None and lists > _FEWER * nprobe:
            continue
        # With fewer lists, the rank of a candidate is the same or better.
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
    """The distance of each true neighbour's list (n, k), and the number of lists in each radius."""
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
    """The first ``most`` of (n, m) found rows that are not the query's own row."""
    out = np.where(found == rows[:, None], -1, found)
    return np.take_along_axis(out, _own_last(found, rows), 1)[:, :most]


def _own_last(found: Numbers, rows: Numbers) -> Numbers:
    """An order (n, m) of found rows that puts the query's own row last."""
    return np.argsort(found == rows[:, None], axis=1, kind="stable")


def _ranks(candidates: Numbers, rows: Numbers, truth: Numbers) -> Numbers:
    """The rank of each true neighbour (n, k) among the (n, depth) candidates, best first."""
    candidates = _without(candidates, rows, candidates.shape[1])
    most = candidates.shape[1]
    bits = most.bit_length()
    # Sort rows with their ranks in the lowest bits, which is several times as fast as argsort.
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
    """The mean recall of (n,) queries, and its lower bound with 95 % confidence.

    ``lost`` is the mean share that a query with misses misses. It bounds recall where all n queries
    found everything: then at most 3 in n miss something (95 %).
    """
    shares = hits / wanted
    mean = float(shares.mean())
    error = float(shares.std()) / max(len(shares), 1) ** 0.5
    rare = _NEVER_MISSED / len(shares) * lost
    return mean, max(0.0, min(mean - _CONFIDENCE * error, 1.0 - rare))


def _worthwhile(
    points: list[tuple[float, OperatingPoint]],
) -> tuple[OperatingPoint, ...]:
    """The points with noticeably more recall than every cheaper one."""
    best, kept = -1.0, []
    for _, point in sorted(points, key=lambda pair: (pair[0], pair[1].nprobe)):
        if point.recall_lower_bound > best + _FINER * (1 - best):
            best = point.recall_lower_bound
            kept.append(point)
    return tuple(kept)
