"""The child of ``engine bench`` that times the work on an image before any lookup."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from engine import PackedBits
from engine.images import hashing

from ..data import image_sets
from ..harness.process import answer, send

BATCH = 1_000  # images of a batch
_SECONDS = 10.0  # after which slow work is cut short
_EMBEDDED = 64  # images that an encoder gets at once, at most


def images(count: int, embedded: int, set: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds an image, for each 1,000: making unpacked bits, packing them, their key and proof.

    And the seconds of embedding pictures, in tens of seconds at most; none if ``embedded`` is 0.
    """
    found: dict[str, list[float]] = {
        "generate": [],
        "pack": [],
        "hash": [],
        "prove": [],
        "embed": [],
    }
    chosen = image_sets.make(set)
    for first in range(0, count if isinstance(chosen, image_sets.BitSet) else 0, BATCH):
        rows, clock = min(BATCH, count - first), _Clock(found)
        made = chosen.arrays(first, rows)
        clock.lap("generate", rows)
        packed = PackedBits.pack(np.asarray(made))
        clock.lap("pack", rows)
        canonical = list(packed.canonical())
        clock.again()
        hashing.keys(canonical, 0)
        clock.lap("hash", rows)
        hashing.proofs(canonical)
        clock.lap("prove", rows)
        send(done=first + rows)
    if embedded:
        found["embed"] = _embed(chosen, embedded)
    return found


class _Clock:
    def __init__(self, found: dict[str, list[float]]) -> None:
        self._found = found
        self.again()

    def again(self) -> None:
        self._started = time.perf_counter()

    def lap(self, what: str, count: int) -> None:
        self._found[what].append((time.perf_counter() - self._started) / count)
        self.again()


def _embed(chosen: image_sets.ImageSet, count: int) -> list[float]:
    from engine.encoders import onnx, registry

    encoder = onnx.OnnxEncoder(registry.find("simclr"))
    times: list[float] = []
    spent = 0.0
    each = min(_EMBEDDED, chosen.chunk)
    for first in range(0, count, each):
        some = [image * chosen.white for image in chosen.arrays(first, min(each, count - first))]
        if not some:  # all of these are unreadable
            continue
        started = time.perf_counter()
        encoder.encode([encoder.preprocessing.resize(image) for image in some])
        took = time.perf_counter() - started
        times.append(took / len(some))
        spent += took
        if spent > _SECONDS:
            break
    return times[1:] or times  # the first one warms up


if __name__ == "__main__":
    answer(images)
