"""Targets and tables of ``exact_store``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..data import bit_images
from ..report.growth import exponent
from ..report.tables import Target, align
from .exact_store_child import BATCH
from .exact_store_jobs import ASKED, JOBS, KEPT, Answers, Job, Taken


def targets_of(taken: dict[Job, list[Taken]], answers: dict[Job, Answers]) -> list[Target]:
    """The targets and measurements for 100×100 RGB bit images."""
    kept, keys, sqlite, lmdb = (taken[job] for job in JOBS)
    engine = answers[KEPT]
    share = statistics.median(one.written / (one.n * bit_images.PACKED_BYTES) for one in kept)
    return [
        Target(f"ingest, {KEPT.what}", 110_000, _rate(kept), True, 0, "/s"),
        Target("bytes written, a byte of pixels", 1.1, share, digits=3),
        Target(f"ingest, {JOBS[1].what}", 150_000, _rate(keys), True, 0, "/s"),
        Target("the same, times SQLite's", 1.0, _times(keys, sqlite), True, 2),
        Target("the same, times LMDB's", 0.8, _times(keys, lmdb), True, 2),
        Target(f"a verified hit, of {BATCH:,} at once", 6.0, engine.hit, unit=" µs"),
        Target(f"a miss, of {BATCH:,} at once", 2.0, engine.miss, unit=" µs"),
        Target("a verified hit, one at a time", 15.0, engine.hit_one, unit=" µs"),
    ]


def _rate(taken: Sequence[Taken]) -> float:
    return statistics.median(one.rate for one in taken)


def _times(mine: Sequence[Taken], other: Sequence[Taken]) -> float:
    """The median ratio of speeds, round by round, because a disturbance affects both in a round."""
    return statistics.median(a.rate / b.rate for a, b in zip(mine, other, strict=True))


def taken_table(taken: dict[Job, list[Taken]]) -> str:
    """The ingests as aligned columns: medians, and the slowest and fastest round; MB are 10^6 bytes."""
    generate = statistics.median(one.generate_s for rounds in taken.values() for one in rounds)
    lines = [
        (
            "ingest",
            "images/s",
            "slowest",
            "fastest",
            "CPU µs/image",
            "written B/image",
            "disk B/image",
        )
    ]
    for job, rounds in taken.items():
        rates = [one.rate for one in rounds]
        n = rounds[0].n
        lines.append(
            (
                job.what,
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f}",
                f"{max(rates):,.0f}",
                f"{statistics.median(one.cpu_s for one in rounds) / n * 1e6:.1f}",
                f"{statistics.median(one.written for one in rounds) / n:,.0f}",
                f"{statistics.median(one.disk for one in rounds) / n:,.0f}",
            )
        )
    head = f"{n:,} images, made in memory beforehand ({generate:.1f} s, not counted)"
    return f"{head}\n{align(lines, left=(0,))}"


def answers_table(answers: dict[Job, Answers]) -> str:
    """The lookups of one size as aligned columns: µs an image."""
    lines: list[tuple[str, ...]] = [
        ("warm lookup, µs an image", "hit, batch", "miss, batch", "hit, one", "miss, one")
    ]
    for job, one in answers.items():
        times = (one.hit, one.miss, one.hit_one, one.miss_one)
        lines.append((job.what, *(f"{value:.2f}" for value in times)))
    return align(lines, left=(0,))


def growth_table(
    sizes: Sequence[int],
    answers: dict[int, dict[Job, Answers]],
    in_memory: dict[str, dict[int, float]],
) -> str:
    """Times of hits by n as aligned columns, with the exponent of n that fits best."""
    rows: dict[str, dict[int, float]] = {}
    for job in ASKED:
        rows[f"{job.what}, one"] = {size: answers[size][job].hit_one for size in sizes}
        rows[f"{job.what}, batch"] = {size: answers[size][job].hit for size in sizes}
    for method, found in in_memory.items():
        rows[f"{method}, one"] = found
    lines: list[tuple[str, ...]] = [
        ("warm lookup, µs an image", *(f"n = {size:,}" for size in sizes), "exponent")
    ]
    for name, times in rows.items():
        cells = [f"{times[size]:,.2f}" if size in times else "-" for size in sizes]
        fitted = exponent(times)
        lines.append((name, *cells, "-" if fitted is None else f"{fitted:.2f}"))
    return align(lines, left=(0,))
