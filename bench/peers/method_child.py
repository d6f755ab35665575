"""The child that measures one method at one n, so that methods do not disturb each other."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data import image_sets
from ..data.bit_images import Images
from ..data.image_sets import Wanted
from ..harness import memory
from ..harness.errors import WrongAnswerError
from ..harness.process import answer, send
from .methods import (
    DICT,
    ENGINE,
    LIST,
    PIXELS,
    DictOfHashes,
    Engine,
    ListOfHashes,
    Method,
    PixelByPixel,
)

LOOKUPS = 200  # hits timed, and as many misses
FEWEST_LOOKUPS = 5
LOOKUP_SECONDS = 5.0  # after which no more hits, or misses, are timed

_IN_MEMORY: dict[str, type[PixelByPixel | ListOfHashes | DictOfHashes]] = {
    PIXELS: PixelByPixel,
    LIST: ListOfHashes,
    DICT: DictOfHashes,
}


def measure(
    method: str,
    n: int,
    folder: str,
    memory_bytes: int,
    lookups: bool,
    images: dict[str, Any],
) -> dict[str, Any]:
    """Build ``method`` over the first ``n`` images of a set and, if ``lookups``, time lookups.

    ``image_sets.make`` made the set. Times are in seconds, those of lookups in µs; memory and disk
    are in bytes. ``baseline`` is the anonymous memory before anything was built. For a method in
    memory it includes one chunk of images, as during the build. The engine makes or reads its
    images itself, so their memory counts as its own.
    """
    chosen = image_sets.make(images)
    baseline = memory.anonymous()
    # The heap takes a few chunks to settle.
    for _ in range(4 if method != ENGINE else 0):
        chunk = chosen.arrays(0, min(n, chosen.chunk))
        baseline = max(baseline, memory.anonymous())
        del chunk
    send(start=True)
    built: Method
    if method == ENGINE:
        built = Engine(n, chosen, Path(folder), memory_bytes)
    else:
        built = _IN_MEMORY[method](n, chosen)
    generate_s, build_s = built.build(lambda done: send(done=done))
    peak_resident = memory.peak_resident()
    hits: list[float] = []
    misses: list[float] = []
    if lookups:
        hits = _ask(built, chosen.hits(n, LOOKUPS))
        misses = _ask(built, chosen.misses(n, LOOKUPS))
    return {
        "generate_s": generate_s,
        "build_s": build_s,
        "hit_us": hits,
        "miss_us": misses,
        "baseline": baseline,
        "final": memory.anonymous(),
        "peak_resident": peak_resident,
        "disk": built.disk(),
        "parts": built.parts(),
    }


def _ask(method: Method, queries: Iterable[tuple[Wanted, Images]]) -> list[float]:
    """Time one lookup after the other, in µs; each answer is checked."""
    times: list[float] = []
    for wanted, image in queries:
        started = time.perf_counter_ns()
        found = method.find(image)
        times.append((time.perf_counter_ns() - started) / 1e3)
        if not method.right(found, wanted):
            what = "an image that is not there" if wanted is None else wanted
            raise WrongAnswerError(f"{type(method).__name__}, n={method.n}: {what} gave {found!r}")
        if len(times) >= FEWEST_LOOKUPS and sum(times) > LOOKUP_SECONDS * 1e6:
            break
    return times


if __name__ == "__main__":
    answer(measure)
