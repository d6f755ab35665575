"""Tables of images: Parquet files with a column of image files, read a few rows at a time (pyarrow).

The column holds bytes, or ``{bytes, path}`` as Hugging Face data sets do. Row r of it is called
``/path/FILE.parquet#r``; what the other columns say of it is its metadata.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from engine.errors import ImageError, SourceError, UsageError
from engine.sources import parquet_pages, parquet_thrift
from engine.sources.decompress import steady
from engine.sources.items import (
    Member,
    Problem,
    Skipped,
    checked_metadata,
    over_limit,
    stamp_of,
)
from engine.sources.member_names import name_of, query_values, wanted_fields

PARQUET_SUFFIXES = (".parquet", ".pq")
PREFERRED = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content")
_MAX_IN_LIST = 1 << 16  # row groups, or columns: room is made before the first one is read
_STREAM_BYTES = 1 << 20  # of a column, read at a time; without it pyarrow reads a row group's whole


class ParquetTable:
    """The rows of one Parquet file."""

    def __init__(self, path: Path, query: str = "") -> None:
        """Read the footer. ``query``: ``image=COLUMN`` and ``metadata=COLUMN,COLUMN`` choose columns.

        ``UsageError`` if there is no such column, or no way to tell which one holds the images;
        ``SourceError`` if it is no such file, ``OSError`` if there is none.
        """
        values = query_values(path, query, {"image", "metadata"})
        self._path = path
        self.mtime_ns, self.size = stamp_of(path.stat())
        self.name = name_of(path, query)
        with self._open() as (_, table, _):
            self.count: int = table.metadata.num_rows
            schema = table.schema_arrow
        self._image, self._in_struct, self._has_path = _image_column(schema, values, path)
        self._whole = _fields_of_extension(schema, self._image)
        wanted = wanted_fields(values)
        self._columns = _metadata_columns(
            schema, self._image, wanted, path, has_path=self._has_path
        )
        self._keeps_path = self._has_path and (wanted is None or "path" in wanted)

    def members(self, start: int, most: int) -> Iterator[Member | Problem | Skipped]:
        """Its rows from number ``start`` on, as ``ArchiveItem`` has it."""
        return self._rows(start, most, self._columns, keeps_path=self._keeps_path)

    def read(self, row: bytes, most: int) -> bytes:
        """The image of one row; ``SourceError`` if there is no such row, ``ImageError`` if no image."""
        number = int(row) if row.isdigit() and len(row) <= 18 else -1
        if not 0 <= number < self.count:
            shown = row[:200].decode(errors="backslashreplace")
            raise SourceError(f"has rows 0 to {self.count - 1}, not {shown}")
        found = next(self._rows(number, most, {}, keeps_path=False), None)
        if isinstance(found, Member):
            return found.data
        raise ImageError(found.reason if isinstance(found, Problem) else "has no image bytes")

    def _rows(
        self,
        start: int,
        most: int,
        columns: Mapping[str, Callable[[Any], dict[str, Any]]],
        *,
        keeps_path: bool,
    ) -> Iterator[Member | Problem | Skipped]:
        inside = [f"{self._image}.bytes"] if self._in_struct else [self._image]
        if keeps_path:
            inside.append(f"{self._image}.path")
        names = [*(self._whole or inside), *columns]
        first = 0
        with self._open() as (file, table, footer):
            read = [table.schema.column(i).path in names for i in range(len(table.schema))]
            for group, (rows, chunks) in enumerate(parquet_thrift.row_groups(footer)):
                if start < first + rows:
                    number = first
                    wanted = [
                        chunk for chunk, is_read in zip(chunks, read, strict=False) if is_read
                    ]
                    size = parquet_pages.batch_rows(file, wanted, most)
                    batches = table.iter_batches(size, [group], names, use_threads=False)
                    for batch in _whole(batches, number):
                        yield from self._batch(batch, number, start, most, columns, keeps_path)
                        number += batch.num_rows
                    if number != first + rows:
                        raise SourceError(f"ends after row {number} of {self.count}")
                    _give_back()
                first += rows

    def _batch(
        self,
        batch: Any,
        first: int,
        start: int,
        most: int,
        columns: Mapping[str, Callable[[Any], dict[str, Any]]],
        keeps_path: bool,
    ) -> Iterator[Member | Problem]:
        """The rows of a batch that begins with row ``first``, from ``start`` on."""
        skip = max(0, start - first)
        if skip >= batch.num_rows:
            return
        batch = batch.slice(skip)
        images = _stored(batch.column(self._image))
        data = _stored(images.field("bytes")) if self._in_struct else images
        said = [(tell, _stored(batch.column(name))) for name, tell in columns.items()]
        if keeps_path:
            said.insert(0, (_tell_path, _stored(images.field("path"))))
        stamp = (self.mtime_ns, self.size)
        for i in range(batch.num_rows):
            name = b"%s#%d" % (self.name, first + skip + i)
            value = data[i].as_py()
            if value is None:
                yield Problem(name, "has no image bytes", *stamp)
                continue
            if len(value) > most:
                error = over_limit(len(value), most)
                yield Problem(name, str(error), *((0, 0) if error.retryable else stamp))
                continue
            metadata, lost = _metadata(said, i)
            yield Member(name, *stamp, value, metadata, note=lost)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], Any, bytes]]:
        """The file, pyarrow's view of it, and its footer.

        Of row groups, pyarrow's metadata is not asked: it ends the process where they make no sense.
        """
        pa, parquet = _pyarrow()
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            footer = parquet_pages.footer(file, self.size)
            try:
                # Not by its path, which need not be UTF-8, and may be another file by now; nor
                # through Python, which takes twice as long.
                table = parquet.ParquetFile(
                    pa.OSFile(f"/dev/fd/{file.fileno()}"),
                    buffer_size=_STREAM_BYTES,
                    pre_buffer=False,
                    page_checksum_verification=True,
                    thrift_string_size_limit=parquet_pages.MAX_FOOTER,
                    thrift_container_size_limit=max(1, min(len(footer), _MAX_IN_LIST)),
                )
                yield file, table, footer
            except _errors(pa) as error:
                raise SourceError(f"is damaged: {_line(error)}") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "Parquet files need pyarrow: pip install 'image-index-engine[parquet]'"
        ) from None
    return pyarrow, parquet


def _errors(pa: Any) -> tuple[type[Exception], ...]:
    """What reading a damaged file may raise."""
    return (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError)


def _whole(batches: Iterator[Any], number: int) -> Iterator[Any]:
    """Batches; ``SourceError`` where they break off. ``number`` is the first row."""
    pa, _ = _pyarrow()
    while True:
        try:
            batch = next(batches, None)
        except _errors(pa) as error:
            raise SourceError(
                f"is damaged: it breaks off at row {number}: {_line(error)}"
            ) from None
        if batch is None:
            return
        yield batch
        number += batch.num_rows


def _give_back() -> None:
    """Let the memory of a row group go, which pyarrow's pool keeps for the next one."""
    _pyarrow()[0].default_memory_pool().release_unused()


