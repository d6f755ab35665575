"""``engine bench``: every tier at growing n, beside what people use instead, each in its own process.

A run is a list of stages; each yields figures as it ends, and after each the results so far are on
disk. Images and vectors are streamed: what a run holds in memory does not grow with n.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.errors import EngineError, UsageError
from engine.storage.temp_folders import work_folder

from . import asked, clustered, disk
from .arrays import write_array
from .errors import BenchError, WrongAnswerError
from .limit import Limit, limited
from .machine import machine, versions
from .measurement import BYTES, SECONDS, SHARE, Measurement, Skipped
from .methods import DICT, ENGINE, IMAGE_MEMORY, LIST, MEANWHILE, NOTES, PIXELS
from .planned import IDENTICAL_PEERS, NEAR_PEERS, SIMILAR_PEERS, Plan, missing
from .process import Finished, run_child
from .results import Results, finish, save
from .vector_peers import INDEXES
from .vector_store import QUERIES, K, VectorStore

_DEPTH = 8  # of folders in the one that a bench works in

FLAT = "IndexFlatL2"  # of FAISS, which the report used
RECALL = 0.95  # at 10 that is wanted of the indexes
MADE = "made"  # the method of what is done to images before anything looks for them
RUN = "run"

_FLAT_BYTES = 600  # of memory, a vector of 128 dimensions
_ROUNDS = ((10_000, 9), (100_000, 5), (1_000_000, 3))  # ingests up to a size: short ones vary most
_SAMPLE = 10_000  # images that are made, packed and hashed for their times
_EMBEDDED = 1_024
_BATCHED = 10_000
_SINGLES = 1_000
_COLD = 300
_COPIES = 200
_ASKED = 2_000  # made queries
_NONE_PLAIN = "none of its pictures is opaque, of 8 bits a channel, and can be read"
_HASH_SECONDS = 60.0  # that a peer may take to fingerprint a set

Figure = Measurement | Skipped
Tell = Callable[[float], None]  # the share of a stage that is done


@dataclass(slots=True)
class _Stage:
    """A part of the run: ``seconds`` is a rough guess, by which progress is told."""

    label: str
    seconds: float
    work: Callable[[Tell], Iterator[Figure]]


def run(
    given: Plan,
    *,
    out: Path | None,
    progress: Callable[[int, int | None], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[Results, list[str]]:
    """Measure; the results, and what could not be written of them and why.

    ``out``: a new or empty folder for the results, in which stores are made meanwhile and removed
    again; where it is None, that is done in the system's folder for temporary files.
    ``progress(done, total)`` counts seconds as they were guessed beforehand, ``note`` is told what is
    being measured. Ctrl-C ends the run, and what was measured until then is in ``out``.

    Raises ``UsageError`` if ``out`` cannot be used, ``WrongAnswerError`` if the engine gives one, and
    ``BenchError`` if it cannot be measured.
    """
    if out is not None:
        _make_empty(out)
    started, clock = datetime.now(UTC), time.perf_counter()
    settings = given.settings()
    found: list[Measurement] = []
    skipped: list[Skipped] = []

    def results(complete: bool) -> Results:
        return Results(
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - clock, 1),
            complete=complete,
            settings=settings,
            machine=machine(),
            versions=versions(),
            measurements=tuple(found),
            skipped=tuple(skipped),
        )

    with ExitStack() as stack:
        work = stack.enter_context(work_folder(out, "engine-bench-", _DEPTH))
        limit = None
        if given.limit is not None:
            limit = stack.enter_context(limited(given.limit, fallback=True))
            settings["memory_limit_by"] = limit.how
        bench = _Bench(given, work, limit)
        stages = bench.stages()
        total = max(1, round(sum(stage.seconds for stage in stages)))
        before = 0.0
        try:
            for stage in stages:
                if note is not None:
                    note(stage.label)

                def tell(share: float, stage: _Stage = stage) -> None:
                    if progress is not None:
                        progress(round(before + min(1.0, share) * stage.seconds), total)  # noqa: B023

                tell(0.0)
                for figure in stage.work(tell):
                    (found if isinstance(figure, Measurement) else skipped).append(figure)  # type: ignore[arg-type]
                before += stage.seconds
                if out is not None:
                    save(results(False), out)
            n = given.sizes[-1] if given.sizes else bench.images
            found.append(Measurement(n, RUN, ENGINE, "rss", BYTES, (float(bench.resident),)))
            done = results(True)
        except KeyboardInterrupt:
            if out is not None:
                save(results(False), out)  # drawing takes longer than somebody wants to wait now
            raise
        except BaseException:
            if out is not None:
                finish(results(False), out)
            raise
    return done, finish(done, out) if out is not None else []


@dataclass(slots=True)
class _Bench:
    """The stages of a plan, and what they share."""

    plan: Plan
    work: Path
    limit: Limit | None
    resident: int = 0  # the largest resident set of the engine's processes, bytes
    images: int = 0  # of a store that was there
    _builds: dict[int, list[float]] = field(default_factory=dict)

    # --- the list of stages -----------------------------------------------------------------------

    def stages(self) -> list[_Stage]:
        """Everything that is to be measured, in order."""
        given = self.plan
        if given.store is not None:
            return [_Stage(f"asking {given.store}", 30, self._store_that_is_there)]
        found: list[_Stage] = []
        if given.images is not None:
            found.append(_Stage("making, hashing and embedding images", 6, self._made))
            for n in given.sizes:
                found += self._identical(n)
        if given.similar:
            for n in given.sizes:
                found += self._similar(n)
        found.append(_Stage("comparing with others", 0.1, self._unsuited))
        found.append(_Stage("reading the disk", 2, self._disk))
        return found

    @property
    def _peers(self) -> list[str]:
        return [name for name in self.plan.peers if self.plan.unsuited(name) is None]

    def _unsuited(self, tell: Tell) -> Iterator[Figure]:
        """Peers that were asked for, and have nothing to do with these data."""
        for name in self.plan.peers:
            why = self.plan.unsuited(name)
            if why is not None:
                yield Skipped(self.plan.sizes[-1], why[0], name, why[1])

    def _identical(self, n: int) -> list[_Stage]:
        bits = not self.plan.spec.get("folder")
        each = 1 if bits else 20  # times as long to read a picture as to make a bit image
        found = [
            _Stage(
                f"{method}, {n:,} images",
                1 + 7e-5 * n * each,
                lambda tell, method=method, n=n: self._in_memory(method, n, tell),  # type: ignore[misc]
            )
            for method in (PIXELS, LIST, DICT)
            if bits or method != PIXELS
        ]
        encoded = self.plan.images is not None and self.plan.images.encoder != "none"
        seconds = 3 + (2.5e-3 if encoded else 2.5e-5) * n

        def engine(tell: Tell) -> Iterator[Figure]:
            yield from self._ingest(n, tell)
            yield from self._ask(n)
            yield from self._near(n)
            if encoded:
                yield from self._embedded(n)
            shutil.rmtree(self.work / "store", ignore_errors=True)

        found.append(_Stage(f"the engine, {n:,} images", seconds + 8, engine))
        for name in self._peers:
            if name in IDENTICAL_PEERS:
                found.append(
                    _Stage(
                        f"{name}, {n:,} images",
                        2 + 2e-5 * n,
                        lambda tell, name=name, n=n: self._guard(  # type: ignore[misc]
                            n, "identical", name, self._keys(name, n, tell)
                        ),
                    )
                )
            if name in NEAR_PEERS:
                found.append(
                    _Stage(
                        f"{name}, {n:,} images",
                        2 + 2e-4 * n,
                        lambda tell, name=name, n=n: self._guard(  # type: ignore[misc]
                            n, "near", name, self._near_peer(name, n)
                        ),
                    )
                )
        return found

    def _similar(self, n: int) -> list[_Stage]:
        vectors = VectorStore(n, self.plan.seed, self.work, self.plan.vectors)

        def engine(tell: Tell) -> Iterator[Figure]:
            yield from self._index(vectors, tell)

        def flat(tell: Tell) -> Iterator[Figure]:
            yield from self._flat(vectors)

        found = [
            _Stage(f"the index, {n:,} vectors", 6 + 9e-5 * n, engine),
            _Stage(f"{FLAT}, {n:,} vectors", 3 + 2e-5 * n, flat),
        ]
        for name in self._peers:
            if name in SIMILAR_PEERS:
                found.append(
                    _Stage(
                        f"{name}, {n:,} vectors",
                        5 + 1.5e-4 * n,
                        lambda tell, name=name: self._guard(  # type: ignore[misc]
                            n, "similar", name, self._peer_index(name, vectors)
                        ),
                    )
                )

        def clear(tell: Tell) -> Iterator[Figure]:
            for path in self.work.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield from ()

        return [*found, _Stage("tidying up", 0.1, clear)]

    def _guard(self, n: int, tier: str, name: str, figures: Iterator[Figure]) -> Iterator[Figure]:
        """A peer that is not there, crashes or fails is left out, with the reason."""
        why = missing(name)
        if why is not None:
            yield Skipped(n, tier, name, why)
            return
        try:
            yield from figures
        except EngineError as error:
            yield Skipped(n, tier, name, str(error))

    # --- images -----------------------------------------------------------------------------------

    def _made(self, tell: Tell) -> Iterator[Figure]:
        n = self.plan.sizes[-1]
        count = min(n, _SAMPLE)
        embedded = 0 if self.plan.embed == "none" else min(n, _EMBEDDED)
        spec = {"job": "images", "count": count, "embedded": embedded, "folder": str(self.work)}
        done = run_child(
            "suite_child", spec | {"set": self.plan.spec}, lambda done: tell(done / count)
        )
        for figure, times in done.result.items():
            if times:
                note = f"an image, of a sample of {count:,}"
                if figure == "embed":  # which ends after some seconds
                    note = f"an image, of a sample of at most {embedded:,}"
                yield Measurement(n, "images", MADE, figure, SECONDS, tuple(times), note)

    def _in_memory(self, method: str, n: int, tell: Tell) -> Iterator[Figure]:
        need = n * IMAGE_MEMORY[method]
        if need > self.plan.memory:
            # One size more, the largest that fits: growth is seen better over three sizes than two.
            fits = self.plan.memory // IMAGE_MEMORY[method]
            below = max((size for size in self.plan.sizes if size < n), default=0)
            yield Skipped(
                n,
                "identical",
                method,
                f"it would take {need / 1e9:,.1f} GB of memory, more than {self._allowed}",
            )
            if below * 2 > fits or below * IMAGE_MEMORY[method] > self.plan.memory:
                return
            n = fits // 1_000 * 1_000 or fits
        spec = self._given(n) | {"method": method, "folder": "", "lookups": True}
        spec["images"] = spec.pop("set")
        done = run_child("measure", spec, lambda done: tell(done / n))
        yield from _of_method(n, method, done)

    def _ingest(self, n: int, tell: Tell) -> Iterator[Figure]:
        store = self.work / "store"
        spec = self._given(n) | {"method": ENGINE, "folder": str(store), "lookups": False}
        spec["images"] = spec.pop("set")
        times = []
        rounds = 1 if self._encoded else next((r for most, r in _ROUNDS if n <= most), 1)
        for number in range(rounds):
            shutil.rmtree(store, ignore_errors=True)

            def share(done: int, number: int = number) -> None:
                tell(0.7 * (number + done / n) / rounds)

            done = self._child("measure", spec, share)
            times.append(done.result["build_s"])
        found = done.result
        note = f"{NOTES[ENGINE]}; {MEANWHILE}"
        yield Measurement(n, "ingest", ENGINE, "time", SECONDS, tuple(times), note)
        if found["baseline"]:
            peak = max(done.anonymous_peak, found["final"]) - found["baseline"]
            yield from _memory(n, "ingest", ENGINE, "memory", peak)
            yield _bytes(n, "ingest", ENGINE, "rss", done.resident_peak)
        yield _bytes(n, "ingest", ENGINE, "disk", found["disk"])
        for part, size in found["parts"].items():
            yield _bytes(n, "ingest", ENGINE, f"disk, {part}", size)

    def _ask(self, n: int) -> Iterator[Figure]:
        given = self._given(n) | {"folder": str(self.work / "store")}
        count = min(_SINGLES, max(_COLD, n))
        cold = given | {"job": "singles", "count": min(_COLD, count), "warm": False}
        disk.forget(self.work / "store", everything=False)
        found = self._child("suite_child", cold).result
        for figure, note in (
            ("hit", "a lookup in a new process, nothing of the store in the page cache"),
            ("miss", "the same, after the hits: filters, which are most of a miss, are in memory"),
        ):
            if not found[figure]:
                yield Skipped(n, "identical", ENGINE, _NONE_PLAIN)
                return
            times = tuple(found[figure])
            yield Measurement(n, "identical", ENGINE, f"{figure}, cold", SECONDS, times, note)
            read = found[f"{figure} bytes"]
            yield _bytes(n, "identical", ENGINE, f"{figure}, cold, read", read)
        warm = given | {"job": "singles", "count": count, "warm": True}
        found = self._child("suite_child", warm).result
        for figure in ("hit", "miss"):
            times = tuple(found[figure])
            yield Measurement(n, "identical", ENGINE, figure, SECONDS, times, NOTES[ENGINE])
        if self.plan.spec.get("folder"):
            return
        spec = {key: value for key, value in given.items() if key != "set"}
        spec |= {"job": "batches", "count": _BATCHED, "seed": self.plan.seed}
        found = self._child("suite_child", spec).result
        for figure in ("hit", "miss"):
            note = "an image, of 1,000 packed ones at once"
            times = tuple(found[figure])
            yield Measurement(n, "identical", ENGINE, f"{figure}, batch", SECONDS, times, note)

    def _near(self, n: int) -> Iterator[Figure]:
        spec = self._given(n) | {"job": "near", "folder": str(self.work / "store")}
        done = self._child("suite_child", spec | {"count": min(_COPIES, n)}).result
        if not done["seconds"]:
            yield Skipped(n, "near", ENGINE, _NONE_PLAIN)
            return
        what = "JPEG of quality 50" if self.plan.spec.get("folder") else "5 % of the bits flipped"
        note = f"{what}; {done['others']} other hits"
        yield Measurement(n, "near", ENGINE, "hit", SECONDS, tuple(done["seconds"]), note)
        yield Measurement(n, "near", ENGINE, "recall", SHARE, (done["found"],), note)

    def _embedded(self, n: int) -> Iterator[Figure]:
        """The images' own vectors: the store is the one that the images were taken into."""
        store = self.work / "store"
        spec = self._given(n) | {"job": "queries", "folder": str(store), "k": K}
        spec |= {"count": min(500, n), "out": str(self.work / "own")}
        if not self._child("suite_child", spec).result["queries"]:
            yield Skipped(n, "similar", ENGINE, _NONE_PLAIN)
            return
        queries, truth = self.work / "own.queries.npy", self.work / "own.truth.npy"
        yield from self._search(n, store, queries, truth, ENGINE, (RECALL,), self.within)

    def _keys(self, name: str, n: int, tell: Tell) -> Iterator[Figure]:
        folder = self.work / "peer"
        shutil.rmtree(folder, ignore_errors=True)
        given = {"method": name, "n": n, "seed": self.plan.seed, "folder": str(folder)}
        given["memory_bytes"] = self.plan.memory
        taken = run_child("suite_child", given | {"job": "peer_take"}, lambda done: tell(done / n))
        found = taken.result
        note = f"keys and proofs, durable; {MEANWHILE}"
        yield Measurement(n, "ingest", name, "time", SECONDS, (found["seconds"],), note)
        yield from _memory(n, "ingest", name, "memory", taken.anonymous_peak - found["empty"])
        yield _bytes(n, "ingest", name, "disk", found["disk"])
        spec = given | {"job": "peer_ask", "count": min(_SINGLES, n)}
        for figure, times in run_child("suite_child", spec).result.items():
            note = "verified by SHA-256"
            yield Measurement(n, "identical", name, figure, SECONDS, tuple(times), note)
        shutil.rmtree(folder, ignore_errors=True)

    def _near_peer(self, name: str, n: int) -> Iterator[Figure]:
        spec = self._given(n) | {"count": min(_COPIES, n), "most_seconds": _HASH_SECONDS}
        del spec["memory_bytes"]
        found = run_child("near_child", spec).result
        if not found["seconds"]:
            yield Skipped(n, "near", name, _NONE_PLAIN)
            return
        note = "PDQ, which is for pictures, of each in memory, all compared, within 31 of 256"
        yield Measurement(n, "near", name, "build", SECONDS, (found["build"],), note)
        yield Measurement(n, "near", name, "hit", SECONDS, tuple(found["seconds"]), note)
        yield Measurement(n, "near", name, "recall", SHARE, (found["found"],), note)

    # --- vectors ----------------------------------------------------------------------------------

    def _index(self, vectors: VectorStore, tell: Tell) -> Iterator[Figure]:
        n = vectors.n
        built = vectors.make(
            memory=self.plan.memory,
            wanted=RECALL,
            queries=_ASKED if vectors.given is None else QUERIES,
            done=lambda done: tell(0.3 * done / n),
            within=self.within,
        )
        self.resident = max(self.resident, built.resident)
        note = f"{self._vectors_note}; ingest and optimize"
        yield Measurement(n, "similar", ENGINE, "build", SECONDS, (built.seconds,), note)
        yield from _memory(n, "similar", ENGINE, "build memory", built.peak)
        yield _bytes(n, "similar", ENGINE, "disk", sum(built.parts.values()))
        yield from self._search(
            n, vectors.store, vectors.queries, vectors.truth, ENGINE, (RECALL,), self.within
        )

    def _flat(self, vectors: VectorStore) -> Iterator[Figure]:
        n = vectors.n
        dim = vectors.asked(1).shape[1]
        need = n * _FLAT_BYTES * dim // clustered.DIM
        if need > self.plan.memory:
            why = f"it would take {need / 1e9:,.1f} GB of memory, more than {self._allowed}"
            yield Skipped(n, "similar", FLAT, why)
            return
        spec = {"job": "flat", "n": n, "seed": self.plan.seed, "k": K, "truth": str(vectors.truth)}
        spec |= {"queries": str(vectors.queries), "given": str(vectors.given or "")}
        done = run_child("suite_child", spec)
        found, note = done.result, f"{self._vectors_note}; all compared"
        yield Measurement(n, "similar", FLAT, "build", SECONDS, (found["build"],), note)
        yield Measurement(n, "similar", FLAT, "single", SECONDS, tuple(found["seconds"]), note)
        # The truth is by inner product, which the least distance is only among vectors of one length.
        if self.plan.unit:
            yield Measurement(n, "similar", FLAT, f"recall@{K}", SHARE, (found["recall"],), note)
        else:
            why = "no recall: the vectors are not of unit length, and it compares distances"
            yield Skipped(n, "similar", FLAT, why)
        yield from _memory(n, "similar", FLAT, "memory", found["after"] - found["empty"])

    def _peer_index(self, name: str, vectors: VectorStore) -> Iterator[Figure]:
        n = vectors.n
        array, folder = self.work / f"all-{n}.npy", self.work / "peer"
        if not array.exists():
            write_array(array, vectors.blocks(0, n), n, vectors.asked(1).shape[1])
        shutil.rmtree(folder, ignore_errors=True)
        given = {"method": name, "folder": str(folder), "memory_bytes": self.plan.memory}
        spec = given | {"job": "build", "vectors": str(array), "threads": 2, "wanted": RECALL}
        built = run_child("index_child", spec)
        asked_with = given | {"queries": str(vectors.queries), "truth": str(vectors.truth)}
        asked_with |= {"k": K, "gone": None, "job": "sweep", "threads": 2}
        points = run_child(
            "index_child", asked_with | {"settings": list(INDEXES[name].sweep)}
        ).result["points"]
        setting = next((one["setting"] for one in points if one["recall"] >= RECALL), None)
        note = self._vectors_note
        yield Measurement(n, "similar", name, "build", SECONDS, (built.result["seconds"],), note)
        peak = built.anonymous_peak - built.result["empty"]
        yield from _memory(n, "similar", name, "build memory", peak)
        yield _bytes(n, "similar", name, "disk", built.result["disk"])
        if setting is None:
            most = max(one["recall"] for one in points)
            yield Skipped(n, "similar", name, f"its recall of {most:.3f} does not reach {RECALL}")
        else:
            yield from self._search(
                n, folder, vectors.queries, vectors.truth, name, tuple(setting), ()
            )
        shutil.rmtree(folder, ignore_errors=True)

    def _search(
        self,
        n: int,
        store: Path,
        queries: Path,
        truth: Path,
        method: str,
        setting: tuple[float, ...],
        within: tuple[str, ...],
    ) -> Iterator[Figure]:
        """An index that is there, asked for one query after the other, and for 1,000 at once."""
        spec: dict[str, object] = {
            "method": method,
            "folder": str(store),
            "memory_bytes": self.plan.memory,
            "queries": str(queries),
            "truth": str(truth),
            "k": K,
            "gone": None,
            "setting": list(setting),
        }
        single = run_child("index_child", spec | {"job": "single", "threads": 1}, within=within)
        batch = run_child("index_child", spec | {"job": "batch", "threads": 2}, within=within)
        note = f"recall@{K} of {RECALL} wanted"
        times = tuple(single.result["seconds"])
        yield Measurement(n, "similar", method, "single", SECONDS, times, note)
        each = 1 / batch.result["qps"]
        yield Measurement(n, "similar", method, "batch", SECONDS, (each,), f"{note}; two threads")
        right = batch.result["recall"]
        yield Measurement(n, "similar", method, f"recall@{K}", SHARE, (right,), note)
        held = batch.result["searched"] - batch.result["empty"]
        yield from _memory(n, "similar", method, "memory", held)
        if method == ENGINE:
            self.resident = max(self.resident, single.resident_peak, batch.resident_peak)

    # --- a store that is there, and the disk ------------------------------------------------------

    def _store_that_is_there(self, tell: Tell) -> Iterator[Figure]:
        spec = {"folder": str(self.plan.store), "memory_bytes": self.plan.memory}
        spec |= {"count": _SINGLES, "seed": self.plan.seed}
        done = self._child("asked", spec, lambda done: tell(done / _SINGLES))
        self.images = done.result["images"]
        yield from asked.figures(done.result)

    def _disk(self, tell: Tell) -> Iterator[Figure]:
        n = self.plan.sizes[-1]
        file = self.work / "random"
        times = disk.random_reads(file, seed=self.plan.seed)
        note = "4 KiB at a random place of a file that is not in the page cache"
        yield Measurement(n, "disk", "disk", "read", SECONDS, tuple(times), note)

    # --- what they share --------------------------------------------------------------------------

    @property
    def within(self) -> tuple[str, ...]:
        """What the engine's processes are started with."""
        return self.limit.within if self.limit is not None else ()

    @property
    def _allowed(self) -> str:
        limited = self.plan.limit is not None and self.plan.memory * 2 <= self.plan.limit
        return "half of --memory-limit" if limited else "--memory allows"

    @property
    def _encoded(self) -> bool:
        return self.plan.images is not None and self.plan.images.encoder != "none"

    @property
    def _vectors_note(self) -> str:
        if self.plan.vectors is not None:
            return f"vectors of {self.plan.vectors.name}"
        return "made, clustered vectors of 128 dimensions, no embeddings"

    def _given(self, n: int) -> dict[str, Any]:
        return {"n": n, "memory_bytes": self.plan.memory, "set": self.plan.spec}

    def _child(
        self, module: str, spec: dict[str, Any], done: Callable[[int], None] | None = None
    ) -> Finished:
        """A process of the engine's own, within the limit."""
        ended = run_child(module, spec, done, within=self.within)
        self.resident = max(self.resident, ended.resident_peak)
        return ended


