"""An existing store, asked for images of its own, read-only: what ``engine bench --store`` shows.

Its images are looked up by the names of their sources, as far as these can still be read: in every
tier that it has. This module is the child too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from engine import Store
from engine.errors import EngineError

from ..harness.errors import BenchError
from ..harness.measurement import BYTES, SECONDS, SHARE, Measurement, Skipped
from ..harness.process import answer, send
from ..peers.methods import ENGINE

_SECONDS = 60.0  # after which no more is asked
# Ids drawn for each image that is asked for: some were removed, some have no source left.
_TRIED = 5


def ask(folder: str, memory_bytes: int, count: int, seed: int) -> dict[str, Any]:
    """Look up ``count`` of a store's own images, drawn; seconds by tier, and how many were found."""
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        info = store.info()
        last = info.images + info.removed
        if not info.images:
            raise BenchError(f"{folder} holds no image to ask for")
        draw = random.Random(seed)
        ids = draw.sample(range(1, last + 1), min(last, _TRIED * count))
        seconds: dict[str, list[float]] = {}
        asked = found = unreadable = 0
        tier = "identical"
        began = time.perf_counter()
        for id_ in ids:
            source = _source(store, id_)
            if source is None:
                continue
            try:
                result = store.lookup(source)
            except EngineError:  # it is gone, or is no image any more
                unreadable += 1
                continue
            if result.error is not None:
                unreadable += 1
                continue
            asked += 1
            # Found is an image that is found identical; vectors without pixels are found similar.
            hits = [hit.id for hit in result.identical]
            if "identical" not in result.searched:
                tier = "similar"
                hits = [hit.id for hit in result.similar]
            found += id_ in hits
            for part, spent in result.milliseconds.items():
                if part != "load":  # which the first lookup alone does
                    seconds.setdefault(part, []).append(spent / 1e3)
            send(done=asked)
            if asked == count or time.perf_counter() - began > _SECONDS:
                break
        return {
            "images": info.images,
            "asked": asked,
            "found": found,
            "tier": tier,
            "unreadable": unreadable,
            "seconds": seconds,
            "bytes": dict(info.bytes),
            "recall": info.recall,
        }


def _source(store: Store, id_: int) -> str | None:
    try:
        return next(iter(store.sources(id_, 1)), None)
    except EngineError:  # it was removed
        return None


def figures(found: dict[str, Any]) -> Iterator[Measurement | Skipped]:
    """What ``ask`` found, as figures."""
    n = found["images"]
    note = f"{found['asked']:,} of its own images; {found['unreadable']:,} more could not be read"
    if not found["asked"]:
        yield Skipped(n, "identical", ENGINE, "no source of its images can be read any more")
    else:
        share = found["found"] / found["asked"]
        yield Measurement(n, found["tier"], ENGINE, "found", SHARE, (share,), note)
    for part, times in found["seconds"].items():
        tier, figure = _PARTS.get(part, ("images", part))
        yield Measurement(n, tier, ENGINE, figure, SECONDS, tuple(times), note)
    for part, size in found["bytes"].items():
        yield Measurement(n, "ingest", ENGINE, f"disk, {part}", BYTES, (float(size),))
    total = float(sum(found["bytes"].values()))
    yield Measurement(n, "ingest", ENGINE, "disk", BYTES, (total,))


_PARTS = {
    "identical": ("identical", "hit"),
    "near": ("near", "hit"),
    "similar": ("similar", "single"),
    "encode": ("images", "embed"),
}


if __name__ == "__main__":
    answer(ask)