# --- columns --------------------------------------------------------------------------------------


def _image_column(schema: Any, values: Mapping[str, str], path: Path) -> tuple[str, bool, bool]:
    """The column of images, whether it is of ``{bytes, path}``, and whether it has that path."""
    found = {field.name: _plain(field.type) for field in schema if _holds_images(field.type)}
    if values.get("image") not in found and (values.get("image") is not None or not found):
        # Bytes of one length are most often a checksum.
        found = {f.name: _plain(f.type) for f in schema if _holds_images(f.type, fixed=True)}
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    shown = listed if len(listed) <= 500 else listed[:500] + " …"
    name = values.get("image")
    if name is not None and name not in schema.names:
        raise UsageError(f"{path} has no column {name!r}: it has {shown or 'no columns'}")
    if name is not None and name not in found:
        raise UsageError(f"{path}: the column {name!r} holds no image files: there are {shown}")
    if name is None and not found:
        raise UsageError(
            f"{path} has no column of image files, one a row, as bytes or {{bytes, path}}: it has "
            f"{shown or 'no columns'}"
        )
    if name is None:
        preferred = [column for column in PREFERRED if column in found]
        likely = preferred if len(found) > 1 else list(found)
        if len(likely) != 1:
            raise UsageError(
                f"{path} has several columns of image files: there are {shown}; name one: "
                f"'{path.name}?image=COLUMN'"
            )
        name = likely[0]
    if schema.names.count(name) > 1:
        raise UsageError(f"{path} has several columns that are called {name!r}")
    import pyarrow as pa

    kind = found[name]
    in_struct = pa.types.is_struct(kind)
    has_path = in_struct and any(
        field.name == "path" and (_is_text(field.type) or _is_binary(field.type)) for field in kind
    )
    return name, in_struct, has_path


