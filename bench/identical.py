"""Is this very image here? The engine beside three simpler methods, for growing n."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from engine.config import parse_memory
from engine.errors import UsageError

from . import data
from .machine import machine, versions
from .measure import FEWEST_LOOKUPS, LOOKUP_SECONDS, LOOKUPS
from .methods import DICT, ENGINE, IMAGE_MEMORY, LIST, NOTES, PIXELS
from .process import run_child
from .report import BenchReport, Lookups, Row, median, p95, write
from .sizes import check_disk, check_n, steps_up_to

METHODS = (ENGINE, PIXELS, LIST, DICT)
_SETTINGS = {
    "chunk_images": data.CHUNK,
    "lookups": LOOKUPS,
    "fewest_lookups": FEWEST_LOOKUPS,
    "lookup_seconds": LOOKUP_SECONDS,
}


def run(
    n: int,
    *,
    out: Path | None,
    steps: int = 4,
    seed: int = 0,
    memory: str = "1G",
    progress: Callable[[int, int | None], None] | None = None,
) -> BenchReport:
    """Measure every method for ``steps`` sizes up to ``n``, each in a process of its own.

    ``out``: a new or empty folder for ``results.csv`` and ``results.json``; stores are made in it
    meanwhile (in the system's folder for temporary files where it is None), and removed again.
    ``memory``: what the store may use, as for ``Store.open``, and what a method that holds the set
    in memory may need: above it, it is left out. ``progress(done, total)`` counts images.

    Raises ``UsageError`` for arguments that cannot be measured, before anything is;
    ``WrongAnswerError`` if a method gives one, and ``BenchError`` if it fails.
    """
    budget = parse_memory(memory).total
    sizes = steps_up_to(check_n(n), steps)
    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, not {seed}")
    check_disk(n, out or Path(tempfile.gettempdir()))
    if out is not None:
        _make_empty(out)
    jobs = [(size, method) for size in sizes for method in METHODS]
    total = sum(size for size, method in jobs if _too_large(size, method, budget) is None)
    meter = _Meter(progress or (lambda done, total: None), total)
    rows: list[Row] = []
    lookups: list[Lookups] = []
    started, clock = datetime.now(UTC), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="engine-bench-", dir=out) as work:
        store = Path(work) / "bits.store"
        for size, method in jobs:
            reason = _too_large(size, method, budget)
            if reason is not None:
                rows.append(Row(size, method, note=reason))
                continue
            row, timed = _measure(size, method, seed, store, budget, meter.within)
            rows.append(row)
            lookups.append(timed)
            shutil.rmtree(store, ignore_errors=True)
            meter.finish(size)
    report = BenchReport(
        n=n,
        steps=steps,
        seed=seed,
        memory=budget,
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 3),
        machine=machine(),
        versions=versions(),
        settings=dict(_SETTINGS),
        rows=tuple(rows),
    )
    if out is not None:
        write(report, lookups, out)
    return report


class _Meter:
    """Images done over all measurements, of which each counts from 0."""

    def __init__(self, tell: Callable[[int, int | None], None], total: int) -> None:
        self._tell = tell
        self._total = total
        self._before = 0
        self.within(0)

    def within(self, done: int) -> None:
        """``done`` images of the running measurement are done."""
        self._tell(self._before + done, self._total)

    def finish(self, count: int) -> None:
        """The running measurement, of ``count`` images, is done."""
        self._before += count
        self.within(0)


def _measure(
    n: int, method: str, seed: int, store: Path, memory: int, done: Callable[[int], None]
) -> tuple[Row, Lookups]:
    spec = {
        "method": method,
        "n": n,
        "seed": seed,
        "folder": str(store.absolute()),
        "memory_bytes": memory,
        "lookups": True,
    }
    finished = run_child("measure", spec, done)
    found = finished.result
    peak = max(finished.anonymous_peak, found["final"])
    timed = Lookups(n, method, found["hit_us"], found["miss_us"])
    fewest = min(len(timed.hit_us), len(timed.miss_us))
    few = f"; at least {fewest} lookups of each timed" if fewest < LOOKUPS else ""
    row = Row(
        n=n,
        method=method,
        generate_s=round(found["generate_s"], 6),
        build_s=round(found["build_s"], 6),
        hit_median_us=median(timed.hit_us),
        hit_p95_us=p95(timed.hit_us),
        hits=len(timed.hit_us),
        miss_median_us=median(timed.miss_us),
        miss_p95_us=p95(timed.miss_us),
        misses=len(timed.miss_us),
        # Where there is no /proc there is nothing to tell.
        memory_bytes=max(0, peak - found["baseline"]) if found["baseline"] else None,
        disk_bytes=found["disk"],
        note=NOTES[method] + few,
    )
    return row, timed


def _too_large(n: int, method: str, memory: int) -> str | None:
    """Why a method that holds the set in memory is left out; None if it fits."""
    need = n * IMAGE_MEMORY.get(method, 0)
    if need <= memory:
        return None
    return (
        f"left out: needs about {need / 1e6:,.0f} MB of memory, the bound is {memory / 1e6:,.0f} MB"
    )


def _make_empty(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out} is not empty: name a new folder, so that no result is lost")
    except OSError as error:
        raise UsageError(f"{out} cannot be used: {error.strerror}") from None
