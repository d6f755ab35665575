"""How a notebook shows a lookup's result and an image's record: a small table in HTML, with pictures.

``LookupResult`` and ``ImageRecord`` have no behaviour of their own, and their module lies below those
that read sources. So this module gives them ``_repr_html_`` when it is imported, which
``engine.api.store`` does: whoever has a result got it from a ``Store``.

Every text in a table is escaped: names of files are whatever somebody called them. A picture is part of
the table, and nothing is loaded from elsewhere. It shows what a source holds now, and a dash stands for
one that cannot be read. A record names no source, so its table has no picture: ``Store.thumbnail`` makes
one.
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

_ROWS = 50  # of hits
_PICTURES = 20  # that are read, the query's own included
_SOURCES = 3  # of an image that are tried
_SIDE = 96  # pixels
_FILE_BYTES = 64 << 20  # of one image's file
_DECODING_BYTES = 256 << 20
_SCANNED_BYTES = 16 << 20  # of an archive or an array that may be read whole for one of its images
_AT_ONCE = (*PARQUET_SUFFIXES, ".zip")  # whose images are found without that
_TEXT = 200  # characters of a name or of metadata
_NONE = "—"

Hit = IdenticalHit | NearHit | SimilarHit


def lookup_html(result: LookupResult) -> str:
    """The query, and what it found, tier by tier."""
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
    """What is known of an image, field by field."""
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
    """Pictures of sources, as long as there are not too many of them."""

    left: int = _PICTURES

    def of(self, sources: Iterable[str]) -> str:
        """The first source that can be read, as an element of HTML; else a dash."""
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
    """Whether it may name one image that is read soon: no folder, and no standard input.

    What was in memory has a name that may be a file's too: those of queries have neither a folder nor
    a suffix.
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
        yield "identical", same, "same pixels" if same.verified == "bytes" else "same SHA-256"
    for near in result.near:
        yield "near", near, f"{near.distance} of 256 bits"
    for like in result.similar:
        yield "similar", like, f"{like.score:.3f}"


def _where(hit: Hit) -> str:
    """Where an image was seen first, how often else, and what is said of it."""
    lines = [_text(hit.sources[0])] if hit.sources else []
    if hit.source_count > 1 and hit.sources:
        lines.append(f"and {hit.source_count - 1:,} more")
    if hit.metadata:
        lines.append(_text(str(hit.metadata)))
    return "<br>".join(lines) or _NONE


def _text(text: str) -> str:
    """A stranger's text as HTML that shows it: no markup, and nothing that cannot be printed or sent."""
    short = text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in short))


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _table(rows: Sequence[str]) -> str:
    return "<table>" + "".join(rows) + "</table>"


def _attach(kind: type, shows: Callable[..., str]) -> None:
    """Let notebooks show a record of this kind by ``shows``."""
    kind._repr_html_ = shows  # type: ignore[attr-defined]


_attach(LookupResult, lookup_html)
_attach(ImageRecord, record_html)
