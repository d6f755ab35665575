"""Results as text for a terminal: a block for each tier, claims, and what was left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from engine.cli.text import printable

from ..harness.measurement import Measurement
from .growth import Growth, claims, growths, series
from .results import Results, left_out, rows
from .tables import align
from .units import show

# The table of each tier: its title, and the figures that are columns, with their headings.
BLOCKS: dict[str, tuple[str, dict[str, str]]] = {
    "images": (
        "an image",
        {"generate": "make", "pack": "pack", "hash": "hash", "prove": "SHA-256", "embed": "embed"},
    ),
    "ingest": ("taking in", {"time": "time", "memory": "memory", "disk": "disk"}),
    "identical": (
        "identical, a lookup",
        {
            "hit": "hit",
            "miss": "miss",
            "hit, batch": "hit of 1,000",
            "hit, cold": "cold hit",
            "hit, cold, read": "reads",
        },
    ),
    "near": ("near, a lookup", {"hit": "copy", "recall": "recall", "build": "build"}),
    "similar": (
        "similar",
        {
            "build": "build",
            "single": "a query",
            "batch": "of 1,000",
            "recall@10": "recall@10",
            "memory": "memory",
            "disk": "disk",
        },
    ),
}
_WIDTH = 110  # columns of a terminal
_GROWN = {"ingest": "time", "identical": "hit", "near": "hit", "similar": "single"}


def table(results: Results) -> str:
    """The main figures for people, in at most 110 columns."""
    every, grown = series(results), growths(results)
    blocks = [_head(results)]
    for tier, (title, columns) in BLOCKS.items():
        methods = list(dict.fromkeys(key[1] for key in every if key[0] == tier))
        if methods:
            blocks.append(_block(tier, title, columns, methods, every, grown))
    other = [
        f"{what}: {show(every[key][-1].median, every[key][-1].unit)}"
        for key, what in (
            (("disk", "disk", "read"), "one random read of 4 KiB of this disk"),
            (("run", "engine", "rss"), "the largest of the engine's processes, with mapped files"),
        )
        if key in every
    ]
    if other:
        blocks.append("\n".join(other))
    judged = [(one.verdict, one.text, one.measured) for one in claims(results)]
    if judged:
        blocks.append(
            "growth (what is O(n) without what the smallest set takes; 'grows' above is with it)\n"
            + align(judged, left=(0, 1, 2))
        )
    if results.skipped:
        blocks.append("\n".join(["not measured", *(f"  {line}" for line in left_out(results))]))
    return "\n\n".join("\n".join(_wrapped(printable(block))) for block in blocks)


def _wrapped(block: str) -> Iterator[str]:
    """Its lines; long ones continue below, at the beginning of their last column."""
    for line in block.split("\n"):
        column = line.rfind("  ") + 2 if len(line) > _WIDTH else 0
        indent = " " * (column if column < _WIDTH * 2 // 3 else 4)
        yield from textwrap.wrap(line, _WIDTH, subsequent_indent=indent) or [""]


def _head(results: Results) -> str:
    machine, settings = results.machine, results.settings
    ram = machine.get("ram_bytes", 0)
    lines = [
        f"{settings.get('data', '')}; {machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, "
        f"{int(ram) / 1e9:,.0f} GB; {results.seconds:,.0f} s"
    ]
    if settings.get("memory_limit_bytes"):
        held = int(settings["memory_limit_bytes"])
        lines.append(
            f"the engine's processes were held to {held / 1e6:,.0f} MB by "
            f"{settings.get('memory_limit_by', '?')}"
        )
    if not results.complete:
        lines.append("interrupted: these are the figures so far")
    return "\n".join(lines)


def _block(
    tier: str,
    title: str,
    columns: dict[str, str],
    methods: Sequence[str],
    every: dict[tuple[str, str, str], list[Measurement]],
    grown: dict[tuple[str, str, str], Growth],
) -> str:
    shown = {
        figure: name
        for figure, name in columns.items()
        if any((tier, method, figure) in every for method in methods)
    }
    grows = _GROWN.get(tier)
    lines: list[tuple[str, ...]] = [(title, "n", *shown.values(), *(["grows"] if grows else []))]
    for method in methods:
        there = [every[tier, method, one] for one in shown if (tier, method, one) in every]
        if not there:
            continue
        n = max(some[-1].n for some in there)
        cells = []
        for figure in shown:
            some = [one for one in every.get((tier, method, figure), ()) if one.n == n]
            cells.append(show(some[0].median, some[0].unit) if some else "-")
        if grows:
            growth = grown.get((tier, method, grows))
            cells.append("-" if growth is None else f"n^{growth.exponent:.2f}")
        lines.append((method, f"{n:,}", *cells))
    return align(lines, left=(0,))


def body(results: Results) -> dict[str, Any]:
    """The results without their samples, for programs: figures, exponents, claims, what is missing."""
    return {
        "started": results.started,
        "seconds": results.seconds,
        "complete": results.complete,
        "settings": dict(results.settings),
        "machine": dict(results.machine),
        "versions": dict(results.versions),
        "figures": rows(results),
        "growth": [
            {
                "tier": tier,
                "method": method,
                "figure": figure,
                "exponent": round(one.exponent, 4),
                "low": one.low,
                "high": one.high,
                "sizes": list(one.sizes),
            }
            for (tier, method, figure), one in growths(results).items()
        ],
        "claims": [
            {"claim": one.text, "measured": one.measured, "verdict": one.verdict}
            for one in claims(results)
        ],
        "skipped": [
            {"n": one.n, "tier": one.tier, "method": one.method, "why": one.why}
            for one in results.skipped
        ],
    }
