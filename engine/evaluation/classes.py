"""Measures how well the vectors of entrants separate classes, on labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from engine.errors import UsageError
from engine.evaluation.classify import Labels, knn_accuracy, probe_accuracy
from engine.evaluation.embedded import MAX_BYTES, Embedded, embed
from engine.evaluation.labelled import Labelled
from engine.evaluation.pictures import Picture
from engine.evaluation.timing import Timed, Vectors

_FITTED = 4  # float32 arrays (pictures, classes) in memory while a classifier is fitted
_HISTORY = 50  # L-BFGS's memory in float64, as a number of float32 arrays of its weights


@dataclass(frozen=True, slots=True)
class ClassResult:
    """Accuracies of one entrant."""

    knn: dict[int, float]
    probe: float
    strength: float


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
        train = self._embedded(0, "to learn from", frozenset())
        test = self._embedded(1, "to test", train.prints)
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
        if size > MAX_BYTES:
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

    def _embedded(self, number: int, what: str, others: Set[int]) -> Embedded:
        return embed(
            self._sets[number],
            self._entrants,
            most=self._most[number],
            seed=self._seed,
            what=what,
            reject=self._reject,
            tick=self._tick,
            others=others,
        )