def _holds_images(kind: Any, *, fixed: bool = False) -> bool:
    import pyarrow as pa

    kind = _plain(kind)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type, fixed=True) for field in kind)
    return _is_binary(kind, fixed=fixed)


def _is_binary(kind: Any, *, fixed: bool = False) -> bool:
    """Whether values are bytes; ``fixed``: also those of one length."""
    import pyarrow as pa

    types, kind = pa.types, _plain(kind)
    tests = [types.is_binary, types.is_large_binary, types.is_binary_view]
    tests += [types.is_fixed_size_binary] * fixed
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    types, kind = pa.types, _plain(kind)
    return any(
        test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _plain(kind: Any) -> Any:
    """The type of the values, whatever they are wrapped in: an extension, a dictionary."""
    import pyarrow as pa

    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        is_extension = isinstance(kind, pa.BaseExtensionType)
        kind = kind.storage_type if is_extension else kind.value_type
    return kind


def _fields_of_extension(schema: Any, image: str) -> list[str]:
    """The fields of an extension type, which pyarrow reads all of or not at all; else none."""
    import pyarrow as pa

    kind = schema.field(image).type
    if not isinstance(kind, pa.BaseExtensionType) or not pa.types.is_struct(_plain(kind)):
        return []
    return [f"{image}.{field.name}" for field in _plain(kind)]


def _metadata_columns(
    schema: Any, image: str, wanted: tuple[str, ...] | None, path: Path, *, has_path: bool
) -> dict[str, Callable[[Any], dict[str, Any]]]:
    """The columns beside the images, each with what makes metadata of one of its values."""
    times = Counter(schema.names)
    scalar = {
        field.name: field.type
        for field in schema
        if field.name != image and times[field.name] == 1 and _is_scalar(field.type)
    }
    names = list(scalar) if wanted is None else list(wanted)
    if wanted is not None and has_path and "path" in names and "path" not in scalar:
        names.remove("path")  # it stands beside the image's bytes
    for name in names:
        if name not in scalar:
            raise UsageError(f"{path}: {name!r} is no column of numbers, texts or times")
    labels = _class_labels(schema)
    return {name: _teller(name, labels.get(name, [])) for name in names}


def _is_scalar(kind: Any) -> bool:
    import pyarrow as pa

    types, kind = pa.types, _plain(kind)
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


def _stored(column: Any) -> Any:
    """A column as it is stored, with nanoseconds as microseconds, which Python has.

    ``SourceError`` where it has a value by a number that its dictionary does not have.
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


def _metadata(
    said: Sequence[tuple[Callable[[Any], dict[str, Any]], Any]], row: int
) -> tuple[dict[str, Any] | None, str]:
    """What the columns say of a row; or why it cannot be kept, as the image can."""
    metadata: dict[str, Any] = {}
    try:
        for tell, column in said:
            metadata |= tell(column[row].as_py())
        return checked_metadata(metadata), ""
    except ImageError as error:
        return None, str(error)
    except (ValueError, OverflowError) as error:  # no UTF-8, a date that Python has not
        return None, f"a column beside the image cannot be read: {_line(error)}"


def _tell_path(value: str | bytes | None) -> dict[str, Any]:
    """The name of the file that the bytes come from; some writers do not say that it is text."""
    if value is None:
        return {}
    return {"path": value.decode() if isinstance(value, bytes) else value}


def _teller(name: str, labels: list[str]) -> Callable[[Any], dict[str, Any]]:
    """Makes metadata of a column's values: JSON, with the name of a label where it has one."""

    def tell(value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
            return {name: value.isoformat()}
        if isinstance(value, bool | int | str):
            told: dict[str, Any] = {name: value}
            if labels and isinstance(value, int) and 0 <= value < len(labels):
                told[f"{name}_name"] = labels[value]
            return told
        number = float(value)
        return {name: number} if math.isfinite(number) else {}

    return tell


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """The names of labels that a Hugging Face data set says of its columns; they are no must."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
