"""The child of ``engine bench --store`` that asks an existing store for images of its own."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

from engine import Store
from engine.errors import ImageError, SourceError, UsageError

from ..harness.errors import BenchError
from ..harness.process import answer, send

_SECONDS = 60.0  # after which the lookups end
# Ids drawn for each image looked up: some were removed, some have no source left.
_TRIED = 5


def ask(folder: str, memory_bytes: int, count: int, seed: int) -> dict[str, Any]:
    """Look up ``count`` random images of a store; seconds by tier, and how many were found.

    An image has to be found identical. An imported vector, which has no pixels, has to be found similar.
    """
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        info = store.info()
        last = info.images + info.removed
        if not info.images:
            raise BenchError(f"{folder} holds no image to ask for")
        draw = random.Random(seed)
        ids = draw.sample(range(1, last + 1), min(last, _TRIED * count))
        seconds: dict[str, list[float]] = {}
        asked: Counter[str] = Counter()
        found: Counter[str] = Counter()
        unreadable = 0
        began = time.perf_counter()
        for id_ in ids:
            source = _source(store, id_)
            if source is None:
                continue
            try:
                result = store.lookup(source)
            except (ImageError, SourceError, UsageError):  # it is gone, or no longer an image
                unreadable += 1
                continue
            tier = "identical" if "identical" in result.searched else "similar"
            hits = result.identical if tier == "identical" else result.similar
            asked[tier] += 1
            found[tier] += any(hit.id == id_ for hit in hits)
            for part, spent in result.milliseconds.items():
                if part != "load":  # only the first lookup loads
                    seconds.setdefault(part, []).append(spent / 1e3)
            send(done=asked.total())
            if asked.total() == count or time.perf_counter() - began > _SECONDS:
                break
        return {
            "images": info.images,
            "asked": dict(asked),
            "found": dict(found),
            "unreadable": unreadable,
            "seconds": seconds,
            "bytes": dict(info.bytes),
        }


def _source(store: Store, id_: int) -> str | None:
    try:
        return next(iter(store.sources(id_, 1)), None)
    except UsageError:  # it was removed
        return None


if __name__ == "__main__":
    answer(ask)
