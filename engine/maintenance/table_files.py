"""Writes the tables of an export, as CSV or as Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from engine.errors import UsageError, how_to_install

_GROUP_BYTES = 16 << 20


class ExportTable(Protocol):
    """One table while it is written."""

    def write(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows: a value for each column, None for an empty cell."""

    def close(self) -> None:
        """Write the remaining rows and close the file."""


class CsvFile:
    """A table as CSV; its first line has the names of the columns."""

    def __init__(self, path: Path, columns: dict[str, type]) -> None:
        """``columns`` are types, int or str, by column name."""
        self._file = path.open("x", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(columns)

    def write(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows: a value for each column, None for an empty cell."""
        self._writer.writerows(rows)

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        self._file.close()


class ParquetFile:
    """A table as Parquet, in groups of bounded size."""

    def __init__(self, path: Path, columns: dict[str, type], group_rows: int) -> None:
        """``columns`` are types, int or str, by name; a group has at most ``group_rows`` rows."""
        self._group_rows = group_rows
        arrow, parquet = pyarrow_modules()
        self._arrow = arrow
        kinds = {int: arrow.int64(), str: arrow.string()}
        self._schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
        self._file = path.open("xb")
        self._writer = parquet.ParquetWriter(self._file, self._schema)
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def write(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows: a value for each column, None for an empty cell."""
        for row in rows:
            self._rows.append(row)
            self._bytes += sum(len(value) for value in row if isinstance(value, str))
            if len(self._rows) >= self._group_rows or self._bytes >= _GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        columns = [list(column) for column in zip(*self._rows, strict=True)]
        self._rows, self._bytes = [], 0
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        try:
            if self._rows:
                self._flush()
            self._writer.close()
        finally:
            self._file.close()


def pyarrow_modules() -> Any:
    """The modules pyarrow and pyarrow.parquet; ``UsageError`` if they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f'Parquet needs pyarrow: {how_to_install("parquet")}; or take format="csv"'
        ) from None
    return pyarrow, parquet
