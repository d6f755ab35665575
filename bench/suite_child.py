"""The children of ``engine bench`` that ask a store, or an index, which was built before."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine import PackedBits, Store
from engine.config import MemoryBudget
from engine.images import hashing

from . import data, disk, memory, sets
from .arrays import Vectors
from .errors import BenchError, WrongAnswerError
from .exact_child import AskedPeer, cache_bytes, check, chunk_rows, hashed_ahead
from .methods import Engine
from .peers import PEERS
from .process import answer, tell
from .truth import recall

BATCH = 1_000  # images of a batch
_SECONDS = 10.0  # after which slow work is cut short
_FEWEST = 20
_EMBEDDED = 64  # images that an encoder gets at once, at most


def images(count: int, embedded: int, folder: str, set: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds an image, for each 1,000: making unpacked bits, packing, hashing, proving them.

    And of pictures that the encoder embeds, in tens of seconds at most; 0 ``embedded``: none.
    """
    found: dict[str, list[float]] = {
        "generate": [],
        "pack": [],
        "hash": [],
        "prove": [],
        "embed": [],
    }
    chosen = sets.make(set)
    for first in range(0, count if isinstance(chosen, sets.BitSet) else 0, BATCH):
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
        tell(done=first + rows)
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


def _embed(chosen: sets.ImageSet, count: int) -> list[float]:
    from engine.encoders import onnx, registry

    encoder = onnx.OnnxEncoder(registry.find("simclr"))
    times: list[float] = []
    spent = 0.0
    each = min(_EMBEDDED, chosen.chunk)
    for first in range(0, count, each):
        some = [image * chosen.white for image in chosen.arrays(first, min(each, count - first))]
        if not some:  # none of these can be read
            continue
        started = time.perf_counter()
        encoder.encode(some)
        took = time.perf_counter() - started
        times.append(took / len(some))
        spent += took
        if spent > _SECONDS:
            break
    return times[1:] or times  # the first one warms up


def batches(
    n: int, count: int, seed: int, folder: str, memory_bytes: int
) -> dict[str, list[float]]:
    """Seconds an image of ``Store.find_identical``, of each 1,000 packed bit images; the second pass."""
    rows = np.random.default_rng([seed, n]).integers(0, n, count)
    hits, ids = data.packed_rows(seed, rows), rows + 1
    misses, none = data.packed_misses(n, seed, 0, count), np.full(count, -1)
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        for _ in range(2):
            found = {"hit": _many(store, hits, ids), "miss": _many(store, misses, none)}
    return found


def _many(store: Store, images: data.Images, wanted: np.ndarray[Any, Any]) -> list[float]:
    times = []
    for first in range(0, len(images), BATCH):
        some = PackedBits(images[first : first + BATCH], *data.SHAPE[:2])
        started = time.perf_counter()
        found = store.find_identical(some)
        times.append((time.perf_counter() - started) / len(some))
        for one, right in zip(found.tolist(), wanted[first : first + BATCH].tolist(), strict=True):
            check(one, right)
    return times


def singles(
    n: int, count: int, folder: str, memory_bytes: int, set: dict[str, Any], warm: bool
) -> dict[str, Any]:
    """Seconds of each ``Store.lookup`` of an array in the identical tier, and what the disk read.

    ``warm``: asked twice, and the second time counts. Else once, and the caller has seen to it that
    nothing is cached.
    """
    chosen = sets.make(set)
    method = Engine(n, chosen, Path(folder), memory_bytes)
    method.open()
    found: dict[str, Any] = {}
    for _ in range(2 if warm else 1):
        for what, asked in (("hit", chosen.hits(n, count)), ("miss", chosen.misses(n, count))):
            before, times = disk.fetched(), []
            for wanted, image in asked:
                started = time.perf_counter()
                answered = method.find(image)
                times.append(time.perf_counter() - started)
                if not method.right(answered, wanted):
                    raise WrongAnswerError(
                        f"{wanted or 'an image that is not there'}: {answered!r}"
                    )
            found[what] = times
            found[f"{what} bytes"] = (disk.fetched() - before) / max(1, len(times))
    return found | {"resident": memory.peak_resident()}


