"""The output forms of ``engine lookup``: a table, JSON, paths or rows of CSV."""

from __future__ import annotations

import csv
import io
import sys
from abc import ABC, abstractmethod

from engine.cli import render
from engine.cli.output import show_bytes, show_line, warn
from engine.cli.terminal import Look
from engine.cli.text import printable
from engine.records import IdenticalHit, LookupResult, NearHit

_COLUMNS = ("query", "tier", "id", "score_or_distance", "source", "label", "source_count")
_NOTHING = ("",) * (len(_COLUMNS) - 1)  # found for a query


class Output(ABC):
    """One form of the results."""

    @abstractmethod
    def write(self, result: LookupResult) -> bool:
        """Write one result; return False once the reader has closed the output."""

    def for_texts(self) -> Output:
        """The form of the results of texts."""
        return self

    def end(self) -> None:  # noqa: B027 (most have nothing to add)
        """Finish the output, also after no results at all."""


class TableOutput(Output):
    """A small table per result, for people."""

    def __init__(self, look: Look, near: int | None, sources: int | None, *, encoded: bool) -> None:
        """List ``near`` near hits, and ``sources`` sources per hit; None lists all.

        ``encoded``: whether an encoder made the vectors.
        """
        self._look = look
        self._near = near
        self._sources = sources
        self._encoded = encoded

    def write(self, result: LookupResult) -> bool:
        """Write one table."""
        return show_line(
            render.lookup_text(
                result,
                self._look,
                near_shown=self._near,
                sources_shown=self._sources,
                encoded=self._encoded,
            )
        )

    def for_texts(self) -> TableOutput:
        """Without words for scores, because an image and a text are never as close as two images."""
        return TableOutput(self._look, self._near, self._sources, encoded=False)


class Json(Output):
    """One JSON object per line, for programs."""

    def write(self, result: LookupResult) -> bool:
        """Write one line."""
        return show_line(render.lookup_json(result))


class Paths(Output):
    """The sources of all hits, each once. Only a terminal gets control characters escaped."""

    def __init__(self, end: bytes = b"\n") -> None:
        """Write ``end`` after each source."""
        self._end = end
        self._safely = end == b"\n" and sys.stdout.isatty()
        # One bit per id is enough: no two images share a source.
        self._seen = bytearray()

    def write(self, result: LookupResult) -> bool:
        """Write the sources of one result that are new."""
        if result.error is not None:
            warn(f"{result.query}: {result.error}")
            return True
        names = bytearray()
        for hit in _hits(result):
            if self._is_new(hit.id):
                for source in hit.sources:
                    names += _as_bytes(printable(source) if self._safely else source) + self._end
        return not names or show_bytes(bytes(names))

    def _is_new(self, id_: int) -> bool:
        at, bit = id_ >> 3, 1 << (id_ & 7)
        if at >= len(self._seen):
            self._seen.extend(bytes(at + 1 - len(self._seen)))
        known = self._seen[at] & bit
        self._seen[at] |= bit
        return not known


class QueryNames(Output):
    """The names of the queries that have hits, or of those that have none."""

    def __init__(self, *, found: bool, end: bytes = b"\n") -> None:
        """``end`` is written after each name."""
        self._found = found
        self._end = end
        self._safely = end == b"\n" and sys.stdout.isatty()

    def write(self, result: LookupResult) -> bool:
        """Write the name of the query, or nothing."""
        if result.error is not None:
            warn(f"{result.query}: {result.error}")
            return True
        if bool(_hits(result)) != self._found:
            return True
        name = printable(result.query) if self._safely else result.query
        return show_bytes(_as_bytes(name) + self._end)


class Csv(Output):
    """A header, and one row per hit; a query without hits has one row without a tier."""

    def __init__(self) -> None:
        self._left: list[tuple[str, ...]] = [_COLUMNS]

    def end(self) -> None:
        """Write the header if there was no hit."""
        if self._left:
            self._rows([])

    def write(self, result: LookupResult) -> bool:
        """Write one result's rows, if any."""
        if result.error is not None:
            warn(f"{result.query}: {result.error}")
            return True
        rows = [(result.query, *_cells(hit)) for hit in _hits(result)]
        return self._rows(rows or [(result.query, *_NOTHING)])

    def _rows(self, rows: list[tuple[str, ...]]) -> bool:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*self._left, *rows])
        self._left = []
        table = text.getvalue()
        return show_bytes(_as_bytes(printable(table) if sys.stdout.isatty() else table))


def _hits(result: LookupResult) -> list[render.Hit]:
    """All hits, those of the strictest tier first."""
    return [*result.identical, *result.near, *result.similar]


def _cells(hit: render.Hit) -> tuple[str, ...]:
    """The cells of a hit's row, without the query."""
    if isinstance(hit, IdenticalHit):
        tier, number = "identical", ""
    elif isinstance(hit, NearHit):
        tier, number = "near", str(hit.distance)
    else:
        tier, number = "similar", repr(hit.score)
    label = (hit.metadata or {}).get("label")
    source = hit.sources[0] if hit.sources else ""
    text = "" if label is None else str(label)
    return tier, str(hit.id), number, source, text, str(hit.source_count)


def _as_bytes(text: str) -> bytes:
    """A file name as its bytes on disk; any other text is escaped where it cannot be encoded."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")
