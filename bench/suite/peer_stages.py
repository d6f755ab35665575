"""Stages of the engine's peers: tables of keys, fingerprints, indexes of vectors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from ..data import clustered_vectors
from ..data.arrays import write_array
from ..data.vector_store import K, VectorStore
from ..harness.measurement import SECONDS, SHARE, Measurement, Skipped
from ..harness.process import run_child
from ..peers.methods import WITH_MAKING
from ..peers.vector_indexes import INDEXES
from .context import Context
from .figures import NO_PLAIN_PICTURE, RECALL, Advance, Figure, bytes_figure, memory_figure
from .image_stages import COPIES, SINGLES
from .index_search import search

FLAT_L2 = "IndexFlatL2"  # FAISS's

_FLAT_BYTES = 600  # of memory, a vector of 128 dimensions
_HASH_SECONDS = 60.0  # that a peer may take to fingerprint a set


def key_table(context: Context, name: str, n: int, advance: Advance) -> Iterator[Figure]:
    """A table of keys and proofs: inserts and lookups."""
    folder = context.work / "peer"
    shutil.rmtree(folder, ignore_errors=True)
    given = {"method": name, "n": n, "seed": context.plan.seed, "folder": str(folder)}
    given["memory_bytes"] = context.plan.memory
    taken = run_child("suite.peer_child", given | {"job": "take"}, lambda done: advance(done / n))
    found = taken.result
    note = f"keys and proofs, durable; {WITH_MAKING}"
    yield Measurement(n, "ingest", name, "time", SECONDS, (found["seconds"],), note)
    yield from memory_figure(n, "ingest", name, "memory", taken.anonymous_peak - found["empty"])
    yield bytes_figure(n, "ingest", name, "disk", found["disk"])
    spec = given | {"job": "ask", "count": min(SINGLES, n)}
    for figure, times in run_child("suite.peer_child", spec).result.items():
        note = "verified by SHA-256"
        yield Measurement(n, "identical", name, figure, SECONDS, tuple(times), note)
    shutil.rmtree(folder, ignore_errors=True)


def fingerprints(context: Context, name: str, n: int, advance: Advance) -> Iterator[Figure]:
    """Lookups of copies among fingerprints in memory, all compared."""
    spec = context.set_spec(n) | {"count": min(COPIES, n), "max_seconds": _HASH_SECONDS}
    del spec["memory_bytes"]
    found = run_child("suite.pdqhash_child", spec).result
    if not found["seconds"]:
        yield Skipped(n, "near", name, NO_PLAIN_PICTURE)
        return
    note = "PDQ, which is for pictures, of each in memory, all compared, within 31 of 256"
    yield Measurement(n, "near", name, "build", SECONDS, (found["build"],), note)
    yield Measurement(n, "near", name, "hit", SECONDS, tuple(found["seconds"]), note)
    yield Measurement(n, "near", name, "recall", SHARE, (found["found"],), note)


def flat_index(context: Context, vectors: VectorStore) -> Iterator[Figure]:
    """All vectors in memory, all compared with each query."""
    n = vectors.n
    dim = vectors.asked(1).shape[1]
    need = n * _FLAT_BYTES * dim // clustered_vectors.DIM
    if need > context.plan.memory:
        why = f"it would take {need / 1e9:,.1f} GB of memory, more than {context.memory_option}"
        yield Skipped(n, "similar", FLAT_L2, why)
        return
    spec = {"job": "flat", "n": n, "seed": context.plan.seed, "k": K, "truth": str(vectors.truth)}
    spec |= {"queries": str(vectors.queries), "array": str(vectors.array or "")}
    done = run_child("suite.peer_child", spec)
    found, note = done.result, f"{context.vectors_note}; all compared"
    yield Measurement(n, "similar", FLAT_L2, "build", SECONDS, (found["build"],), note)
    yield Measurement(n, "similar", FLAT_L2, "single", SECONDS, tuple(found["seconds"]), note)
    # The truth is by inner product. The least distance gives the same order only for unit vectors.
    if context.plan.unit:
        yield Measurement(n, "similar", FLAT_L2, f"recall@{K}", SHARE, (found["recall"],), note)
    else:
        why = "no recall: the vectors are not of unit length, and it compares distances"
        yield Skipped(n, "similar", FLAT_L2, why)
    yield from memory_figure(n, "similar", FLAT_L2, "memory", found["after"] - found["empty"])


def vector_index(
    context: Context, name: str, vectors: VectorStore, advance: Advance
) -> Iterator[Figure]:
    """An index of vectors: built, swept to the wanted recall, and searched there."""
    n = vectors.n
    array, folder = context.work / f"all-{n}.npy", context.work / "peer"
    if not array.exists():
        write_array(array, vectors.blocks(0, n), n, vectors.asked(1).shape[1])
    shutil.rmtree(folder, ignore_errors=True)
    given = {"method": name, "folder": str(folder), "memory_bytes": context.plan.memory}
    spec = given | {"job": "build", "vectors": str(array), "threads": 2, "wanted": RECALL}
    built = run_child("peers.index_child", spec)
    asked_with = given | {"queries": str(vectors.queries), "truth": str(vectors.truth)}
    asked_with |= {"k": K, "gone": None, "job": "sweep", "threads": 2}
    points = run_child(
        "peers.index_child", asked_with | {"settings": list(INDEXES[name].sweep)}
    ).result["points"]
    setting = next((one["setting"] for one in points if one["recall"] >= RECALL), None)
    note = context.vectors_note
    yield Measurement(n, "similar", name, "build", SECONDS, (built.result["seconds"],), note)
    peak = built.anonymous_peak - built.result["empty"]
    yield from memory_figure(n, "similar", name, "build memory", peak)
    yield bytes_figure(n, "similar", name, "disk", built.result["disk"])
    if setting is None:
        most = max(one["recall"] for one in points)
        yield Skipped(n, "similar", name, f"its recall of {most:.3f} does not reach {RECALL}")
    else:
        yield from search(
            context, n, folder, vectors.queries, vectors.truth, name, tuple(setting), ()
        )
    shutil.rmtree(folder, ignore_errors=True)