def near(n: int, count: int, folder: str, memory_bytes: int, set: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each lookup of a copy in the near tier, how many were found, and other hits."""
    times, right, wrong = [], 0, 0
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        for wanted, query in sets.make(set).copies(n, count):
            started = time.perf_counter()
            hits = store.lookup(query, tiers=("near",)).near
            times.append(time.perf_counter() - started)
            # A hit names ten sources at most: a picture may be there more often.
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

    Leaves ``out``.queries.npy, (count, d) float32, and ``out``.truth.npy, (count, k) rows.
    """
    from engine.encoders import onnx, registry

    encoder = onnx.OnnxEncoder(registry.find("simclr"))
    chosen = sets.make(set)
    views = chosen.views(n, count)
    encoded = []
    while some := list(itertools.islice(views, chosen.chunk)):
        encoded.append(encoder.encode(some))
    if not encoded:
        return {"queries": 0, "vectors": 0}
    asked = np.concatenate(encoded)
    with Store.open(folder, read_only=True, memory=memory_bytes) as store:
        _, ids = store.search_vectors(asked, k=k, recall=1)
        vectors = store.info().vectors
    np.save(f"{out}.queries.npy", asked)
    np.save(f"{out}.truth.npy", np.where(ids > 0, ids - 1, -1))
    return {"queries": len(asked), "vectors": vectors}


def flat(n: int, seed: int, given: str, queries: str, truth: str, k: int) -> dict[str, Any]:
    """FAISS's ``IndexFlatL2`` over the same vectors, added as they are made."""
    import faiss

    from .vector_store import VectorStore

    asked: Vectors = np.load(queries)
    known = np.load(truth)[:, :k]
    rows = VectorStore(n, seed, Path(), Path(given) if given else None)
    index = faiss.IndexFlatL2(asked.shape[1])
    empty = memory.anonymous()
    faiss.omp_set_num_threads(1)  # for one query, as with the others
    tell(start=True)
    built = 0.0
    for block in rows.blocks(0, n):
        started = time.perf_counter()
        index.add(np.ascontiguousarray(block))
        built += time.perf_counter() - started
    times, found = [], []
    for query in asked:
        started = time.perf_counter()
        _, nearest = index.search(query[None], k)
        times.append(time.perf_counter() - started)
        found.append(nearest[0])
        if len(times) >= _FEWEST and sum(times) > _SECONDS:
            break
    some = min(len(found), len(known))
    right = recall(np.array(found[:some]), known[:some])
    after = memory.anonymous()
    return {
        "seconds": times,
        "build": built,
        "recall": right,
        "empty": empty,
        "after": after,
    }


def peer_take(method: str, n: int, seed: int, folder: str, memory_bytes: int) -> dict[str, float]:
    """Keys and proofs of a set into a peer, as many a commit as the engine has.

    From a peer that is not there to its end; the next images are made and hashed meanwhile.
    """
    budget = MemoryBudget(memory_bytes)
    empty = memory.anonymous()
    tell(start=True)
    started = time.perf_counter()
    peer = PEERS[method](Path(folder), cache_bytes(budget))
    added = 0

    def packed(first: int, rows: int) -> data.Images:
        return np.concatenate(list(_packed(seed, first, rows)))

    for first, (keys, proofs) in hashed_ahead(packed, n, chunk_rows(budget)):
        added += peer.take(first + 1, keys, proofs)
        tell(done=first + len(keys))
    peer.close()
    spent = time.perf_counter() - started
    if added != n:
        raise BenchError(f"{added:,} of {n:,} images were added to {method}")
    return {"seconds": spent, "disk": disk.taken(Path(folder)), "empty": empty}


def _packed(seed: int, first: int, count: int) -> Iterator[data.Images]:
    for at in range(first, first + count, BATCH):
        yield data.packed(seed, at, min(BATCH, first + count - at))


def peer_ask(
    method: str, n: int, count: int, seed: int, folder: str, memory_bytes: int
) -> dict[str, list[float]]:
    """Seconds of each lookup in a peer, from the unpacked array to the verified answer; second pass."""
    peer = PEERS[method](Path(folder), cache_bytes(MemoryBudget(memory_bytes)))
    asked = AskedPeer(peer)
    found: dict[str, list[float]] = {}
    for _ in range(2):
        for what, some in (
            ("hit", data.hits(n, seed, count)),
            ("miss", data.misses(n, seed, count)),
        ):
            times = []
            for row, image in some:
                started = time.perf_counter()
                one = asked.one(PackedBits.pack(image[None]).packed)
                times.append(time.perf_counter() - started)
                check(one, -1 if row is None else row + 1)
            found[what] = times
    return found


_JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "images": images,
    "batches": batches,
    "singles": singles,
    "near": near,
    "queries": queries,
    "flat": flat,
    "peer_take": peer_take,
    "peer_ask": peer_ask,
}


def work(job: str, **given: Any) -> dict[str, Any]:
    """One of the functions above, by its name."""
    return _JOBS[job](**given)


if __name__ == "__main__":
    answer(work)
