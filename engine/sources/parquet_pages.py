"""Measures the pages of a Parquet file by their headers, before anything is decompressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from engine.errors import SourceError
from engine.sources import parquet_thrift
from engine.sources.parquet_footer import ColumnChunk

_MAX_ROWS = 64  # per batch
_BATCH_BYTES = 8 << 20  # per batch, about
# A page ends after the value that fills it, so it may be larger than the limit.
_PAGE_SLACK = 4 << 20
_HEADER_BYTES = (1 << 9, 1 << 13, 1 << 21)  # sizes of a page header, tried one after the other


@dataclass(slots=True)
class Pages:
    """The decompressed bytes of a column's pages in a row group."""

    largest: int = 0  # the largest page
    row: float = 0.0  # a row, on average, in the page of the largest rows
    dictionary: int = 0  # the dictionary page; one value may take nearly all of it
    values: int = 0  # values in all pages, those of lists counted one by one


def batch_rows(
    file: IO[bytes],
    chunks: Sequence[ColumnChunk],
    max_bytes: int,
    lists: Callable[[str, Pages], float | None] = lambda path, pages: None,
) -> int:
    """The number of rows per batch for batches of about 8 MiB, even if rows differ much in size.

    ``SourceError`` if a page is larger than the limit for an image. pyarrow would decompress the page as
    a whole, and a few kilobytes can become gigabytes. It holds one page of each column at a time, so the
    limit applies to the sum of the columns too. ``lists`` returns the bytes of a row of a column of
    lists, whose pages do not tell how many rows they hold; None for another column.
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
        of_list = lists(chunk.path, found)
        row += found.row if of_list is None else of_list
        dictionary += found.dictionary
    return max(1, min(_MAX_ROWS, int(_BATCH_BYTES / row), max_bytes // dictionary))


def walk(file: IO[bytes], chunk: ColumnChunk) -> Pages:
    """Read the headers of a column's pages in one row group."""
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
            raise SourceError(f"is damaged: no page header at byte {at}")
        pages.largest = max(pages.largest, unpacked, packed)
        data = header.get(5) or header.get(8)
        if isinstance(data, dict):
            values = data.get(1)
            rows = values if isinstance(values, int) and values > 0 else 1
            pages.values += rows
            pages.row = max(pages.row, unpacked / rows)
        elif 7 in header:
            pages.dictionary = unpacked
        at += length + packed
    return pages


def _page_header(file: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    """The fields of a page header by number, and its length."""
    for size in _HEADER_BYTES:
        file.seek(at)
        data = file.read(size)
        try:
            return parquet_thrift.struct(data, 0)
        # The header is longer than the data read.
        except IndexError:
            if len(data) < size:
                break
    raise SourceError(f"is damaged: no page header at byte {at}")
