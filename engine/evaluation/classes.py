"""Measures how well the vectors of entrants separate classes, on labelled pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from engine.errors import UsageError
from engine.evaluation.classify import Labels, knn_accuracy, probe_accuracy
from engine.evaluation.labelled import Labelled
from engine.evaluation.pictures import Picture, choose
from engine.evaluation.timing import Timed, Vectors

_BLOCK = 64
_MAX_BYTES = 4 << 30  # of vectors, all entrants together
_FITTED = 4  # float32 arrays (pictures, classes) in memory while a classifier is fitted
_NO_CLASS = "put it into a folder of its class, or name an archive or a table with labels"
_HISTORY = 50  # L-BFGS's memory in float64, as a number of float32 arrays of its weights


@dataclass(frozen=True, slots=True)
class ClassResult:
    """Accuracies of one entrant."""

    knn: dict[int, float]
    probe: float
    strength: float


@dataclass(frozen=True, slots=True)
class _Embedded:
    vectors: list[Vectors]  # (n, d) of each entrant
    labels: list[str]  # (n,)
    prints: set[int]  # hashes of the pictures
    repeated: int  # pictures whose hash is that of a training picture


class Classes:
    """One run. ``train``, ``test``, ``classes`` and ``shared`` (pictures in both sets) are counts."""

    def __init__(
        self,
        train: Labelled,
        test: Labelled,
        entrants: Sequence[Timed],
        *,
        ks: Sequence[int],
        most_train: int,
        most_test: int,
        seed: int,
        reject: Callable[[Picture], None],
        tick: Callable[[int], None],
    ) -> None:
        """``tick(count)`` is called with the number of pictures just done."""
        self._sets = (train, test)
        self._most = (most_train, most_test)
        self._entrants = entrants
        self._ks = ks
        self._seed = seed
        self._reject, self._tick = reject, tick
        self.train = self.test = self.classes = self.shared = 0

    def run(self) -> list[ClassResult]:
        """Measure all entrants; the results are in their order."""
        train = self._embedded(self._sets[0], self._most[0], "to learn from", frozenset())
        test = self._embedded(self._sets[1], self._most[1], "to test", train.prints)
        known = {label: number for number, label in enumerate(sorted(set(train.labels)))}
        self.train, self.test, self.classes = len(train.labels), len(test.labels), len(known)
        self.shared = test.repeated
        if len(known) < 2:
            raise UsageError("there is only one class: name pictures of at least two")
        if not set(test.labels) & set(known):
            raise UsageError(
                f"no test picture has a class of the training pictures ({test.labels[0]!r} is not "
                f"among them): give both sets the same labels"
            )
        widest = max(entrant.dim for entrant in self._entrants)
        size = 4 * len(known) * (_FITTED * self.train + _HISTORY * widest)
        if size > _MAX_BYTES:
            raise UsageError(
                f"separating {len(known):,} classes would take {size >> 20:,} MiB: are these labels "
                f"those of classes? If so, ask for fewer pictures with most_train= or most_test="
            )
        wanted = np.array([known[label] for label in train.labels])
        # A class without training pictures gets a number that is never predicted.
        expected = np.array([known.get(label, len(known)) for label in test.labels])
        return [
            self._result(vectors, wanted, tested, expected)
            for vectors, tested in zip(train.vectors, test.vectors, strict=True)
        ]

    def _result(self, train: Vectors, wanted: Labels, test: Vectors, right: Labels) -> ClassResult:
        knn = knn_accuracy(train, wanted, test, right, self._ks)
        probe, strength = probe_accuracy(train, wanted, test, right, seed=self._seed)
        return ClassResult(knn, probe, strength)

    def _embedded(self, labelled: Labelled, most: int, what: str, others: Set[int]) -> _Embedded:
        chosen = choose(labelled.names(), most, self._seed)
        size = 4 * len(chosen) * sum(entrant.dim for entrant in self._entrants)
        if size > _MAX_BYTES:
            raise UsageError(
                f"the vectors of {len(chosen):,} pictures {what} would take {size >> 20:,} MiB: ask "
                f"for fewer with most_train= or most_test="
            )
        vectors = [np.empty((len(chosen), entrant.dim), np.float32) for entrant in self._entrants]
        labels: list[str] = []
        prints: set[int] = set()
        repeated = 0
        unlabelled: Picture | None = None
        stream = iter(labelled(chosen.__contains__))
        while block := list(itertools.islice(stream, _BLOCK)):
            self._tick(len(block))
            good = []
            for picture in block:
                if picture.rgb is None:
                    self._reject(picture)
                elif picture.label is None:
                    unlabelled = picture
                    self._reject(replace(picture, rgb=None, reason=f"has no class: {_NO_CLASS}"))
                else:
                    good.append((picture.rgb, picture.label))
                    digest = xxhash.xxh3_64_intdigest(picture.rgb.tobytes())
                    repeated += digest in others
                    prints.add(digest)
            if not good:
                continue
            pictures = [rgb for rgb, _ in good]
            at = slice(len(labels), len(labels) + len(good))
            for entrant, into in zip(self._entrants, vectors, strict=True):
                into[at] = entrant.encode(pictures)
            labels += [label for _, label in good]
        if not labels and unlabelled is not None:
            raise UsageError(f"{unlabelled.name} and all other pictures have no class: {_NO_CLASS}")
        if not labels:
            raise UsageError(f"there are no labelled pictures {what}")
        return _Embedded([each[: len(labels)] for each in vectors], labels, prints, repeated)
