"""Stages over images: the engine, and methods in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from ..data.vector_store import K
from ..harness import disk
from ..harness.errors import BenchError
from ..harness.measurement import SECONDS, SHARE, Measurement, Skipped
from ..harness.process import Finished, run_child
from ..peers.methods import ENGINE, IMAGE_MEMORY, NOTES, WITH_MAKING
from .context import Context
from .figures import NO_PLAIN_PICTURE, RECALL, Advance, Figure, bytes_figure, memory_figure
from .index_search import search

MADE = "made"  # the method of the work on images before any lookup
COPIES = 200
SINGLES = 1_000

_ROUNDS = ((10_000, 9), (100_000, 5), (1_000_000, 3))  # ingests up to a size: short ones vary most
_SAMPLE = 10_000  # images made, packed and hashed to time these
_EMBEDDED = 1_024
_BATCHED = 10_000
_COLD = 300


def made(context: Context, advance: Advance) -> Iterator[Figure]:
    """Times of making, packing, hashing, proving and embedding images."""
    n = context.plan.sizes[-1]
    count = min(n, _SAMPLE)
    embedded = 0 if context.plan.embed == "none" else min(n, _EMBEDDED)
    spec = {"count": count, "embedded": embedded}
    done = run_child(
        "suite.image_child", spec | {"set": context.plan.spec}, lambda done: advance(done / count)
    )
    for figure, times in done.result.items():
        if times:
            note = f"an image, of a sample of {count:,}"
            if figure == "embed":  # embedding ends after some seconds
                note = f"an image, of a sample of at most {embedded:,}"
            yield Measurement(n, "images", MADE, figure, SECONDS, tuple(times), note)


def in_memory(context: Context, method: str, n: int, advance: Advance) -> Iterator[Figure]:
    """A method that holds the whole set in memory: its cost, and its lookups."""
    need = n * IMAGE_MEMORY[method]
    if need > context.plan.memory:
        # One more size, the largest that fits: three sizes show growth better than two.
        fits = context.plan.memory // IMAGE_MEMORY[method]
        below = max((size for size in context.plan.sizes if size < n), default=0)
        yield Skipped(
            n,
            "identical",
            method,
            f"it would take {need / 1e9:,.1f} GB of memory, more than {context.memory_option}",
        )
        if below * 2 > fits or below * IMAGE_MEMORY[method] > context.plan.memory:
            return
        n = fits // 1_000 * 1_000 or fits
    spec = context.set_spec(n) | {"method": method, "folder": "", "lookups": True}
    spec["images"] = spec.pop("set")
    done = run_child("peers.method_child", spec, lambda done: advance(done / n))
    yield from _method_figures(n, method, done)


def ingest(context: Context, n: int, advance: Advance) -> Iterator[Figure]:
    """Ingest the set into a store, which stays in ``work/store``; small sets several times."""
    store = context.work / "store"
    spec = context.set_spec(n) | {"method": ENGINE, "folder": str(store), "lookups": False}
    spec["images"] = spec.pop("set")
    times = []
    rounds = 1 if context.is_encoded else next((r for most, r in _ROUNDS if n <= most), 1)
    for number in range(rounds):
        shutil.rmtree(store, ignore_errors=True)

        def share(done: int, number: int = number) -> None:
            advance(0.7 * (number + done / n) / rounds)

        done = context.child("peers.method_child", spec, share)
        times.append(done.result["build_s"])
    found = done.result
    note = f"{NOTES[ENGINE]}; {WITH_MAKING}"
    yield Measurement(n, "ingest", ENGINE, "time", SECONDS, tuple(times), note)
    if found["baseline"]:
        peak = max(done.anonymous_peak, found["final"]) - found["baseline"]
        yield from memory_figure(n, "ingest", ENGINE, "memory", peak)
        yield bytes_figure(n, "ingest", ENGINE, "rss", done.resident_peak)
    yield bytes_figure(n, "ingest", ENGINE, "disk", found["disk"])
    for part, size in found["parts"].items():
        yield bytes_figure(n, "ingest", ENGINE, f"disk, {part}", size)


def lookups(context: Context, n: int) -> Iterator[Figure]:
    """Lookups in the identical tier of that store: cold, warm and in batches."""
    given = context.set_spec(n) | {"folder": str(context.work / "store")}
    count = min(SINGLES, max(_COLD, n))
    try:
        disk.forget(context.work / "store", everything=False)
    except BenchError as error:
        yield Skipped(n, "identical", ENGINE, f"no cold lookups: {error}")
    else:
        yield from _cold_lookups(context, n, given | {"count": min(_COLD, count)})
    warm = given | {"job": "singles", "count": count, "warm": True}
    found = context.child("suite.store_child", warm).result
    for figure in ("hit", "miss"):
        if not found[figure]:
            yield Skipped(n, "identical", ENGINE, NO_PLAIN_PICTURE)
            return
        times = tuple(found[figure])
        yield Measurement(n, "identical", ENGINE, figure, SECONDS, times, NOTES[ENGINE])
    if context.plan.spec.get("folder"):
        return
    spec = {key: value for key, value in given.items() if key != "set"}
    spec |= {"job": "batches", "count": _BATCHED, "seed": context.plan.seed}
    found = context.child("suite.store_child", spec).result
    for figure in ("hit", "miss"):
        note = "an image, of 1,000 packed ones at once"
        times = tuple(found[figure])
        yield Measurement(n, "identical", ENGINE, f"{figure}, batch", SECONDS, times, note)


def _cold_lookups(context: Context, n: int, given: dict[str, Any]) -> Iterator[Figure]:
    cold = given | {"job": "singles", "warm": False}
    found = context.child("suite.store_child", cold).result
    for figure, note in (
        ("hit", "a lookup in a new process, nothing of the store in the page cache"),
        ("miss", "the same, after the hits: filters, the main cost of a miss, are in memory"),
    ):
        if not found[figure]:
            return
        times = tuple(found[figure])
        yield Measurement(n, "identical", ENGINE, f"{figure}, cold", SECONDS, times, note)
        read = found[f"{figure} bytes"]
        yield bytes_figure(n, "identical", ENGINE, f"{figure}, cold, read", read)


def near(context: Context, n: int) -> Iterator[Figure]:
    """Copies of images, looked up in the near tier of that store."""
    spec = context.set_spec(n) | {"job": "near", "folder": str(context.work / "store")}
    done = context.child("suite.store_child", spec | {"count": min(COPIES, n)}).result
    if not done["seconds"]:
        yield Skipped(n, "near", ENGINE, NO_PLAIN_PICTURE)
        return
    what = "JPEG of quality 50" if context.plan.spec.get("folder") else "5 % of the bits flipped"
    note = f"{what}; {done['others']} other hits"
    yield Measurement(n, "near", ENGINE, "hit", SECONDS, tuple(done["seconds"]), note)
    yield Measurement(n, "near", ENGINE, "recall", SHARE, (done["found"],), note)


def embedded(context: Context, n: int) -> Iterator[Figure]:
    """Searches of the images' own vectors, in the store that the images were ingested into."""
    store = context.work / "store"
    spec = context.set_spec(n) | {"job": "queries", "folder": str(store), "k": K}
    spec |= {"count": min(500, n), "out": str(context.work / "own")}
    if not context.child("suite.store_child", spec).result["queries"]:
        yield Skipped(n, "similar", ENGINE, NO_PLAIN_PICTURE)
        return
    queries, truth = context.work / "own.queries.npy", context.work / "own.truth.npy"
    yield from search(context, n, store, queries, truth, ENGINE, (RECALL,), context.within)


def _method_figures(n: int, method: str, done: Finished) -> Iterator[Figure]:
    found, note = done.result, NOTES[method]
    took = found["generate_s"] + found["build_s"]
    yield Measurement(n, "ingest", method, "time", SECONDS, (took,), f"{note}; {WITH_MAKING}")
    if found["baseline"]:
        peak = max(done.anonymous_peak, found["final"]) - found["baseline"]
        yield from memory_figure(n, "ingest", method, "memory", peak)
    for figure in ("hit", "miss"):
        times = tuple(one / 1e6 for one in found[f"{figure}_us"])
        if not times:
            yield Skipped(n, "identical", method, NO_PLAIN_PICTURE)
            return
        yield Measurement(n, "identical", method, figure, SECONDS, times, note)
