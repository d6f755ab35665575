"""Shows a lookup's result or an image's record in a notebook, as a small HTML table with pictures.

``LookupResult`` and ``ImageRecord`` are plain records, and their module may not import the modules that
read sources. So this module adds ``_repr_html_`` to them when it is imported. ``engine.api.store``
imports it, because every result comes from a ``Store``.

Every text in a table is escaped, because a file may have any name. Pictures are embedded, and nothing is
loaded from elsewhere. A picture shows what a source holds now; a dash stands for an unreadable source. A
record names no source, so its table has no picture. ``Store.thumbnail`` makes one.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

from engine.errors import EngineError
from engine.images.thumbnail import thumbnail_png
from engine.records import IdenticalHit, ImageRecord, LookupResult, NearHit, SimilarHit
from engine.sources.named_arrays import exists
from engine.sources.parquet_table import PARQUET_SUFFIXES
from engine.sources.query import Query, open_images

_ROWS = 50  # hits shown
_PICTURES = 20  # pictures read, the query's own included
_SOURCES = 3  # sources tried per image
_SIDE = 96  # pixels
_FILE_BYTES = 64 << 20  # per image file
_DECODING_BYTES = 256 << 20
# An archive or an array of up to this size may be read whole to find one of its images.
_SCANNED_BYTES = 16 << 20
# In these, an image is found without reading the whole file.
_AT_ONCE = (*PARQUET_SUFFIXES, ".zip")
_TEXT = 200  # characters of a name or of metadata
_NONE = "—"

Hit = IdenticalHit | NearHit | SimilarHit


def lookup_html(result: LookupResult) -> str:
    """An HTML table of the query and its hits, tier by tier."""
    pictures = _Pictures()
    title = f"<tr><td>{pictures.of([result.query])}</td><th colspan=4>{_text(result.query)}"
    if result.error is not None:
        return _table([f"{title}: {_text(result.error)}</th></tr>"])
    rows = [f"{title}</th></tr>", _row(["", "tier", "id", "", "sources"], "th")]
    hits = list(_hits(result))
    for tier, hit, how in hits[:_ROWS]:
        rows.append(
            _row([pictures.of(hit.sources), tier, str(hit.id), _text(how), _where(hit)], "td")
        )
    left = len(hits) - _ROWS
    if left > 0:
        rows.append(f"<tr><td></td><td colspan=4>… and {left:,} more</td></tr>")
    if not hits:
        rows.append("<tr><td></td><td colspan=4>nothing found</td></tr>")
    return _table(rows)


def record_html(record: ImageRecord) -> str:
    """An HTML table of a record's fields."""
    rows = []
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name == "kind":
            shown = value.name.lower()
        else:
            shown = value.hex() if isinstance(value, bytes) else str(value)
        rows.append(f"<tr><th>{_text(field.name)}</th><td>{_text(shown) or _NONE}</td></tr>")
    return _table(rows)


@dataclass(slots=True)
class _Pictures:
    """Makes pictures of sources, up to a limit for the whole table."""

    left: int = _PICTURES

    def of(self, sources: Iterable[str]) -> str:
        """An ``<img>`` of the first readable source; else a dash."""
        for source in islice(sources, _SOURCES):
            if not _may_be_one(source):
                continue
            if self.left <= 0:
                break
            self.left -= 1
            data = _picture(source)
            if data is not None:
                coded = base64.b64encode(data).decode()
                return f'<img src="data:image/png;base64,{coded}" alt="">'
        return _NONE


def _picture(source: str) -> bytes | None:
    """A small PNG of the image that a source names; None if it cannot be read."""
    try:
        query = next(iter(open_images(source, _FILE_BYTES)), None)
        if not isinstance(query, Query) or query.vector is not None:
            return None
        return thumbnail_png(query.decode(_DECODING_BYTES).pixels, _SIDE)
    except (EngineError, OSError, ValueError):
        return None


def _may_be_one(source: str) -> bool:
    """Whether ``source`` may name one image that is quick to read, not a folder or standard input.

    A query from memory has a name that may also be a file's. Such names have no folder and no suffix.
    """
    try:
        return _names_one(source)
    except (OSError, ValueError):
        return False


def _names_one(source: str) -> bool:
    if os.sep not in source and not Path(source).suffix:
        return False
    if exists(source):
        return not Path(source).is_dir()
    at = source.find("#")
    if at == -1:
        return False
    file = Path(source[:at].partition("?")[0])
    if not exists(str(file)) or file.suffix.lower() in _AT_ONCE:
        return True
    return file.stat().st_size <= _SCANNED_BYTES


def _hits(result: LookupResult) -> Iterator[tuple[str, Hit, str]]:
    for same in result.identical:
        yield "identical", same, "same pixels"
    for near in result.near:
        yield "near", near, f"{near.distance} of 256 bits"
    for like in result.similar:
        percentile = "" if like.percentile is None else f" ({like.percentile} %)"
        yield "similar", like, f"{like.score:.3f}{percentile}"


def _where(hit: Hit) -> str:
    """The first source of a hit, the number of its other sources, and its metadata."""
    lines = [_text(hit.sources[0])] if hit.sources else []
    if hit.source_count > 1 and hit.sources:
        lines.append(f"and {hit.source_count - 1:,} more")
    if hit.metadata:
        lines.append(_text(str(hit.metadata)))
    return "<br>".join(lines) or _NONE


def _text(text: str) -> str:
    """Untrusted text as HTML: cut, with markup escaped and unprintable characters escaped."""
    short = text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in short))


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _table(rows: Sequence[str]) -> str:
    return "<table>" + "".join(rows) + "</table>"


def _attach(kind: type, shows: Callable[..., str]) -> None:
    """Let notebooks show records of class ``kind`` with ``shows``."""
    kind._repr_html_ = shows  # type: ignore[attr-defined]


_attach(LookupResult, lookup_html)
_attach(ImageRecord, record_html)
