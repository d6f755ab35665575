"""Results of a made-up run of ``engine bench``, of realistic magnitude, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.harness.measurement import Measurement, Skipped
from bench.report.results import Results

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def times(n: int, seconds: float, exponent: float, *, noise: float = 0.05, count: int = 100) -> Any:
    """Samples around ``seconds`` at 1,000, growing as n^exponent."""
    draw = np.random.default_rng(n + count)
    return tuple(
        (seconds * (n / 1_000) ** exponent * draw.lognormal(0, noise, count)).tolist(),
    )


def run(
    *, slower: float = 1.0, complete: bool = True, sizes: tuple[int, ...] = SIZES, **given: Any
) -> Results:
    """``slower``: the factor of the engine's times; ``given`` comes over the settings."""
    found = []
    for n in sizes:
        for method, seconds, exponent in (
            ("engine", 35e-6 * slower, 0.02),
            ("dict of hashes", 8e-6, 0.01),
            ("list of hashes", 20e-6, 0.98),
            ("pixel by pixel", 1.4e-3, 1.0),
        ):
            if method == "pixel by pixel" and n > 10_000:
                continue
            for figure in ("hit", "miss"):
                some = times(n, seconds, exponent)
                found.append(Measurement(n, "identical", method, figure, "s", some, "a note"))
        took = (0.3 + 1.4e-5 * n) * slower
        found.append(Measurement(n, "ingest", "engine", "time", "s", (took, took * 1.02)))
        found.append(Measurement(n, "ingest", "engine", "disk", "B", (3_950.0 * n,)))
        found.append(Measurement(n, "ingest", "engine", "memory", "B", (2.5e8,)))
        found.append(Measurement(n, "near", "engine", "recall", "", (0.99,)))
        for method, seconds, exponent in (("engine", 1e-4, 0.1), ("IndexFlatL2", 3e-5, 1.0)):
            some = times(n, seconds, exponent)
            found.append(Measurement(n, "similar", method, "single", "s", some))
        found.append(Measurement(n, "similar", "engine", "recall@10", "", (0.96,)))
    found.append(Measurement(sizes[-1], "run", "engine", "rss", "B", (8e8,)))
    settings = {"n": sizes[-1], "sizes": list(sizes), "seed": 0, "memory_bytes": 1 << 30}
    settings |= {"data": "random bit images", "memory_limit_bytes": 0, "embed": "sample"}
    return Results(
        started="2026-01-02T03:04:05+00:00",
        seconds=123.4,
        complete=complete,
        settings=settings | given,
        machine={"cpu": "A CPU", "cores": 2, "ram_bytes": 24 << 30, "system": "Linux"},
        versions={"python": "3.12", "engine": "0.1.0", "numpy": "2.3"},
        measurements=tuple(found),
        skipped=(
            Skipped(100_000, "identical", "pixel by pixel", "it would take 3.0 GB of memory"),
        ),
    )
