"""What a source's name stands for in a store: itself, and what is inside of it.

A name is a path as results show it, or a relative one. Inside of it are the rows of an array, the
members of an archive, everything below a folder. One row of an array, or one member, is named with its
``#``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from engine.errors import UsageError
from engine.sources import synthetic
from engine.sources.file_presence import QUERIES, without_query
from engine.sources.items import absolute
from engine.storage.rows import ArrayRow, NameRow, Run
from engine.storage.table import Row, Table
from engine.storage.writer import StoreFiles

# In what is behind "a.npz#": an array file of a folder that is called so, and no array of the archive.
_FILE = re.compile(rb"/.*\.np[yz](\?kind=[^/]*)?(#|$)", re.IGNORECASE | re.DOTALL)


def bases(name: str) -> list[bytes]:
    """What a source may be called in the store that a user calls ``name``, likeliest first."""
    if not name:
        raise UsageError("a source has a name: a path, as results show it")
    head, mark, inside = name.partition("#")
    if name.startswith(synthetic.PREFIX):
        try:
            found = synthetic.SyntheticBits(head).name
        except UsageError:
            return [os.fsencode(name)]
        return [os.fsencode(name), found + os.fsencode(mark + inside)]
    whole, apart = absolute(name), absolute(head) + os.fsencode(mark + inside)
    names = [os.fsencode(name), whole.rstrip(b"/"), apart.rstrip(b"/")]
    return list(dict.fromkeys(names))


def those_named(
    store: StoreFiles, given: Iterable[tuple[str, list[bytes]]]
) -> tuple[list[bytes], list[str]]:
    """What is there of names and their ``bases``, and the names of which nothing is."""
    wanted: list[bytes] = []
    not_found: list[str] = []
    for name, may_be in given:
        there = next((base for base in may_be if is_there(store, base)), None)
        if there is None:
            not_found.append(name)
        else:
            wanted.append(there)
    return wanted, not_found


def is_there(store: StoreFiles, base: bytes) -> bool:
    """Whether there is anything that is named ``base`` or inside of it."""
    tables = store.tables
    places = (
        (tables.names, b""),
        (tables.arrays, tables.arrays.ARRAY),
        (tables.arrays, tables.arrays.ARCHIVE),
        (tables.rejects, b""),
    )
    rows = (row for table, before in places for row in _inside(store, table, base, before))
    return one_row(store, base) is not None or next(rows, None) is not None


def names_inside(store: StoreFiles, base: bytes) -> Iterator[tuple[bytes, NameRow]]:
    """The files that are ``base``, or inside of it."""
    for name, value in _inside(store, store.tables.names, base):
        yield name, NameRow.unpack(value)


def arrays_inside(store: StoreFiles, base: bytes) -> Iterator[tuple[bytes, ArrayRow]]:
    """The arrays that are ``base``, or inside of it."""
    arrays = store.tables.arrays
    for key, value in _inside(store, arrays, base, arrays.ARRAY):
        yield key[1:], ArrayRow.unpack(value)


def archives_inside(store: StoreFiles, base: bytes) -> Iterator[bytes]:
    """The names of the archives that are ``base``, or inside of it."""
    arrays = store.tables.arrays
    return (key[1:] for key, _ in _inside(store, arrays, base, arrays.ARCHIVE))


def rejects_inside(store: StoreFiles, base: bytes) -> Iterator[bytes]:
    """The names of the rejected sources that are ``base``, or inside of it."""
    return (name for name, _ in _inside(store, store.tables.rejects, base))


def _inside(store: StoreFiles, table: Table, base: bytes, before: bytes = b"") -> Iterator[Row]:
    """The rows of a table whose key is ``before`` and a name: ``base``, or one inside of it."""
    if base:
        value = table.get(before + base)
        if value is not None:
            yield before + base, value
    yield from table.scan(before + base + b"/")
    # Of "a.tar" and "a.tar?metadata=" what is behind "#" is inside; of a folder "C" a folder "C#" is
    # not, nor of a file one whose name goes on like that.
    for container in containers(store, base):
        if container != base and table is not store.tables.names:
            value = table.get(before + container)
            if value is not None:
                yield before + container, value
        yield from table.scan(before + container + b"#")


def containers(store: StoreFiles, base: bytes) -> list[bytes]:
    """The arrays, archives and tables that are the file ``base``, in whatever way it was read."""
    arrays = store.tables.arrays
    found: dict[bytes, None] = {}
    archive = without_query(base).lower().endswith(b".npz")  # of arrays, which may have "/" in them
    for kind in (arrays.ARRAY, arrays.ARCHIVE) if base else ():
        if arrays.get(kind + base) is not None:
            found[base] = None
        for mark in (*QUERIES, b"#") if archive else QUERIES:
            for key, _ in arrays.scan(kind + base + mark):
                rest = key[1 + len(base) :]
                if b"/" not in rest or (archive and b"#" in rest and not _FILE.search(rest)):
                    found[key[1:]] = None
    return list(found)


def one_row(store: StoreFiles, name: bytes) -> tuple[Run, Run] | None:
    """The run and the part of it that are the row of an array which ``name`` is, if it is there."""
    if store.tables.names.get(name) is not None:
        return None  # a file of that name: a path wins over "#"
    base, mark, digits = name.rpartition(b"#")
    if not mark or not digits.isdigit() or len(digits) > 18:
        return None
    array, row = store.array(base), int(digits)
    if array is None:
        return None
    run = store.tables.runs.over_row(array.number, row)
    if run is None:
        return None
    part = run.part(row, 1)
    there = row < run.row + run.count and store.record(part.id) is not None
    return (run, part) if there else None
