"""What the footer and the pages of a Parquet file take, read before anything is unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from engine.errors import SourceError
from engine.sources import parquet_thrift

_MAGIC = b"PAR1"
# Of 1,000 row groups × 10 columns it is 2 MB, and takes 14 MB to read: bounds that hold whatever the
# memory, as a footer is read whole before anything else is known.
MAX_FOOTER = 8 << 20  # bytes
_MAX_UNPACKED = 64 << 20  # bytes that it takes once it is read
_LARGEST_GROWTH = 256  # times: what is shorter need not be gone through
_MAX_ROWS = 64  # of a batch
_BATCH_BYTES = 8 << 20  # of a batch, about
_PAGE_SLACK = 4 << 20  # a page ends behind the value with which it is full
_HEADER_BYTES = (1 << 9, 1 << 13, 1 << 21)  # of a page: tried one after the other


def footer(file: IO[bytes], size: int) -> bytes:
    """The footer of a file of ``size`` bytes; ``SourceError`` if it takes too much memory or is none."""
    head = file.read(4)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if head != _MAGIC or tail[4:] != _MAGIC:
        raise SourceError("is not a Parquet file, or was cut short")
    length = int.from_bytes(tail[:4], "little")
    if length > size - 12:
        raise SourceError(f"is damaged: a footer of {length:,} bytes")
    if length > MAX_FOOTER:
        raise SourceError(f"has a footer of {length:,} bytes: {MAX_FOOTER:,} are the limit")
    file.seek(size - 8 - length)
    data = file.read(length)
    if length * _LARGEST_GROWTH > _MAX_UNPACKED:
        parquet_thrift.check_footer(data, _MAX_UNPACKED)
    file.seek(0)
    return data


@dataclass(slots=True)
class Pages:
    """What the pages of some columns of a row group take, in bytes unpacked."""

    largest: int = 0
    row: float = 0.0  # of a row, in the page where they are largest
    dictionary: int = 0  # any value may be one of its, and nearly all of it


def batch_rows(file: IO[bytes], chunks: Sequence[parquet_thrift.Chunk], most: int) -> int:
    """Rows of a batch, so that it takes about 8 MiB, also where rows are of very different size.

    ``SourceError`` for a page that is larger than the largest image may be: pyarrow would unpack it
    as a whole, and a few kilobytes can become gigabytes.
    """
    row, dictionary = 1.0, 1
    for chunk in chunks:
        found = walk(file, chunk)
        if found.largest > most + _PAGE_SLACK:
            raise SourceError(
                f"has a page of {found.largest:,} bytes in the column {chunk.path}: raise memory=, "
                f"or write it in smaller row groups",
                retryable=True,
            )
        row += found.row
        dictionary += found.dictionary
    return max(1, min(_MAX_ROWS, int(_BATCH_BYTES / row), most // dictionary))


def walk(file: IO[bytes], chunk: parquet_thrift.Chunk) -> Pages:
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
