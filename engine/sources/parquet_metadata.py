"""Turns the columns beside the images of a Parquet file into metadata, as JSON."""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import ImageError, SourceError, UsageError
from engine.sources.decompress import line_of
from engine.sources.metadata import checked_metadata
from engine.sources.parquet_columns import is_scalar

Teller = Callable[[Any], dict[str, Any]]
"""A function that makes metadata of one value of a column."""


def metadata_columns(
    schema: Any, image: str, wanted: tuple[str, ...] | None, path: Path, *, has_path: bool
) -> dict[str, Teller]:
    """The columns beside the images, each with the function that makes metadata of its values."""
    times = Counter(schema.names)
    scalar = {
        field.name: field.type
        for field in schema
        if field.name != image and times[field.name] == 1 and is_scalar(field.type)
    }
    names = list(scalar) if wanted is None else list(wanted)
    if wanted is not None and has_path and "path" in names and "path" not in scalar:
        # It is the path inside the image's struct.
        names.remove("path")
    for name in names:
        if name not in scalar:
            raise UsageError(f"{path}: {name!r} is not a column of numbers, texts or times")
    labels = _class_labels(schema)
    return {name: _teller(name, labels.get(name, [])) for name in names}


def stored(column: Any) -> Any:
    """A column without extension types, with nanoseconds as microseconds, which Python supports.

    ``SourceError`` if it refers to a value that its dictionary does not have.
    """
    import pyarrow as pa

    while isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        count = len(column.dictionary)
        if not all(i is None or 0 <= i < count for i in column.indices.to_pylist()):
            raise SourceError("is damaged: a value that is not in its dictionary")
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pa.timestamp("us", kind.tz), safe=False)
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return column.cast(pa.time64("us"), safe=False)
    return column


def metadata_of(said: Sequence[tuple[Teller, Any]], row: int) -> tuple[dict[str, Any] | None, str]:
    """The metadata of a row; or None and the reason why it cannot be kept."""
    metadata: dict[str, Any] = {}
    try:
        for tell, column in said:
            metadata |= tell(column[row].as_py())
        return checked_metadata(metadata), ""
    except ImageError as error:
        return None, str(error)
    # Text that is not UTF-8, or a date that Python cannot represent.
    except (ValueError, OverflowError) as error:
        return None, f"a column beside the image cannot be read: {line_of(error)[:300]}"


def tell_path(value: str | bytes | None) -> dict[str, Any]:
    """Metadata with the image's file name, which some writers store as bytes."""
    if value is None:
        return {}
    return {"path": value.decode() if isinstance(value, bytes) else value}


def _teller(name: str, labels: list[str]) -> Teller:
    """A function that makes JSON metadata of a column's values, with the names of labels if known."""

    def tell(value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        # A datetime is a date too.
        if isinstance(value, datetime.date | datetime.time):
            return {name: value.isoformat()}
        if isinstance(value, bool | int | str):
            metadata: dict[str, Any] = {name: value}
            if labels and isinstance(value, int) and 0 <= value < len(labels):
                metadata[f"{name}_name"] = labels[value]
            return metadata
        number = float(value)
        return {name: number} if math.isfinite(number) else {}

    return tell


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """The optional names of labels by column, from a Hugging Face data set's description."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
