"""Copy retrieval: draws queries, distorts them, and searches for the originals among all pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine.config import DEFAULT_MAX_DISTANCE
from engine.errors import UsageError
from engine.evaluation.baselines import picture_fingerprint
from engine.evaluation.distort import DISTORTIONS
from engine.evaluation.pictures import Array, Picture, Stream, choose
from engine.evaluation.report import WorstCase
from engine.evaluation.retrieval import Retrieval
from engine.evaluation.timing import Timed, Vectors
from engine.evaluation.worst_cases import WorstCaseRow

# The minimum side of a query in pixels. Crops and reductions of smaller pictures show too little.
MIN_SIDE = 48
_BLOCK = 64  # distractors compared at a time
_GROUP = 4  # queries distorted at a time
_MAX_BYTES = 2 << 30  # of the queries' vectors, all entrants together

_NAMES = list(DISTORTIONS)
_T = TypeVar("_T")
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The result of one entrant, in the order of ``DISTORTIONS``."""

    recall_at_1: dict[str, float]
    micro_average_precision: float
    worst: tuple[WorstCase, ...]
    rows: tuple[WorstCaseRow, ...]  # ``worst`` as rows of the sheet


class Copies:
    """One run. ``queries``, ``unfit``, ``distractors`` and ``left_out`` are counts of pictures."""

    def __init__(
        self,
        images: Stream,
        distractors: Stream,
        entrants: Sequence[Timed],
        *,
        queries: int,
        seed: int,
        pool: Executor,
        reject: Callable[[Picture], None],
        tick: Callable[[int], None],
    ) -> None:
        """``tick(count)`` is called with the number of pictures just done, distorted ones included."""
        self._images, self._more = images, distractors
        self._entrants = entrants
        self._seed = seed
        self._pool = pool
        self._reject, self._tick = reject, tick
        self._wanted = queries
        self._numbers: list[int] = []  # of the queries in the stream of images
        self._prints = np.empty((0, 32), np.uint8)  # fingerprints of the queries
        self.queries = self.unfit = self.distractors = self.left_out = 0

    def run(self) -> list[CopyResult]:
        """Measure all entrants; the results are in their order."""
        chosen = choose(self._images.names(), self._wanted, self._seed)
        self._check_memory(len(chosen))
        originals, copies = self._embedded(chosen)
        self.queries = n = len(self._numbers)
        if not n:
            raise UsageError(
                f"none of the {len(chosen):,} drawn images can be a query: name images of at least "
                f"{MIN_SIDE} pixels a side that are not flat"
            )
        answers = np.repeat(np.arange(n), len(_NAMES))
        retrievals = []
        for original, copy in zip(originals, copies, strict=True):
            retrieval = Retrieval(copy[:n].reshape(n * len(_NAMES), -1))
            retrieval.meet(original[:n], np.arange(n), answers)
            retrievals.append(retrieval)
        total = self._meet_distractors(retrievals)
        if n + self.distractors < 2:
            raise UsageError(
                "there is only one picture, and nothing to confuse it with: name more images or "
                "distractors"
            )
        return self._results(retrievals, total)

    def _check_memory(self, n: int) -> None:
        each = sum(entrant.dim for entrant in self._entrants) * 4 * (1 + len(_NAMES))
        if n * each > _MAX_BYTES:
            raise UsageError(
                f"the vectors of {n:,} queries would take {n * each >> 20:,} MiB: ask for at most "
                f"{_MAX_BYTES // each:,} with queries="
            )

    def _embedded(self, chosen: set[int]) -> tuple[list[Vectors], list[Vectors]]:
        """The vectors of the queries (n, d) and of their copies (n, ways, d), for each entrant."""
        ways = len(_NAMES)
        originals = [np.zeros((len(chosen), e.dim), np.float32) for e in self._entrants]
        copies = [np.zeros((len(chosen), ways, e.dim), np.float32) for e in self._entrants]
        for group in _groups(self._fit(chosen), _GROUP):
            first = len(self._numbers)
            distorted = list(self._pool.map(self._all_ways, group))
            flat = [picture for each in distorted for picture in each]
            for entrant, original, copy in zip(self._entrants, originals, copies, strict=True):
                vectors = entrant.encode(flat).reshape(len(group), 1 + ways, -1)
                original[first : first + len(group)] = vectors[:, 0]
                copy[first : first + len(group)] = vectors[:, 1:]
            self._numbers += [number for number, _ in group]
            self._tick(len(flat))
        return originals, copies

    def _fit(self, chosen: set[int]) -> Iterator[tuple[int, Array]]:
        """The chosen pictures that can be queries."""
        for picture in self._images(chosen.__contains__):
            if picture.rgb is None:
                self._reject(picture)
                continue
            bits, quality, least = picture_fingerprint(picture.rgb)
            small = min(picture.rgb.shape[:2]) < MIN_SIDE
            if small or quality < least or self._is_copy(bits):
                self.unfit += 1
                continue
            self._prints = np.concatenate((self._prints, bits[None]))
            yield picture.number, picture.rgb

    def _is_copy(self, bits: Array) -> bool:
        distances = np.bitwise_count(self._prints ^ bits).sum(1, dtype=np.int64)
        return bool((distances <= DEFAULT_MAX_DISTANCE).any())

    def _all_ways(self, query: tuple[int, Array]) -> list[Array]:
        """The picture itself, and each distortion of it."""
        return [query[1], *(self._distorted(*query, name) for name in _NAMES)]

    def _distorted(self, number: int, picture: Array, name: str) -> Array:
        return DISTORTIONS[name](picture, (self._seed << 32) + number)

    def _meet_distractors(self, retrievals: list[Retrieval]) -> int:
        """Compare with all other pictures; return how many pictures the stream of images holds."""
        n, total = len(self._numbers), sum(1 for _ in self._images.names())
        queries = set(self._numbers)
        # Index positions: first the queries, then the stream of images, then that of distractors.
        rest = self._images(lambda number: number not in queries)
        both = itertools.chain(
            ((n + picture.number, picture) for picture in rest),
            ((n + total + picture.number, picture) for picture in self._more()),
        )
        for block in _groups(both, _BLOCK):
            self._tick(len(block))
            readable = []
            for position, picture in block:
                if picture.rgb is None:
                    self._reject(picture)
                else:
                    readable.append((position, picture.rgb))
            prints = self._pool.map(picture_fingerprint, [rgb for _, rgb in readable])
            kept = []
            for each, (bits, quality, least) in zip(readable, prints, strict=True):
                if quality >= least and self._is_copy(bits):
                    self.left_out += 1
                else:
                    kept.append(each)
            if not kept:
                continue
            self.distractors += len(kept)
            positions = np.array([position for position, _ in kept])
            pictures = [rgb for _, rgb in kept]
            for entrant, retrieval in zip(self._entrants, retrievals, strict=True):
                retrieval.meet(entrant.encode(pictures), positions)
        return total

    def _results(self, retrievals: list[Retrieval], total: int) -> list[CopyResult]:
        n = len(self._numbers)
        worst = [_worst(retrieval) for retrieval in retrievals]
        needed: set[int] = set()
        for retrieval, rows in zip(retrievals, worst, strict=True):
            needed.update(int(retrieval.who[row, 0]) for row in rows)
            needed.update(row // len(_NAMES) for row in rows)
        shown = self._again(needed, total)
        results = []
        for retrieval, rows in zip(retrievals, worst, strict=True):
            score = retrieval.score()
            found = score.found.reshape(n, len(_NAMES)).mean(0)
            cases, drawn = [], []
            for row in rows:
                at, way = divmod(row, len(_NAMES))
                name = _NAMES[way]
                right, wrong = shown[at], shown.get(int(retrieval.who[row, 0]))
                case = WorstCase(
                    query=right.name,
                    distortion=name,
                    found=wrong.name if wrong else "nothing",
                    found_score=_number(retrieval.best[row, 0]),
                    right_score=_number(retrieval.right[row]),
                )
                cases.append(case)
                query = None
                if right.rgb is not None:
                    query = self._distorted(right.number, right.rgb, name)
                drawn.append(
                    WorstCaseRow(
                        (query, wrong.rgb if wrong else None, right.rgb),
                        (
                            name,
                            f"{case.found_score:.3f} {_last(case.found)}",
                            f"{case.right_score:.3f} {_last(case.query)}",
                        ),
                    )
                )
            results.append(
                CopyResult(
                    dict(zip(_NAMES, map(float, found), strict=True)),
                    score.micro_average_precision,
                    tuple(cases),
                    tuple(drawn),
                )
            )
        return results

    def _again(self, positions: set[int], total: int) -> dict[int, Picture]:
        """Read the pictures at these index positions again, because they were not kept."""
        n = len(self._numbers)
        place = {number: at for at, number in enumerate(self._numbers)}

        def of_images(number: int) -> bool:
            return place.get(number, n + number) in positions

        found = {}
        if any(position < n + total for position in positions):
            for picture in self._images(of_images):
                found[place.get(picture.number, n + picture.number)] = picture
        if any(position >= n + total for position in positions):
            for picture in self._more(lambda number: n + total + number in positions):
                found[n + total + picture.number] = picture
        return found


def _worst(retrieval: Retrieval) -> list[int]:
    """For each distortion with a miss, the row that missed by most; the worst first."""
    margin = (retrieval.best[:, 0] - retrieval.right).reshape(-1, len(_NAMES))  # (n, ways)
    at = margin.argmax(0)
    most = margin[at, np.arange(len(_NAMES))]
    order = np.argsort(-most, kind="stable")
    return [int(at[way] * len(_NAMES) + way) for way in order if most[way] >= 0]


def _number(score: np.float32) -> float:
    return round(float(score), 6)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _groups(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while group := list(itertools.islice(rest, size)):
        yield group
