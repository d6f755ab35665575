"""Encoders and imports as text for people; returns strings, prints nothing."""

from __future__ import annotations

from engine.cli.text import columns, one_line_name, size
from engine.encoders.importers.request import ImportReport
from engine.encoders.overview import EncoderInfo, EncoderList


def import_text(report: ImportReport) -> str:
    """What an import wrote, as a table."""
    rows = [
        ("encoder", one_line_name(report.out)),
        ("name", one_line_name(report.name)),
        ("input", f"{report.image_size} × {report.image_size} pixels"),
        ("dimensions", f"{report.dim:,}"),
        ("model", f"{report.precision}, {size(report.bytes)}: {one_line_name(report.reason)}"),
        ("licence", one_line_name(report.licence)),
        *(("note", one_line_name(note)) for note in report.notes),
    ]
    return "\n".join(columns(rows))


def encoders_text(found: EncoderList) -> str:
    """The encoders and the importers, as two tables."""
    head = ("encoder", "input", "dimensions", "model", "images/s", "texts", "licence", "from")
    rows = [head, *(_row(each) for each in found.encoders)]
    ways = [
        (
            each.example or f"{each.prefix}:",
            each.what,
            f"needs {each.missing}" if each.missing else "",
        )
        for each in found.importers
    ]
    return "\n".join(
        [*columns(rows), "", "models to import:", *(line.rstrip() for line in columns(ways, "  "))]
    )


def _row(each: EncoderInfo) -> tuple[str, ...]:
    speed = "" if each.images_per_second is None else f"{each.images_per_second:,.0f}"
    return (
        one_line_name(each.name),
        f"{each.image_size} × {each.image_size}",
        f"{each.dim:,}",
        f"{each.precision}, {size(each.bytes)}",
        speed,
        "yes" if each.takes_text else "no",
        one_line_name(each.licence),
        f"{one_line_name(each.model)} in {one_line_name(each.path)}" if each.model else each.origin,
    )
