"""Finds what a source's name stands for in a store: the source itself, and everything inside it.

A name is a path as results show it, or a relative path. Inside it are the rows of an array, the members
of an archive, or everything below a folder. One row of an array, or one member, is named with its ``#``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from engine.errors import UsageError
from engine.sources import synthetic
from engine.sources.file_presence import QUERIES, without_query
from engine.sources.items import absolute
from engine.storage.runs import Run
from engine.storage.session import Session
from engine.storage.source_rows import ArrayRow, NameRow
from engine.storage.table import Row, Table

# Matches the part after "a.npz#" if it names an array file in a folder called "a.npz#…", rather than
# an array of the archive.
_FILE = re.compile(rb"/.*\.np[yz](\?kind=[^/]*)?(#|$)", re.IGNORECASE | re.DOTALL)


def bases(name: str) -> list[bytes]:
    """Return the names that the store may have for a user's ``name``, likeliest first."""
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
    store: Session, given: Iterable[tuple[str, list[bytes]]]
) -> tuple[list[bytes], list[str]]:
    """Return the stored name of each source, and the given names that the store does not have."""
    wanted: list[bytes] = []
    not_found: list[str] = []
    for name, may_be in given:
        there = next((base for base in may_be if is_there(store, base)), None)
        if there is None:
            not_found.append(name)
        else:
            wanted.append(there)
    return wanted, not_found


def is_there(store: Session, base: bytes) -> bool:
    """Return whether the store has anything named ``base``, or inside it."""
    tables = store.snapshot.tables
    places = (
        (tables.names, b""),
        (tables.arrays, tables.arrays.ARRAY),
        (tables.arrays, tables.arrays.ARCHIVE),
        (tables.rejects, b""),
    )
    rows = (row for table, before in places for row in _inside(store, table, base, before))
    return one_row(store, base) is not None or next(rows, None) is not None


def names_inside(store: Session, base: bytes) -> Iterator[tuple[bytes, NameRow]]:
    """Yield the files that are ``base``, or inside it."""
    for name, value in _inside(store, store.snapshot.tables.names, base):
        yield name, NameRow.unpack(value)


def arrays_inside(store: Session, base: bytes) -> Iterator[tuple[bytes, ArrayRow]]:
    """Yield the arrays that are ``base``, or inside it."""
    arrays = store.snapshot.tables.arrays
    for key, value in _inside(store, arrays, base, arrays.ARRAY):
        yield key[1:], ArrayRow.unpack(value)


def archives_inside(store: Session, base: bytes) -> Iterator[bytes]:
    """Return the names of archives that are ``base``, or inside it."""
    arrays = store.snapshot.tables.arrays
    return (key[1:] for key, _ in _inside(store, arrays, base, arrays.ARCHIVE))


def rejects_inside(store: Session, base: bytes) -> Iterator[bytes]:
    """Return the names of rejected sources that are ``base``, or inside it."""
    return (name for name, _ in _inside(store, store.snapshot.tables.rejects, base))


def _inside(store: Session, table: Table, base: bytes, before: bytes = b"") -> Iterator[Row]:
    """Yield a table's rows whose key is ``before`` plus ``base``, or plus a name inside it."""
    if base:
        value = table.get(before + base)
        if value is not None:
            yield before + base, value
    yield from table.scan(before + base + b"/")
    # Names after "a.tar#" and "a.tar?metadata=…#" are inside "a.tar". But a folder "C#" is not inside
    # a folder "C", nor is a file whose name continues with "#" inside a file.
    for container in containers(store, base):
        if container != base and table is not store.snapshot.tables.names:
            value = table.get(before + container)
            if value is not None:
                yield before + container, value
        yield from table.scan(before + container + b"#")


def containers(store: Session, base: bytes) -> list[bytes]:
    """Return the arrays, archives and tables that the file ``base`` was read as."""
    arrays = store.snapshot.tables.arrays
    found: dict[bytes, None] = {}
    # An .npz archive holds arrays, whose names may have "/" in them.
    archive = without_query(base).lower().endswith(b".npz")
    for kind in (arrays.ARRAY, arrays.ARCHIVE) if base else ():
        if arrays.get(kind + base) is not None:
            found[base] = None
        for mark in (*QUERIES, b"#") if archive else QUERIES:
            for key, _ in arrays.scan(kind + base + mark):
                rest = key[1 + len(base) :]
                if b"/" not in rest or (archive and b"#" in rest and not _FILE.search(rest)):
                    found[key[1:]] = None
    return list(found)


def one_row(store: Session, name: bytes) -> tuple[Run, Run] | None:
    """Return the run and its part for the array row that ``name`` stands for; None without one."""
    if store.snapshot.tables.names.get(name) is not None:
        # A file has that name: a path wins over "#".
        return None
    base, mark, digits = name.rpartition(b"#")
    if not mark or not digits.isdigit() or len(digits) > 18:
        return None
    array, row = store.snapshot.array(base), int(digits)
    if array is None:
        return None
    run = store.snapshot.tables.runs.over_row(array.number, row)
    if run is None:
        return None
    part = run.part(row, 1)
    there = row < run.row + run.count and store.snapshot.record(part.id) is not None
    return (run, part) if there else None
