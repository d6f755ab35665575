"""The column of vectors beside the images of a Parquet file: lists of floats, one per row."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.errors import SourceError, UsageError
from engine.sources.items import Vector
from engine.sources.parquet_columns import plain, shown
from engine.sources.parquet_pages import Pages
from engine.sources.vectors import MAX_DIM, vector_of

# Bytes that pyarrow takes for one value of a list: the value, its level and its place.
_VALUE_BYTES = 8


class VectorColumn(NamedTuple):
    """The column of vectors."""

    name: str
    dim: int | None  # values per vector, if the type says so


def vector_column(schema: Any, name: str | None, image: str, path: Path) -> VectorColumn | None:
    """The column of vectors ``name``; None if no column is named. ``UsageError`` if it holds none."""
    if name is None:
        return None
    if name not in schema.names:
        raise UsageError(f"{path} has no column {name!r}: it has {shown(schema)}")
    if schema.names.count(name) > 1:
        raise UsageError(f"{path} has several columns named {name!r}")
    import pyarrow as pa

    kind = plain(schema.field(name).type)
    fixed = pa.types.is_fixed_size_list(kind)
    lists = fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if name == image or not lists or not pa.types.is_floating(plain(kind.value_type)):
        raise UsageError(
            f"{path}: the column {name!r} holds no vectors, which are lists of floats: there are "
            f"{shown(schema)}"
        )
    dim = int(kind.list_size) if fixed else None
    if dim is not None and not 1 <= dim <= MAX_DIM:
        raise UsageError(f"{path}: vectors have 1 to {MAX_DIM:,} values, those of {name!r} {dim:,}")
    return VectorColumn(name, dim)


def row_bytes(pages: Pages, rows: int, name: str, max_bytes: int) -> float:
    """About how many bytes a vector takes in memory, by the page headers of its column.

    ``SourceError`` if all vectors of a row group would take more than ``max_bytes``: its headers do not
    tell how the values are shared out, and one row may hold all of them.
    """
    size = pages.values * _VALUE_BYTES
    if size > max_bytes:
        raise SourceError(
            f"has {pages.values:,} values in the column {name} of one row group: raise memory=, or "
            f"write it in smaller row groups",
            retryable=True,
        )
    return size / max(rows, 1)


def vector_in(column: Any, row: int) -> tuple[Vector | None, str]:
    """The vector of a row, None if the row has none; and what is wrong with it, or nothing."""
    value = column[row]
    if not value.is_valid:
        return None, ""
    values = value.values
    # A value that is missing is NaN, which is rejected later.
    found = np.asarray(values.to_numpy(zero_copy_only=False))
    try:
        return vector_of(found), ""
    except UsageError:
        return None, f"its vector has {len(found):,} values: 1 to {MAX_DIM:,} are needed"
