"""Finds the column of images in a Parquet file by the types of the columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UsageError

_PREFERRED = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content")


class ImageColumn(NamedTuple):
    """The column of images."""

    name: str
    in_struct: bool  # whether it holds ``{bytes, path}`` rather than bytes
    has_path: bool  # whether the struct has a path


def image_column(schema: Any, values: Mapping[str, str], path: Path) -> ImageColumn:
    """The column of images, which ``values["image"]`` may name.

    ``UsageError`` if there is no such column, or if several could be meant.
    """
    found = {field.name: plain(field.type) for field in schema if _holds_images(field.type)}
    if values.get("image") not in found and (values.get("image") is not None or not found):
        # Try these last: bytes of a fixed length are usually checksums.
        found = {f.name: plain(f.type) for f in schema if _holds_images(f.type, fixed=True)}
    there = shown(schema)
    name = values.get("image")
    if name is not None and name not in schema.names:
        raise UsageError(f"{path} has no column {name!r}: it has {there}")
    if name is not None and name not in found:
        raise UsageError(f"{path}: the column {name!r} holds no image files: there are {there}")
    if name is None and not found:
        raise UsageError(
            f"{path} has no column of image files, one per row, as bytes or {{bytes, path}}: it has "
            f"{there}"
        )
    if name is None:
        preferred = [column for column in _PREFERRED if column in found]
        likely = preferred if len(found) > 1 else list(found)
        if len(likely) != 1:
            raise UsageError(
                f"{path} has several columns of image files: there are {there}; name one: "
                f"'{path.name}?image=COLUMN'"
            )
        name = likely[0]
    if schema.names.count(name) > 1:
        raise UsageError(f"{path} has several columns named {name!r}")
    import pyarrow as pa

    kind = found[name]
    in_struct = pa.types.is_struct(kind)
    has_path = in_struct and any(
        field.name == "path" and (_is_text(field.type) or _is_binary(field.type)) for field in kind
    )
    return ImageColumn(name, in_struct, has_path)


def shown(schema: Any) -> str:
    """The columns of a schema with their types, for a message."""
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return (listed if len(listed) <= 500 else listed[:500] + " …") or "no columns"


def fields_of_extension(schema: Any, image: str) -> list[str]:
    """The fields of an extension type, which pyarrow can only read together; else an empty list."""
    import pyarrow as pa

    kind = schema.field(image).type
    if not isinstance(kind, pa.BaseExtensionType) or not pa.types.is_struct(plain(kind)):
        return []
    return [f"{image}.{field.name}" for field in plain(kind)]


def _holds_images(kind: Any, *, fixed: bool = False) -> bool:
    import pyarrow as pa

    kind = plain(kind)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type, fixed=True) for field in kind)
    return _is_binary(kind, fixed=fixed)


def _is_binary(kind: Any, *, fixed: bool = False) -> bool:
    """Whether values are bytes; with ``fixed``, also bytes of a fixed length."""
    import pyarrow as pa

    types, kind = pa.types, plain(kind)
    tests = [types.is_binary, types.is_large_binary, types.is_binary_view]
    tests += [types.is_fixed_size_binary] * fixed
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    types, kind = pa.types, plain(kind)
    return any(
        test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view)
    )


def plain(kind: Any) -> Any:
    """The type of the values themselves, without the extensions and dictionaries around them."""
    import pyarrow as pa

    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        is_extension = isinstance(kind, pa.BaseExtensionType)
        kind = kind.storage_type if is_extension else kind.value_type
    return kind


def is_scalar(kind: Any) -> bool:
    """Whether values are numbers, booleans, texts, dates or times."""
    import pyarrow as pa

    types, kind = pa.types, plain(kind)
    return _is_text(kind) or any(
        test(kind)
        for test in (
            types.is_integer,
            types.is_floating,
            types.is_decimal,
            types.is_boolean,
            types.is_date,
            types.is_timestamp,
            types.is_time,
        )
    )
