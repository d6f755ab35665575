"""Says what a SOURCE or an IMAGE is; a path that exists wins over ``#`` and ``?`` in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from engine.errors import EngineError, ImageError, SourceError, UsageError
from engine.pixels import decode, from_canonical
from engine.records import Decoded
from engine.sources import arrays, files
from engine.sources.arrays import KIND_OVERRIDES, NpyArray
from engine.sources.base import FileItem, Item, Problem, absolute
from engine.sources.synthetic import PREFIX, SyntheticBits

_ARRAY_SUFFIXES = (".npy", ".npz")
_MOST_LINE = 1 << 16
_READ_BYTES = 1 << 20


class Sources:
    """Several SOURCEs as one stream of items."""

    def __init__(
        self,
        specs: Sequence[str],
        *,
        files_from: str | os.PathLike[str] | None = None,
        recursive: bool = True,
    ) -> None:
        """``files_from`` is a file with one more source a line.

        ``UsageError`` for a source that is not there, before anything is read.
        """
        if not specs and files_from is None:
            raise UsageError("name at least one source: a folder, an image, an array, or -")
        if files_from is not None and files_from != "-":
            next(listed(files_from), None)
        self._specs = list(specs)
        self._files_from = files_from
        self._recursive = recursive
        for spec in specs:
            if spec == "-":
                continue
            if _is_synthetic(spec):
                SyntheticBits(spec)
            elif not _exists(spec):
                array = _array_spec(spec)
                if array is None or not _exists(array[0]):
                    raise UsageError(f"{spec}: no such file or folder")

    def count(self) -> int | None:
        """How many items there are, rows of arrays included; None if only reading all would tell."""
        total = 0
        if self._files_from is not None or "-" in self._specs:
            return None
        for spec in self._specs:
            path = Path(spec)
            if _is_synthetic(spec):
                total += SyntheticBits(spec).count
            elif path.is_dir():
                total += files.count(path, recursive=self._recursive)
            else:
                try:
                    total += sum(array.count for array in _arrays(spec) or [])
                except EngineError:
                    total += 1
                total += path.is_file() and not _is_array(path)
        return total

    def __iter__(self) -> Iterator[Item]:
        for spec in self._specs:
            if spec == "-":
                yield from self._listed(listed("/dev/stdin"))
            else:
                yield from self._items(spec)
        if self._files_from is not None:
            yield from self._listed(listed(self._files_from))

    def _listed(self, lines: Iterable[str]) -> Iterator[Item]:
        for spec in lines:
            if len(spec) > _MOST_LINE or "\0" in spec:
                yield Problem(os.fsencode(spec[:200]), "not a path")
            elif spec == "-":
                yield Problem(b"-", "standard input cannot list itself")
            else:
                try:
                    yield from self._items(spec)
                except UsageError as error:
                    yield Problem(os.fsencode(spec), str(error))

    def _items(self, spec: str) -> Iterator[Item]:
        if _is_synthetic(spec):
            yield SyntheticBits(spec)
            return
        path = Path(spec)
        if path.is_dir():
            yield from files.walk(path, recursive=self._recursive)
            return
        try:
            found = _arrays(spec)
        except SourceError as error:
            yield Problem(absolute(spec), str(error))
            return
        except OSError as error:
            yield Problem(absolute(spec), f"cannot be read: {error.strerror}")
            return
        if found is not None:
            yield from found
        else:
            yield files.one(path)


def listed(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a file of paths, one by one; ``UsageError`` if it cannot be read."""
    try:
        with Path("/dev/stdin" if path == "-" else path).open("rb") as file:
            for line in file:
                if line.strip():
                    yield os.fsdecode(line.rstrip(b"\r\n"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


class Query:
    """One image to look up: its name, and its bytes or its canonical row."""

    def __init__(self, name: str, data: bytes | None, decoded: Decoded | None) -> None:
        self.name = name
        self.data = data  # the file's bytes, for an image file
        self._decoded = decoded

    def decode(self, max_bytes: int) -> Decoded:
        """Its pixels; ``ImageError`` if it is not a whole image."""
        if self._decoded is None:
            self._decoded = decode(self.data or b"", max_bytes=max_bytes)
        return self._decoded


def open_images(spec: str, most: int) -> Iterator[Query | Problem]:
    """The images that an IMAGE argument names: one, or every row of an array.

    ``spec`` is a file, ``-`` (bytes on standard input), ``FILE.npy``, ``FILE.npy#ROW`` or
    ``synthetic:bits?seed=S#ROW``; ``most`` is the largest file read, in bytes.
    """
    try:
        if spec == "-":
            yield _from_stdin(most)
        elif _exists(spec) and not _is_array(Path(spec)):
            item = files.one(Path(spec))
            if isinstance(item, FileItem):
                yield Query(spec, item.read(most), None)
            else:
                yield Problem(os.fsencode(spec), item.reason)
        else:
            yield from _rows(spec, most)
    except (ImageError, SourceError, UsageError) as error:
        yield Problem(os.fsencode(spec), str(error))
    except OSError as error:
        yield Problem(os.fsencode(spec), f"cannot be read: {error.strerror or error}")


def _rows(spec: str, most: int) -> Iterator[Query]:
    base, _, row = spec.rpartition("#")
    if spec.startswith(PREFIX):
        if not _is_row(row):
            raise UsageError("name a row: 'synthetic:bits?seed=0#17'")
        yield _from_row(spec, SyntheticBits(base).row(int(row)))
        return
    found = _arrays(spec)
    if found is not None:  # the whole array
        for array in found:
            if array.row_bytes > most:
                raise SourceError(f"has rows of {array.row_bytes:,} bytes: raise --memory")
            for block in array.blocks(0, 256, 8 << 20):
                for number, canonical in enumerate(block.rows, block.first):
                    yield _from_row(f"{os.fsdecode(array.name)}#{number}", canonical)
        return
    if not _is_row(row) or not base:
        raise SourceError("no such file")
    found = _arrays(base)
    if found is None:
        found = [_member(base)]
    if len(found) != 1:
        inside = ", ".join(os.fsdecode(array.name).rpartition("#")[2] for array in found)
        raise SourceError(f"holds several arrays: name one of {inside}, as FILE.npz#NAME#ROW")
    if found[0].row_bytes > most:
        raise SourceError(f"has rows of {found[0].row_bytes:,} bytes: raise --memory")
    yield _from_row(spec, found[0].row(int(row)))


def _member(spec: str) -> NpyArray:
    """The array of ``FILE.npz#NAME``, where either may hold a ``#`` itself."""
    at = spec.find("#")
    while at != -1:
        named = _array_spec(spec[:at])
        if named is not None and Path(named[0]).is_file():
            return NpyArray(Path(named[0]), spec[at + 1 :] + ".npy", named[1])
        at = spec.find("#", at + 1)
    raise SourceError("no such file")


def _from_row(name: str, canonical: object) -> Query:
    pixels = from_canonical(memoryview(canonical))  # type: ignore[arg-type]
    return Query(name, None, Decoded(pixels, "array"))


def _from_stdin(most: int) -> Query:
    data = bytearray()
    while part := sys.stdin.buffer.read(_READ_BYTES):
        data += part
        if len(data) > most:
            raise ImageError(f"more than the limit of {most:,} bytes for this --memory")
    return Query("-", bytes(data), None)


def _exists(spec: str) -> bool:
    try:
        return os.path.lexists(spec)
    except ValueError:  # a null byte
        return False


def _is_synthetic(spec: str) -> bool:
    return spec.startswith(PREFIX) and not _exists(spec)


def _is_row(text: str) -> bool:
    return text.isdecimal() and len(text) <= 18  # int() refuses thousands of digits


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in _ARRAY_SUFFIXES


def _array_spec(spec: str) -> tuple[str, str | None] | None:
    """Path and kind of ``FILE.npy?kind=8bit``; None if it is nothing of that form."""
    if _exists(spec):
        return (spec, None) if _is_array(Path(spec)) else None
    path, mark, query = spec.rpartition("?")
    if not mark or "#" in query or not _is_array(Path(path)):
        return None
    values = dict(parse_qsl(query, keep_blank_values=True))
    if set(values) != {"kind"} or values["kind"] not in KIND_OVERRIDES:
        known = " or ".join(f"?kind={name}" for name in KIND_OVERRIDES)
        raise UsageError(f"{spec}: {query!r} is not known: write {known}")
    return path, values["kind"]


def _arrays(spec: str) -> list[NpyArray] | None:
    """The arrays that ``spec`` names, or None if it names something else."""
    named = _array_spec(spec)
    if named is None or not Path(named[0]).is_file():
        return None
    return arrays.open_arrays(Path(named[0]), named[1])
