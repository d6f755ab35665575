"""Targets, tables and files of ``index_peers``."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..harness.machine import machine, versions
from ..harness.measurement import quantiles
from ..peers.engine_index import ENGINE
from ..peers.hnswlib_index import HNSWLIB
from ..peers.lancedb_index import LANCEDB
from ..peers.zvec_indexes import ZVEC_DISKANN
from ..report.tables import Target, align
from .index_measured import Measured, median
from .index_rounds import REMOVED

TARGETS = {
    "batch": ("queries/s, times hnswlib's", 1.0, True),
    "p50": ("p50, times hnswlib's", 1.5, False),
    "lancedb": ("p50 of LanceDB, times the engine's", 15.0, True),
    "diskann": ("p50 of zvec DiskANN, times the engine's", 20.0, True),
    "build": ("build, times hnswlib's", 0.25, False),
    "memory": ("anonymous bytes a vector", 48.0, False),
    "removed": ("p50 with 1 % removed, times without", 1.5, False),
}


def targets_of(found: Mapping[str, Measured], recall: float) -> list[Target]:
    """The targets and measurements, without the targets whose peer is missing."""
    engine = found[ENGINE]
    peer = found.get(HNSWLIB, Measured(HNSWLIB, engine.n))
    best = max((one["recall"] for one in engine.points), default=0.0)
    reached = engine.recall()
    wanted = [Target("recall at 10", recall, best if reached is None else reached, True, 3)]
    figures: dict[str, float | None] = {
        "batch": _times(_of(engine.batches, "qps"), _of(peer.batches, "qps")),
        "p50": _times(_p50s(engine), _p50s(peer)),
        "lancedb": _ratio(found.get(LANCEDB), engine),
        "diskann": _ratio(found.get(ZVEC_DISKANN), engine),
        "build": _times(_of(engine.builds, "seconds"), _of(peer.builds, "seconds")),
        "memory": engine.anonymous(),
        "removed": _times(_p50s(found[REMOVED]), _p50s(engine)),
    }
    for key, measured in figures.items():
        what, limit, at_least = TARGETS[key]
        if measured is not None:
            wanted.append(Target(what, limit, measured, at_least, 2))
    return wanted


def _of(some: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [one[name] for one in some]


def _p50s(index: Measured) -> list[float]:
    return [quantiles(one["seconds"])[0] for one in index.singles]


def _times(mine: Sequence[float], other: Sequence[float]) -> float | None:
    """The median ratio, round by round, because a disturbance affects both in a round."""
    if not mine or not other:
        return None
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def _ratio(other: Measured | None, engine: Measured) -> float | None:
    """How many times as long a single query takes in another index."""
    theirs, ours = other and other.p50(), engine.p50()
    return theirs / ours if theirs and ours else None


_MEMORY = ("build s", "CPU s", "RAM B", "opened B", "disk B")
_TIMES = ("recall", "queries/s", "CPU µs", "p50 ms", "p99 ms", "CPU µs")


def table(found: Mapping[str, Measured], recall: float) -> str:
    """A line of medians for each index; bytes are a vector's, RAM is anonymous memory after searching.

    CPU seconds are of all threads, for a build, a query in a batch, and a single query.
    """
    lines: list[Sequence[str]] = [("index", "setting", *_MEMORY, *_TIMES)]
    for index in found.values():
        setting = "-" if index.setting is None else " ".join(f"{one:g}" for one in index.setting)
        lines.append(
            (
                index.name,
                setting,
                _cell(index.build_s(), 1),
                _cell(median(_of(index.builds, "cpu_s")), 1),
                _cell(index.anonymous(), 1),
                _cell(index.anonymous("opened"), 1),
                _cell(index.disk(), 0),
                _cell(index.recall(), 4),
                _cell(index.qps(), 0),
                _cell(index.cpu_us("batches"), 1),
                _cell(index.p50(), 3),
                _cell(index.p99(), 3),
                _cell(index.cpu_us("singles"), 1),
            )
        )
    n = found[ENGINE].n
    head = f"{n:,} vectors, at the cheapest setting with a recall at 10 of {recall:g} or more"
    return f"{head}\n{align(lines, left=(0,))}"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def write(out: Path, found: Mapping[str, Measured]) -> None:
    """Write ``curves.csv`` (every setting of every sweep) and ``results.json`` (machine, medians)."""
    with (out / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "setting", "recall_at_10", "queries_per_second"))
        for index in found.values():
            for one in index.points:
                setting = " ".join(f"{value:g}" for value in one["setting"])
                writer.writerow((index.name, setting, one["recall"], one["qps"]))
    medians = {
        index.name: {
            "setting": index.setting,
            "build_s": index.build_s(),
            "anonymous_bytes": index.anonymous(),
            "disk_bytes": index.disk(),
            "recall_at_10": index.recall(),
            "queries_per_second": index.qps(),
            "p50_ms": index.p50(),
            "p99_ms": index.p99(),
            "batch_cpu_us": index.cpu_us("batches"),
            "single_cpu_us": index.cpu_us("singles"),
        }
        for index in found.values()
    }
    body = {"machine": machine(), "versions": versions(), "indexes": medians}
    (out / "results.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
