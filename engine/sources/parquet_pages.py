"""What the pages of a Parquet file take, read before anything is unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from engine.errors import SourceError
from engine.sources import parquet_thrift
from engine.sources.parquet_footer import ColumnChunk

_MAX_ROWS = 64  # of a batch
_BATCH_BYTES = 8 << 20  # of a batch, about
_PAGE_SLACK = 4 << 20  # a page ends behind the value with which it is full
_HEADER_BYTES = (1 << 9, 1 << 13, 1 << 21)  # of a page: tried one after the other


@dataclass(slots=True)
class Pages:
    """What the pages of some columns of a row group take, in bytes unpacked."""

    largest: int = 0
    row: float = 0.0  # of a row, in the page where they are largest
    dictionary: int = 0  # any value may be one of its, and nearly all of it


def batch_rows(file: IO[bytes], chunks: Sequence[ColumnChunk], max_bytes: int) -> int:
    """Rows of a batch, so that it takes about 8 MiB, also where rows are of very different size.

    ``SourceError`` for a page that is larger than the largest image may be: pyarrow would unpack it
    as a whole, and a few kilobytes can become gigabytes. It holds a page of each column at a time, so
    that is a bound for all of them together.
    """
    row, dictionary, together = 1.0, 1, 0
    for chunk in chunks:
        found = walk(file, chunk)
        if found.largest > max_bytes + _PAGE_SLACK:
            raise SourceError(
                f"has a page of {found.largest:,} bytes in the column {chunk.path}: raise memory=, "
                f"or write it in smaller row groups",
                retryable=True,
            )
        together += found.largest
        if together > max_bytes + _PAGE_SLACK:
            raise SourceError(
                f"has pages of {together:,} bytes in the columns up to {chunk.path}: raise memory=, "
                f"or choose fewer columns with ?metadata=",
                retryable=True,
            )
        row += found.row
        dictionary += found.dictionary
    return max(1, min(_MAX_ROWS, int(_BATCH_BYTES / row), max_bytes // dictionary))


def walk(file: IO[bytes], chunk: ColumnChunk) -> Pages:
    """Go through the headers of a column's pages in one row group."""
    pages = Pages()
    at, end = chunk.at, chunk.at + chunk.size
    while at < end:
        header, length = _page_header(file, at)
        unpacked, packed = header.get(2), header.get(3)
        if (
            not isinstance(unpacked, int)
            or not isinstance(packed, int)
            or min(unpacked, packed) < 0
        ):
            raise SourceError(f"is damaged: no page is at byte {at} where one must be")
        pages.largest = max(pages.largest, unpacked, packed)
        data = header.get(5) or header.get(8)
        if isinstance(data, dict):
            values = data.get(1)
            rows = values if isinstance(values, int) and values > 0 else 1
            pages.row = max(pages.row, unpacked / rows)
        elif 7 in header:
            pages.dictionary = unpacked
        at += length + packed
    return pages


def _page_header(file: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    """The header of a page, by the numbers of its fields, and its length."""
    for size in _HEADER_BYTES:
        file.seek(at)
        data = file.read(size)
        try:
            return parquet_thrift.struct(data, 0)
        except IndexError:  # longer than what was read
            if len(data) < size:
                break
    raise SourceError(f"is damaged: no page is at byte {at} where one must be")
