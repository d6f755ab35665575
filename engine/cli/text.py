"""Formats numbers, names and rows for people; returns strings and knows nothing of reports."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows as aligned lines; the last column is not padded."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        indent + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def broken(text: str, room: int | None) -> list[str]:
    """A path in lines of ``room`` characters, broken after slashes; a longer name stays whole."""
    lines = []
    while room is not None and len(text) > room:
        at = text.rfind("/", 1, room)
        at = at if at != -1 else text.find("/", room)
        if at in (-1, len(text) - 1):
            break
        lines.append(text[: at + 1])
        text = text[at + 1 :]
    return [*lines, text]


def size(count: int) -> str:
    """A number of bytes in binary units."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def printable(text: str) -> str:
    """Text with control characters escaped, so that a file name cannot control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def one_line_name(name: str) -> str:
    """A name as ``printable`` text, with line ends and tabs escaped too."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def count_of(number: int, what: str) -> str:
    """A number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def shortened(text: str, max_length: int = 40) -> str:
    """``text``, cut to ``max_length`` characters with an ellipsis at the end."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
