"""``results.html``: a run on one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from .growth import claims
from .results import Results, left_out, rows
from .summary import BLOCKS
from .units import digits, show

NAME = "results.html"

_STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #666; --good: #17753a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #aaa; --good: #6fd08c; --bad: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child, td.text { text-align: left; }
.scroll { overflow-x: auto; } .soft { color: var(--soft); }
.holds { color: var(--good); font-weight: 600; } .fails { color: var(--bad); font-weight: 600; }
img { max-width: 100%; height: auto; background: white; border-radius: 6px; }
details { margin-top: 1.5rem; }
"""


def write(results: Results, folder: Path, images: Mapping[str, bytes] | None) -> None:
    """The page, with its plots inside: PNG by name; None if they could not be drawn."""
    (folder / NAME).write_text(page(results, images), encoding="utf-8", errors="backslashreplace")


def page(results: Results, images: Mapping[str, bytes] | None) -> str:
    """The page as text; every value from outside is escaped."""
    settings = results.settings
    what = str(settings.get("data", "images"))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>engine bench: {escape(what)}</title><style>{_STYLE}</style>",
        f"<h1>engine bench: {escape(what)}</h1>",
        f"<p class=soft>{escape(_line(results))}</p>",
    ]
    if not results.complete:
        parts.append("<p class=fails>Interrupted: these are the figures so far.</p>")
    parts += [_plots(images), _claims(results)]
    for tier, (title, columns) in BLOCKS.items():
        parts.append(_tier(results, tier, title, columns))
    parts += [_skipped(results), _reading(), _everything(results), _settings(results)]
    return "\n".join(part for part in parts if part) + "\n"


def _line(results: Results) -> str:
    machine = results.machine
    return (
        f"{results.started} · {machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, "
        f"{int(machine.get('ram_bytes', 0)) / 1e9:,.0f} GB · {machine.get('system', '?')} · "
        f"{results.seconds:,.0f} s"
    )


def _plots(images: Mapping[str, bytes] | None) -> str:
    if images is None:
        return "<p class=soft>No plots: they could not be drawn where this was measured.</p>"
    return "\n".join(
        f"<p><img alt='{escape(name)} against n' "
        f"src='data:image/png;base64,{base64.b64encode(image).decode()}'></p>"
        for name, image in images.items()
    )


def _claims(results: Results) -> str:
    judged = claims(results)
    if not judged:
        return ""
    mark = {"holds": "holds", "does not hold": "fails"}
    lines = [
        f"<tr><td class=text>{escape(one.text)}<td class=text>{escape(one.measured)}"
        f"<td class='text {mark.get(one.verdict, 'soft')}'>{escape(one.verdict)}"
        for one in judged
    ]
    head = "<tr><th>claim<th>measured<th>"
    return f"<h2>How it grows</h2><div class=scroll><table>{head}{''.join(lines)}</table></div>"


def _tier(results: Results, tier: str, title: str, columns: dict[str, str]) -> str:
    some = [one for one in results.measurements if one.tier == tier and one.figure in columns]
    if not some:
        return ""
    shown = [figure for figure in columns if any(one.figure == figure for one in some)]
    by = {(one.method, one.n, one.figure): one for one in some}
    lines = []
    for method, n in sorted({(one.method, one.n) for one in some}, key=_engine_first):
        cells = []
        for figure in shown:
            there = by.get((method, n, figure))
            tip = f" title='{escape(there.note)}'" if there is not None and there.note else ""
            text = show(there.median, there.unit) if there is not None else "-"
            cells.append(f"<td{tip}>{escape(text)}")
        lines.append([escape(method), f"{n:,}", *cells])
    head = [escape(title), "n", *(escape(columns[figure]) for figure in shown)]
    return f"<h2>{escape(title.capitalize())}</h2>" + _table(head, lines)


def _engine_first(one: tuple[str, int]) -> tuple[bool, str, int]:
    return one[0] != "engine", one[0], one[1]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}" for cell in line)
        for line in lines
    )
    top = "".join(f"<th>{cell}" for cell in head)
    return f"<div class=scroll><table><tr>{top}{body}</table></div>"


def _skipped(results: Results) -> str:
    if not results.skipped:
        return ""
    lines = [f"<li>{escape(line)}" for line in left_out(results)]
    return f"<h2>Not measured</h2><ul>{''.join(lines)}</ul>"


def _reading() -> str:
    return (
        "<h2>How to read this</h2><p>Times are medians; every sample is in results.json. An exponent e "
        "says that a figure grows as n<sup>e</sup>: 0 does not grow, 1 grows like the set; the "
        "interval covers 95 % of bootstrap resamples. A dict or a list of hashes trusts its hash and is "
        "gone with its process; the engine compares its hits, and its images are on disk. Memory is "
        "anonymous memory: the system can reclaim mapped files. Other work on the machine shows first "
        "in builds and in high percentiles.</p>"
    )


def _everything(results: Results) -> str:
    lines = [
        [
            escape(f"{one['tier']}, {one['method']}, {one['figure']}"),
            f"{one['n']:,}",
            *(
                escape("-" if one[name] is None else show(one[name], one["unit"]))
                for name in ("median", "least", "p95", "p99")
            ),
            "-" if one["per_second"] is None else digits(one["per_second"]),
            f"{one['samples']:,}",
        ]
        for one in rows(results)
    ]
    head = ("figure", "n", "median", "least", "p95", "p99", "a second", "samples")
    return f"<details><summary>Every figure</summary>{_table(head, lines)}</details>"


def _settings(results: Results) -> str:
    every = {**results.settings, **{f"version of {k}": v for k, v in results.versions.items()}}
    lines = [
        [escape(str(name)), f"<td class=text>{escape(str(value))}"] for name, value in every.items()
    ]
    return f"<details><summary>Settings and versions</summary>{_table(('', ''), lines)}</details>"
