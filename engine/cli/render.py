"""Results as text for people and as JSON for programs; returns strings, prints nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from engine.cli.shell_words import in_options
from engine.cli.terminal import BOLD, CYAN, GREEN, RED, YELLOW, Look
from engine.cli.text import broken, columns, count_of, one_line_name, shortened, size
from engine.records import (
    BackupReport,
    CheckReport,
    ExportReport,
    IdenticalHit,
    IngestPlan,
    IngestReport,
    LookupResult,
    NearHit,
    OptimizeReport,
    ReembedReport,
    RemoveReport,
    SimilarHit,
    StoreInfo,
)
from engine.sources.skip_notes import skipped_with

Hit = IdenticalHit | NearHit | SimilarHit

_WOULD_GO_SHOWN = 20  # sources, and folders, in a removal's dry run
NEAR_SHOWN = 10  # near hits in a lookup's table
_LEAST_ROOM = 16  # characters for a source, however narrow the terminal
# How close a hit is, in words, which README.md explains. Near: the maximum distance, of 256 bits.
_NEAR_WORDS = ((8.0, "very close"), (20.0, "close"))
# Similar: the minimum cosine.
_SIMILAR_WORDS = ((0.95, "very close"), (0.85, "close"))
_FAR = "loosely"
_STRANGER = "no closer than strangers"
_COLOURS = {"identical": GREEN, "near": YELLOW, "similar": CYAN}


def line(value: dict[str, Any]) -> str:
    """One compact JSON object. Bytes of a name that are not UTF-8 become escaped lone surrogates."""
    return json.dumps(value, separators=(",", ":"))


def rejections_json(report: Any) -> str:
    """A report with ``rejected`` sources as one JSON object; its messages name options."""
    value = asdict(report)
    for rejection in value["rejected"]:
        rejection["reason"] = in_options(rejection["reason"])
    if "warnings" in value:
        value["warnings"] = [in_options(warning) for warning in value["warnings"]]
    return line(value)


def lookup_json(result: LookupResult) -> str:
    """A lookup as the documented JSON object; a failed one has only ``query`` and ``error``."""
    if result.error is not None:
        return line({"query": result.query, "error": in_options(result.error)})
    value = asdict(result)
    del value["error"]
    value["milliseconds"] = {stage: round(ms, 4) for stage, ms in result.milliseconds.items()}
    return line(value)


def lookup_text(
    result: LookupResult,
    look: Look = Look(),  # noqa: B008 (frozen)
    *,
    near_shown: int | None = NEAR_SHOWN,
    sources_shown: int | None = 1,
    encoded: bool = True,
) -> str:
    """A lookup as a small table under the query's name.

    It lists the first ``near_shown`` near hits and the first ``sources_shown`` sources of each hit.
    None lists all that the result has. ``encoded``: the scores come from an encoder's vectors, so a
    word may say how close they are.
    """
    title = one_line_name(result.query)
    if result.error is not None:
        error = look.paint("error:", RED)
        return f"{look.paint(title, BOLD)}\n  {error} {one_line_name(in_options(result.error))}"
    rows = _hit_rows(result, near_shown, encoded)
    names = [(tier, id_, how) for tier, id_, how, _ in rows]
    used = [max((len(cell) for cell in cells), default=0) for cells in zip(*names, strict=True)]
    room = None if look.width is None else max(_LEAST_ROOM, look.width - sum(used) - 8)
    table: list[tuple[str, str, str, str]] = []
    for tier, id_, how, hit in rows:
        first, *others = ["nothing found"] if hit is None else _where(hit, sources_shown, room)
        table.append((tier, id_, how, first))
        table += [("", "", "", other) for other in others]
    listed = len(result.near[:near_shown])
    lines = columns(table, indent="  ")
    if result.near_count > listed:
        tier = "near".ljust(max([4, *(len(row[0]) for row in table)]))
        joined = "and " if listed else ""
        more = f"… {joined}{result.near_count - listed:,} more (--json --near-limit all lists them)"
        before = ("near", "identical") if listed else ("identical",)
        lines.insert(_behind(table, before), f"  {tier}  {more}")
    spent = sum(result.milliseconds.values())
    lines = [_tier_painted(line, look) for line in lines]
    *titles, last = broken(title, look.width and look.width - len("  (1,000.0 ms)"))
    heads = [look.paint(part, BOLD) for part in (*titles, last)]
    return "\n".join([*heads[:-1], f"{heads[-1]}  ({spent:.1f} ms)", *lines])


def _hit_rows(
    result: LookupResult, near_shown: int | None, encoded: bool
) -> list[tuple[str, str, str, Hit | None]]:
    """Tier, id, distance and hit of each row; a tier without hits has one row without a hit."""
    rows: list[tuple[str, str, str, Hit | None]] = []
    for tier in result.searched:
        before = len(rows)
        if tier == "identical":
            for same in result.identical:
                rows.append((tier, f"#{same.id}", "same pixels", same))
        elif tier == "near":
            for near in result.near[:near_shown]:
                rows.append((tier, f"#{near.id}", _distance(near), near))
        else:
            for like in result.similar:
                rows.append((tier, f"#{like.id}", _score(like, encoded), like))
        if len(rows) == before and not (tier == "near" and result.near_count):
            rows.append((tier, "-", "", None))
    return rows


def _behind(table: Sequence[tuple[str, ...]], tiers: Sequence[str]) -> int:
    """The index after the last row of ``tiers``, continuation rows included."""
    at, tier = 0, ""
    for place, row in enumerate(table):
        tier = row[0] or tier
        if tier in tiers:
            at = place + 1
    return at


def _tier_painted(line: str, look: Look) -> str:
    tier = line[2:].partition(" ")[0]
    return (
        f"  {look.paint(tier, _COLOURS[tier])}{line[2 + len(tier) :]}" if tier in _COLOURS else line
    )


def ingest_text(report: IngestReport, *, memory: bool = False) -> str:
    """What an ingest did, in a few lines; with ``memory``, also its peak memory."""
    counts = [
        ("added", report.added),
        ("unchanged", report.unchanged),
        ("rejected", report.rejected),
    ]
    words = [f"{count:,} {name}" for name, count in counts]
    words.insert(1, count_of(report.duplicates, "duplicate"))
    parts = ", ".join(words)
    lines = [
        f"{_seen(report)} in {report.seconds:.1f} s ({report.images_per_second:,.0f}/s): {parts}"
    ]
    if report.image_vectors:
        whose = "it" if report.image_vectors == 1 else "them"
        lines.append(
            f"{count_of(report.image_vectors, 'image')} got the vector that came with {whose}"
        )
    if memory:
        lines.append(
            f"peak memory {size(report.peak_memory_bytes)} anonymous, "
            f"{size(report.peak_rss_bytes)} with mapped files"
        )
    others = report.skipped - skipped_with(report.notes)
    if others > 0:
        lines.append(f"{others:,} skipped: files that do not claim to be images")
    for note, count in report.notes.items():
        lines.append(f"{count:,} {note.replace('files are', 'file is') if count == 1 else note}")
    if report.rejected:
        lines.append(f"{one_line_name(report.rejects_file or '')} says why images were rejected")
    if report.interrupted:
        lines.append("interrupted: what is counted is committed; run it again to go on")
    return "\n".join(lines)


def _seen(report: IngestReport) -> str:
    """The number of images and vectors of an ingest."""
    counts = [(report.seen - report.vectors, "image"), (report.vectors, "vector")]
    return " and ".join(count_of(n, what) for n, what in counts if n) or count_of(0, "image")


def plan_text(plan: IngestPlan) -> str:
    """What an ingest would do, in a few lines."""
    lines = [
        f"would read {count_of(plan.images, 'image')}, {size(plan.bytes_to_read)}; "
        f"{plan.unchanged:,} unchanged, {plan.rejected:,} rejected, {plan.skipped:,} skipped"
    ]
    if plan.archives:
        lines[0] = lines[0].replace(";", f", with {count_of(plan.archives, 'archive')};", 1)
    grow = (
        f"the store would grow by at most {size(plan.disk_bytes)}, of {size(plan.free_bytes)} free"
    )
    if plan.archives:
        grow += ", plus the contents of the archives, whose size is known only after reading them"
    lines.append(grow)
    return "\n".join(lines)


def remove_text(report: RemoveReport) -> str:
    """What a removal did, or would do."""
    if report.dry_run:
        return _removal_plan_text(report)
    images, sources = count_of(report.images, "image"), count_of(report.sources, "source")
    lines = [f"{images} and {sources} removed in {report.seconds:.1f} s"]
    if report.images:
        lines.append("run 'engine optimize' to give their disk space back")
    if report.interrupted:
        lines.append("interrupted: what is counted is committed; run it again to go on")
    return "\n".join(lines)


def _removal_plan_text(report: RemoveReport) -> str:
    images, sources = count_of(report.images, "image"), count_of(report.sources, "source")
    lines = [f"{images} and {sources} would be removed; nothing was removed"]
    for one in report.folders[:_WOULD_GO_SHOWN]:
        mark = ": only with --yes, because its disk may not be mounted" if one.needs_yes else ""
        counts = f"{one.missing:,} of {one.sources:,} sources missing"
        lines.append(f"{counts} below {one_line_name(one.folder)}{mark}")
    lines += [
        f"would be removed: {one_line_name(name)}" for name in report.would_go[:_WOULD_GO_SHOWN]
    ]
    if len(report.would_go) > _WOULD_GO_SHOWN:
        lines.append(f"and more (--json lists {len(report.would_go):,} of them)")
    if report.interrupted:
        lines.append("interrupted: the counts are incomplete")
    return "\n".join(lines)


def optimize_text(report: OptimizeReport) -> str:
    """What an optimize did."""
    lines = [
        f"{size(report.bytes_before)} on disk before, {size(report.bytes_after)} after, "
        f"in {report.seconds:.1f} s",
        f"{count_of(report.rewritten, 'extent')} of pixels rewritten, "
        f"{count_of(report.moved, 'image')} moved, {count_of(report.laid_out, 'vector')} laid out again",
    ]
    if report.recall and report.recall["sample"]:
        lines.append(f"recall {recall_text(report.recall)}")
    lines += [f"not done: {_said(what)}" for what in report.skipped]
    if report.interrupted:
        lines.append("interrupted: what is done is committed; run it again to go on")
    return "\n".join(lines)


def info_text(info: StoreInfo) -> str:
    """The state of a store as a table."""
    encoder = "none"
    if info.encoder:
        encoder = f"{one_line_name(str(info.encoder['name']))}, {info.encoder['dim']} dimensions"
    rows = [
        ("store", one_line_name(info.path)),
        ("images", f"{info.images:,}" + (f" ({info.removed:,} removed)" if info.removed else "")),
        ("sources", f"{info.sources:,}"),
        ("vectors", f"{info.vectors:,}"),
        ("rejects", f"{info.rejects:,}"),
        ("encoder", encoder),
        *([("text", "yes")] if info.encoder and info.encoder.get("text") else []),
        *([("reembed", _unfinished_text(info.reembed))] if info.reembed else []),
        ("segments", f"{len(info.segments)} with {_rows(info.segments):,} vectors"),
        *([("recall", recall_text(info.recall))] if info.recall else []),
        *([("random pairs", _pairs_text(info.random_pairs))] if info.random_pairs else []),
        ("bytes", f"{size(sum(info.bytes.values()))}"),
        *((f"  {part}", size(count)) for part, count in info.bytes.items() if count),
    ]
    return "\n".join(columns(rows))


def _pairs_text(scores: dict[str, float]) -> str:
    """How alike random pairs are."""
    return "scores of " + ", ".join(f"{score:.3f} ({name})" for name, score in scores.items())


def _unfinished_text(staged: dict[str, object]) -> str:
    """An unfinished reembed."""
    return (
        f"unfinished: {staged['vectors']:,} vectors of {one_line_name(str(staged['name']))}; "
        f"'engine reembed' goes on"
    )


def reembed_text(report: ReembedReport) -> str:
    """What a reembed did, or would do."""
    lines = []
    if report.dry_run:
        todo = max(report.images - report.kept - report.unreachable, 0)
        lines.append(
            f"{count_of(todo, 'image')} to embed with {one_line_name(report.encoder)}, "
            f"{report.kept:,} already embedded; at most {size(report.disk_bytes)} of disk needed, "
            f"{size(report.free_bytes)} free"
        )
    else:
        lines.append(
            f"{count_of(report.embedded, 'image')} embedded with {one_line_name(report.encoder)} in "
            f"{report.seconds:.1f} s ({report.images_per_second:,.0f}/s), "
            f"{report.kept:,} already embedded"
        )
    if report.unreachable:
        named = ", ".join(one_line_name(one) for one in report.examples)
        lines.append(
            f"{count_of(report.unreachable, 'image')} cannot be embedded, of which {report.lost:,} "
            f"have a vector now: {named}"
        )
    if report.without_vector:
        lines.append(f"the encoder gives no vector for {count_of(report.without_vector, 'image')}")
    if report.interrupted:
        lines.append("interrupted: what is embedded stays; run it again to go on")
    elif report.dry_run:
        lines.append("nothing was changed")
    return "\n".join(lines)


def discarded_text(freed: int) -> str:
    """What dropping an unfinished reembed freed."""
    return f"{size(freed)} freed" if freed else "there is no unfinished reembed"


def recall_text(recall: dict[str, object]) -> str:
    """The recall of searches: the target, and what was measured."""
    if recall["measured"] is None and not recall["exact"]:
        return f"target {recall['target']}, not measured yet; 'engine optimize' measures it"
    if not recall["sample"]:
        return f"target {recall['target']}; all vectors are compared, because there are few"
    if recall["measured"] is None:
        return f"target {recall['target']}; all vectors are compared, because the index misses it"
    return (
        f"{recall['measured']:.3f} for the nearest {recall['k']}, measured on {recall['sample']} of "
        f"{recall['vectors']:,} vectors; target {recall['target']}"
    )


def check_text(report: CheckReport, max_listed: int = 50, *, fix: bool = False) -> str:
    """What a check found, and with ``fix`` what it repaired."""
    looked = (
        f"{count_of(report.images, 'image')}, {count_of(report.vectors, 'vector')}, "
        f"{size(report.bytes_read)} read in {report.seconds:.1f} s"
    )
    if report.leftover_bytes:
        looked += (
            f"; the next write removes {size(report.leftover_bytes)} "
            f"that an interrupted writer left behind"
        )
    if report.reembed_bytes:
        looked += f"; an unfinished reembed has {size(report.reembed_bytes)}"
    if not report.problems:
        return f"the store is whole: {looked}"
    lines = [f"{count_of(len(report.problems), 'problem')}: {looked}"]
    for problem in report.problems[:max_listed]:
        mended = " (repaired)" if problem.fixed else ""
        lines.append(f"  {one_line_name(problem.part)}: {_said(problem.what)}{mended}")
    if len(report.problems) > max_listed:
        lines.append(f"  … and {len(report.problems) - max_listed} more (--json lists them)")
    if not report.ok:
        repair = "" if fix else "run 'engine check --fix' to repair what can be repaired; "
        rest = "what is not repaired" if fix else "the rest"
        lines.append(
            f"{repair}{rest} is lost here: restore the store from a copy, or ingest into a new one"
        )
    return "\n".join(lines)


def backup_text(report: BackupReport) -> str:
    """What a backup copied."""
    return (
        f"{count_of(report.images, 'image')} as of commit {report.commit:,}, {size(report.bytes)} in "
        f"{count_of(report.files, 'file')}, copied to "
        f"{one_line_name(report.path)} in {report.seconds:.1f} s"
    )


def export_text(report: ExportReport) -> str:
    """What an export wrote."""
    return (
        f"{count_of(report.images, 'image')}, {count_of(report.sources, 'source')} and "
        f"{count_of(report.vectors, 'vector')}, {size(report.bytes)}, written to "
        f"{one_line_name(report.path)} in {report.seconds:.1f} s"
    )


def _said(message: str) -> str:
    """A library message that may name files, as one line that names options."""
    return one_line_name(in_options(message))


def _distance(near: NearHit) -> str:
    if near.pixel_distance is None:
        text, of_256 = f"{near.distance} of 256", float(near.distance)
    else:
        text = f"{near.pixel_distance:,} of {near.pixel_values:,} values differ"
        of_256 = 256 * near.pixel_distance / max(1, near.pixel_values or 0)
    return f"{text}, {next((word for most, word in _NEAR_WORDS if of_256 <= most), _FAR)}"


def _score(like: SimilarHit, encoded: bool) -> str:
    text = f"{like.score:.3f}"
    if like.percentile is not None:
        text += f" ({percent(like.percentile)})"
    if like.stranger:
        return f"{text}, {_STRANGER}"
    if not encoded:
        return text
    return f"{text}, {next((word for least, word in _SIMILAR_WORDS if like.score >= least), _FAR)}"


def percent(value: float) -> str:
    """A percentage with one digit after its nines, rounded down: 99.98 %."""
    digits = next((n for n in range(4) if value < 100 - 10.0**-n), 4)
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f} %"


def _where(hit: Hit, shown: int | None, room: int | None) -> list[str]:
    """The hit's label, if any, and its first ``shown`` sources, in lines of ``room`` characters."""
    label = (hit.metadata or {}).get("label")
    before = "" if label is None else f"[{shortened(one_line_name(str(label)))}]  "
    names = [one_line_name(name) for name in hit.sources[:shown]]
    if not names:
        left = count_of(hit.source_count, "source") if hit.source_count else "no source left"
        return [f"{before}({left})"]
    names[0] = before + names[0]
    lines = [part for name in names for part in broken(name, room)]
    if hit.source_count > len(names):
        more = f"(+{hit.source_count - len(names)} more)"
        if room is None or len(lines[-1]) + 2 + len(more) <= room:
            lines[-1] += f"  {more}"
        else:
            lines.append(more)
    return lines


def _rows(segments: Iterable[dict[str, object]]) -> int:
    return sum(int(str(segment["rows"])) for segment in segments)