def _of_method(n: int, method: str, done: Finished) -> Iterator[Figure]:
    found, note = done.result, NOTES[method]
    took = found["generate_s"] + found["build_s"]
    yield Measurement(n, "ingest", method, "time", SECONDS, (took,), f"{note}; {MEANWHILE}")
    if found["baseline"]:
        peak = max(done.anonymous_peak, found["final"]) - found["baseline"]
        yield from _memory(n, "ingest", method, "memory", peak)
    for figure in ("hit", "miss"):
        times = tuple(one / 1e6 for one in found[f"{figure}_us"])
        if not times:
            yield Skipped(n, "identical", method, _NONE_PLAIN)
            return
        yield Measurement(n, "identical", method, figure, SECONDS, times, note)


def _bytes(n: int, tier: str, method: str, figure: str, size: float) -> Measurement:
    return Measurement(n, tier, method, figure, BYTES, (float(size),))


def _memory(n: int, tier: str, method: str, figure: str, size: float) -> Iterator[Figure]:
    """Memory that was taken on top; a set so small that it fits where other things lay has no figure."""
    if size > 0:
        yield _bytes(n, tier, method, figure, size)


def _make_empty(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out} is not empty: name a new folder, so that no result is lost")
    except OSError as error:
        raise UsageError(f"{out} cannot be used: {error.strerror}") from None


__all__ = ["FLAT", "BenchError", "WrongAnswerError", "run"]
