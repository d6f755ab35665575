"""Tables of images: Parquet files with a column of image files, read a few rows at a time (pyarrow).

The column holds bytes, or ``{bytes, path}`` as in Hugging Face data sets. Row r is called
``/path/FILE.parquet#r``, and the other columns are its metadata. ``?vector=COLUMN`` names a column of
lists of floats, the vectors of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from engine.errors import EngineError, ImageError, SourceError, UsageError, how_to_install
from engine.sources import parquet_footer, parquet_pages, parquet_vectors
from engine.sources.items import Member, Reject, Skipped, Vector, over_limit, stamp_of
from engine.sources.member_names import name_of, query_values, wanted_fields
from engine.sources.parquet_columns import fields_of_extension, image_column
from engine.sources.parquet_metadata import Teller, metadata_columns, metadata_of, stored, tell_path
from engine.sources.steady_file import steady, unreadable

PARQUET_SUFFIXES = (".parquet", ".pq")
# The most row groups or columns. pyarrow allocates room for all before it reads the first one.
_MAX_IN_LIST = 1 << 16
# Bytes of a column read at a time. Without it, pyarrow reads a whole row group of the column.
_STREAM_BYTES = 1 << 20


class ParquetTable:
    """The rows of one Parquet file."""

    def __init__(self, path: Path, query: str = "") -> None:
        """Read the footer. ``query`` chooses columns: ``image=``, ``vector=`` and ``metadata=A,B``.

        ``UsageError`` if a column is missing, or if several columns could hold the images;
        ``SourceError`` if it is not a Parquet file, ``OSError`` if the file does not exist.
        """
        values = query_values(path, query, {"image", "metadata", "vector"})
        self._path = path
        self.mtime_ns, self.size = stamp_of(path.stat())
        self.name = name_of(path, query)
        with self._open() as (_, table, _):
            self.count: int = table.metadata.num_rows
            schema = table.schema_arrow
        column = image_column(schema, values, path)
        self._image, self._in_struct = column.name, column.in_struct
        self._whole = fields_of_extension(schema, column.name)
        wanted = wanted_fields(values)
        self._columns = metadata_columns(
            schema, column.name, wanted, path, has_path=column.has_path
        )
        vector = parquet_vectors.vector_column(schema, values.get("vector"), column.name, path)
        self._vector = vector.name if vector is not None else None
        self.brings_vectors = vector is not None
        self.vector_dim = vector.dim if vector is not None else None
        self.vectors_stamped = True
        self._keeps_path = column.has_path and (wanted is None or "path" in wanted)

    def members(self, start: int, max_bytes: int) -> Iterator[Member | Reject | Skipped]:
        """Its rows from number ``start`` on; see ``ArchiveItem``."""
        return self._rows(
            start, max_bytes, self._columns, keeps_path=self._keeps_path, vector=self._vector
        )

    def read(self, row: bytes, max_bytes: int) -> bytes:
        """The image bytes of one row; ``SourceError`` if it does not exist, ``ImageError`` if empty."""
        number = int(row) if row.isdigit() and len(row) <= 18 else -1
        if not 0 <= number < self.count:
            shown = row[:200].decode(errors="backslashreplace")
            raise SourceError(f"has rows 0 to {self.count - 1}, not {shown}")
        found = next(self._rows(number, max_bytes, {}, keeps_path=False), None)
        if isinstance(found, Member):
            return found.data
        raise ImageError(found.reason if isinstance(found, Reject) else "has no image bytes")

    def _rows(
        self,
        start: int,
        max_bytes: int,
        columns: Mapping[str, Teller],
        *,
        keeps_path: bool,
        vector: str | None = None,
    ) -> Iterator[Member | Reject | Skipped]:
        inside = [f"{self._image}.bytes"] if self._in_struct else [self._image]
        if keeps_path:
            inside.append(f"{self._image}.path")
        names = [*(self._whole or inside), *columns, *([vector] if vector is not None else [])]
        first = 0
        with self._open() as (file, table, footer):
            paths = [table.schema.column(i).path for i in range(len(table.schema))]
            # The path of a list goes on behind the name of its column.
            lists = f"{vector}."
            read = [
                path in names or (vector is not None and path.startswith(lists)) for path in paths
            ]
            for group, (rows, chunks) in enumerate(parquet_footer.row_groups(footer)):
                if start < first + rows:
                    number = first
                    wanted = [
                        chunk for chunk, is_read in zip(chunks, read, strict=False) if is_read
                    ]
                    size = parquet_pages.batch_rows(
                        file, wanted, max_bytes, _list_bytes(vector, rows, max_bytes)
                    )
                    batches = table.iter_batches(size, [group], names, use_threads=False)
                    for batch in _whole(batches, number):
                        yield from self._batch(
                            batch, number, start, max_bytes, columns, keeps_path, vector
                        )
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
        max_bytes: int,
        columns: Mapping[str, Teller],
        keeps_path: bool,
        vector: str | None,
    ) -> Iterator[Member | Reject]:
        """The rows of a batch that begins with row ``first``, from ``start`` on."""
        skip = max(0, start - first)
        if skip >= batch.num_rows:
            return
        batch = batch.slice(skip)
        images = stored(batch.column(self._image))
        data = stored(images.field("bytes")) if self._in_struct else images
        said = [(tell, stored(batch.column(name))) for name, tell in columns.items()]
        if keeps_path:
            said.insert(0, (tell_path, stored(images.field("path"))))
        vectors = stored(batch.column(vector)) if vector is not None else None
        stamp = (self.mtime_ns, self.size)
        for i in range(batch.num_rows):
            name = b"%s#%d" % (self.name, first + skip + i)
            value = data[i].as_py()
            if value is None:
                yield Reject(name, "has no image bytes", *stamp)
                continue
            if len(value) > max_bytes:
                error = over_limit(len(value), max_bytes)
                yield Reject(name, str(error), *((0, 0) if error.retryable else stamp))
                continue
            brought: Vector | None = None
            if vectors is not None:
                brought, wrong = parquet_vectors.vector_in(vectors, i)
                if wrong:
                    yield Reject(name, wrong, *stamp)
                    continue
            metadata, lost = metadata_of(said, i)
            yield Member(name, *stamp, value, metadata, note=lost, vector=brought)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], Any, bytes]]:
        """The file, pyarrow's view of it, and its footer.

        Row groups are not read from pyarrow's metadata, which aborts the process if they are invalid.
        """
        pa, parquet = _pyarrow()
        with steady(self._path, (self.mtime_ns, self.size)) as file:
            footer = parquet_footer.read_footer(file, self.size)
            try:
                # Not by path, which need not be UTF-8 and may name another file now. Not through a
                # Python file, which takes twice as long.
                table = parquet.ParquetFile(
                    pa.OSFile(f"/dev/fd/{file.fileno()}"),
                    buffer_size=_STREAM_BYTES,
                    pre_buffer=False,
                    page_checksum_verification=True,
                    thrift_string_size_limit=parquet_footer.MAX_FOOTER,
                    thrift_container_size_limit=max(1, min(len(footer), _MAX_IN_LIST)),
                )
                yield file, table, footer
            # Keep UsageError, which is also a ValueError.
            except EngineError:
                raise
            except _errors(pa) as error:
                raise unreadable(error) from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"Parquet files need pyarrow: {how_to_install('parquet')}") from None
    return pyarrow, parquet


def _errors(pa: Any) -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged file may raise."""
    return (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError)


def _whole(batches: Iterator[Any], number: int) -> Iterator[Any]:
    """Yield the batches; ``SourceError`` if they break off. ``number`` is the first row."""
    pa, _ = _pyarrow()
    while True:
        try:
            batch = next(batches, None)
        except _errors(pa) as error:
            raise unreadable(error, f"is damaged: it breaks off at row {number}") from None
        if batch is None:
            return
        yield batch
        number += batch.num_rows


def _list_bytes(
    vector: str | None, rows: int, max_bytes: int
) -> Callable[[str, parquet_pages.Pages], float | None]:
    """How many bytes a row of the column of vectors takes, for ``batch_rows``."""

    def row_bytes(path: str, pages: parquet_pages.Pages) -> float | None:
        if vector is None or not path.startswith(f"{vector}."):
            return None
        return parquet_vectors.row_bytes(pages, rows, vector, max_bytes)

    return row_bytes


def _give_back() -> None:
    """Free the memory of a row group, which pyarrow's pool would keep for the next one."""
    _pyarrow()[0].default_memory_pool().release_unused()
