"""The child of ``engine bench`` that queries a finished store of images."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine import PackedBits, Store

from ..data import bit_images, image_sets
from ..harness import disk
from ..harness.errors import WrongAnswerError
from ..harness.process import answer
from ..peers.key_lookups import check
from ..peers.methods import Engine

BATCH = 1_000  # images of a batch
_SECONDS = 10.0  # after which slow work is cut short
_FEWEST = 20


def batches(
    n: int, count: int, seed: int, folder: str, memory_bytes: int
) -> dict[str, list[float]]:
    """Seconds an image of ``Store.find_identical``, for each 1,000 packed bit images; second pass."""
    rows = np.random.default_rng([seed, n]).integers(0, n, count)
    hits, ids = bit_images.packed_rows(seed, rows), rows + 1
    misses, none = bit_images.packed_misses(n, seed, 0, count), np.full(count, -1)
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        for _ in range(2):
            found = {"hit": _many(store, hits, ids), "miss": _many(store, misses, none)}
    return found


def _many(store: Store, images: bit_images.Images, wanted: np.ndarray[Any, Any]) -> list[float]:
    times = []
    for first in range(0, len(images), BATCH):
        some = PackedBits(images[first : first + BATCH], *bit_images.SHAPE[:2])
        started = time.perf_counter()
        found = store.find_identical(some)
        times.append((time.perf_counter() - started) / len(some))
        for one, right in zip(found.tolist(), wanted[first : first + BATCH].tolist(), strict=True):
            check(one, right)
    return times


def singles(
    n: int, count: int, folder: str, memory_bytes: int, set: dict[str, Any], warm: bool
) -> dict[str, Any]:
    """Seconds of each ``Store.lookup`` of an array in the identical tier.

    With ``warm``, all are looked up twice, and the second time counts. Otherwise once, after the
    caller has dropped the caches; then the result also has the bytes that each lookup read from the
    disk.
    """
    chosen = image_sets.make(set)
    method = Engine(n, chosen, Path(folder), memory_bytes)
    method.open()
    found: dict[str, Any] = {}
    for _ in range(2 if warm else 1):
        for what, asked in (("hit", chosen.hits(n, count)), ("miss", chosen.misses(n, count))):
            times, read = [], 0
            for wanted, image in asked:
                # Count around each lookup, because queries that are files are read from the disk too.
                before = 0 if warm else disk.fetched()
                started = time.perf_counter()
                answered = method.find(image)
                times.append(time.perf_counter() - started)
                read += 0 if warm else disk.fetched() - before
                if not method.right(answered, wanted):
                    raise WrongAnswerError(
                        f"{wanted or 'an image that is not there'}: {answered!r}"
                    )
            found[what] = times
            if not warm:
                found[f"{what} bytes"] = read / max(1, len(times))
    return found


def near(n: int, count: int, folder: str, memory_bytes: int, set: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each lookup of a copy in the near tier, how many were found, and other hits."""
    times, right, wrong = [], 0, 0
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        for wanted, query in image_sets.make(set).copies(n, count):
            started = time.perf_counter()
            hits = store.lookup(query, tiers=("near",)).near
            times.append(time.perf_counter() - started)
            # A hit names ten sources at most, and a picture may have more.
            found = sum(
                wanted in hit.sources
                or (hit.source_count > len(hit.sources) and wanted in store.sources(hit.id))
                for hit in hits
            )
            right += found
            wrong += len(hits) - found
            if len(times) >= _FEWEST and sum(times) > _SECONDS:
                break
    return {"seconds": times, "found": right / max(1, len(times)), "others": wrong}


def queries(
    n: int, count: int, folder: str, memory_bytes: int, set: dict[str, Any], out: str, k: int
) -> dict[str, int]:
    """Embed cropped images of a set as queries, and find their neighbours by comparing all vectors.

    Writes ``out``.queries.npy, (count, d) float32, and ``out``.truth.npy, (count, k) rows.
    """
    from engine.encoders import onnx, registry

    encoder = onnx.OnnxEncoder(registry.find("simclr"))
    chosen = image_sets.make(set)
    views = chosen.views(n, count)
    encoded = []
    while some := list(itertools.islice(views, chosen.chunk)):
        encoded.append(encoder.encode([encoder.preprocessing.resize(image) for image in some]))
    if not encoded:
        return {"queries": 0}
    asked = np.concatenate(encoded)
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        _, ids = store.search_vectors(asked, k=k, recall=1)
    np.save(f"{out}.queries.npy", asked)
    np.save(f"{out}.truth.npy", np.where(ids > 0, ids - 1, -1))
    return {"queries": len(asked)}


if __name__ == "__main__":
    answer(
        {
            "batches": batches,
            "singles": singles,
            "near": near,
            "queries": queries,
        }
    )
