"""Measures whether a text finds the picture that it is the caption of, among all pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from engine.encoders.text import has_words
from engine.errors import UsageError
from engine.evaluation.embedded import MAX_BYTES
from engine.evaluation.labelled import Labelled
from engine.evaluation.pictures import Array, Picture, choose
from engine.evaluation.timing import Timed, Vectors

DEPTHS = (1, 5, 10)
"""A text is found if a right picture is among so many nearest."""

_BLOCK = 64
_COMPARED = 16 << 20  # scores in memory at a time
_FIELDS = "caption, captions, text or txt"

Right = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Captioned:
    """Pictures as vectors (n, d) of each entrant, and the distinct captions with their pictures."""

    vectors: list[Vectors]
    texts: dict[str, set[int]]


class Captions:
    """One run. ``pictures``, ``texts`` and ``left_out`` (pictures without a caption) are counts.

    ``chance`` is the recall by depth of vectors that say nothing.
    """

    def __init__(
        self,
        labelled: Labelled,
        entrants: Sequence[Timed],
        *,
        most: int,
        seed: int,
        reject: Callable[[Picture], None],
        tick: Callable[[int], None],
    ) -> None:
        """Take at most ``most`` pictures; ``UsageError`` if no entrant has a text tower."""
        self._labelled = labelled
        self._entrants = [each for each in entrants if each.entrant.encode_texts is not None]
        self._all = entrants
        self._most = most
        self._seed = seed
        self._reject, self._tick = reject, tick
        self.pictures = self.texts = self.left_out = 0
        self.chance: dict[int, float] = {}
        if not self._entrants:
            names = ", ".join(each.entrant.name for each in entrants)
            raise UsageError(
                f"captions= needs an encoder with a text tower, such as open-clip:… or hf:…, and none "
                f"of {names} has one"
            )

    def run(self) -> list[dict[int, float]]:
        """The recall of each entrant by depth, in their order; empty without a text tower."""
        found = self._embedded()
        texts, right = list(found.texts), list(found.texts.values())
        self.pictures, self.texts = len(found.vectors[0]), len(texts)
        if self.pictures < 2:
            raise UsageError(
                "there is only one picture with a caption: name pictures of at least two"
            )
        sizes = [len(each) for each in right]
        self.chance = {k: by_chance(self.pictures, sizes, k) for k in DEPTHS}
        results = {}
        for each, vectors in zip(self._entrants, found.vectors, strict=True):
            assert each.entrant.encode_texts is not None
            results[each.entrant.name] = recall(each.entrant.encode_texts(texts), vectors, right)
        return [results.get(each.entrant.name, {}) for each in self._all]

    def _embedded(self) -> _Captioned:
        chosen = choose(self._labelled.names(), self._most, self._seed)
        self._check_size(len(chosen))
        vectors = [np.empty((len(chosen), each.dim), np.float32) for each in self._entrants]
        texts: dict[str, set[int]] = {}
        # Pictures that are there more than once, as in tables with a row for each caption, count once.
        numbers: dict[int, int] = {}
        stream = iter(self._labelled(chosen.__contains__))
        while block := list(itertools.islice(stream, _BLOCK)):
            self._tick(len(block))
            first = len(numbers)
            fresh: list[Array] = []
            for picture in block:
                captions = [text.strip() for text in picture.captions if has_words(text)]
                if picture.rgb is None:
                    self._reject(picture)
                elif not captions:
                    self.left_out += 1
                else:
                    number = self._number(picture.rgb, numbers, fresh)
                    for caption in captions:
                        texts.setdefault(caption, set()).add(number)
            if fresh:
                for each, into in zip(self._entrants, vectors, strict=True):
                    into[first : first + len(fresh)] = each.encode(fresh)
        if not numbers:
            raise UsageError(
                f"no picture has a caption ({self.left_out:,} pictures have none): name a table or an "
                f"archive whose metadata has a field {_FIELDS}"
            )
        self._check_size(len(numbers) + len(texts))
        return _Captioned([each[: len(numbers)] for each in vectors], texts)

    def _number(self, rgb: Array, numbers: dict[int, int], fresh: list[Array]) -> int:
        """The number of a picture, which is added to ``fresh`` if it is new."""
        digest = xxhash.xxh3_64_intdigest(np.array(rgb.shape).tobytes() + rgb.tobytes())
        if digest not in numbers:
            numbers[digest] = len(numbers)
            fresh.append(rgb)
        return numbers[digest]

    def _check_size(self, rows: int) -> None:
        size = 4 * rows * sum(each.dim for each in self._entrants)
        if size > MAX_BYTES:
            raise UsageError(
                f"the vectors of {rows:,} pictures and captions would take {size >> 20:,} MiB: ask for "
                f"fewer with most_test="
            )


def recall(
    texts: Vectors, pictures: Vectors, right: Sequence[set[int]], compared: int = _COMPARED
) -> dict[int, float]:
    """The share of texts with a right picture among the k nearest, for each k of ``DEPTHS``.

    ``texts`` is (m, d) and ``pictures`` (n, d), of unit length or zero. ``right`` are the numbers of the
    right pictures of each text. Of equal cosines, a wrong picture counts as nearer, so vectors that are
    all the same find nothing. A text whose vector is zero finds nothing.
    """
    n, _ = pictures.shape
    ranks = []
    step = max(1, compared // n)
    for at in range(0, len(texts), step):
        scores = texts[at : at + step] @ pictures.T
        for row, answers in zip(scores, right[at : at + step], strict=True):
            numbers = sorted(answers)
            best = row[numbers].max()
            ranks.append(int((row >= best).sum() - (row[numbers] >= best).sum()))
    found = np.where(texts.any(axis=1), np.array(ranks), n)
    # Without enough wrong pictures, even a vector of zero would be within the depth.
    return {k: float(((found < k) & texts.any(axis=1)).mean()) for k in DEPTHS}


def by_chance(pictures: int, right: Sequence[int], k: int) -> float:
    """The mean chance that one of a text's ``right`` pictures is among k drawn ones."""
    k = min(k, pictures)
    every = math.comb(pictures, k)
    counts, texts = np.unique(np.array(right), return_counts=True)
    missed = [math.comb(pictures - int(count), k) / every for count in counts]
    return float(1 - np.dot(missed, texts) / len(right))
