"""The vectors of labelled pictures, by all entrants of an evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from engine.errors import UsageError
from engine.evaluation.labelled import Labelled
from engine.evaluation.pictures import Picture, choose
from engine.evaluation.timing import Timed, Vectors

MAX_BYTES = 4 << 30  # of vectors, all entrants together
_BLOCK = 64
_NO_CLASS = "put it into a folder of its class, or name an archive or a table with labels"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Labelled pictures as vectors."""

    vectors: list[Vectors]  # (n, d) of each entrant
    labels: list[str]  # (n,)
    prints: set[int]  # hashes of the pictures
    repeated: int  # pictures whose hash is among those of ``others``


def embed(
    labelled: Labelled,
    entrants: Sequence[Timed],
    *,
    most: int,
    seed: int,
    what: str,
    reject: Callable[[Picture], None],
    tick: Callable[[int], None],
    others: Set[int] = frozenset(),
) -> Embedded:
    """Embed at most ``most`` pictures, drawn by ``seed``; ``tick(count)`` counts those just done.

    ``what`` says what the pictures are for, after "pictures". ``others`` are hashes of other pictures.
    Raises ``UsageError`` if no picture has a label, or if the vectors would take too much memory.
    """
    chosen = choose(labelled.names(), most, seed)
    size = 4 * len(chosen) * sum(entrant.dim for entrant in entrants)
    if size > MAX_BYTES:
        raise UsageError(
            f"the vectors of {len(chosen):,} pictures {what} would take {size >> 20:,} MiB: ask "
            f"for fewer with most_train= or most_test="
        )
    vectors = [np.empty((len(chosen), entrant.dim), np.float32) for entrant in entrants]
    labels: list[str] = []
    prints: set[int] = set()
    repeated = 0
    unlabelled: Picture | None = None
    stream = iter(labelled(chosen.__contains__))
    while block := list(itertools.islice(stream, _BLOCK)):
        tick(len(block))
        good = []
        for picture in block:
            if picture.rgb is None:
                reject(picture)
            elif picture.label is None:
                unlabelled = picture
                reject(replace(picture, rgb=None, reason=f"has no class: {_NO_CLASS}"))
            else:
                good.append((picture.rgb, picture.label))
                digest = xxhash.xxh3_64_intdigest(picture.rgb.tobytes())
                repeated += digest in others
                prints.add(digest)
        if not good:
            continue
        pictures = [rgb for rgb, _ in good]
        at = slice(len(labels), len(labels) + len(good))
        for entrant, into in zip(entrants, vectors, strict=True):
            into[at] = entrant.encode(pictures)
        labels += [label for _, label in good]
    if not labels and unlabelled is not None:
        raise UsageError(f"{unlabelled.name} and all other pictures have no class: {_NO_CLASS}")
    if not labels:
        raise UsageError(f"there are no labelled pictures {what}")
    return Embedded([each[: len(labels)] for each in vectors], labels, prints, repeated)
