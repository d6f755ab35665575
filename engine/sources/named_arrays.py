"""Finds the arrays that ``FILE.npy``, ``FILE.npz#NAME`` and IDX files name, also with ``?kind=``."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl

from engine.errors import SourceError, UsageError
from engine.sources import npy
from engine.sources.arrays import KIND_OVERRIDES, Array, open_array, open_arrays
from engine.sources.idx import is_idx

ARRAY_SUFFIXES = (".npy", ".npz")


def is_array(path: Path) -> bool:
    """Whether a file has the name of a file of arrays."""
    return path.suffix.lower() in ARRAY_SUFFIXES or is_idx(path.name)


def array_file(spec: str) -> tuple[str, str | None] | None:
    """Path and kind of ``FILE.npy?kind=8bit``; None for any other form."""
    if exists(spec):
        return (spec, None) if is_array(Path(spec)) else None
    path, mark, query = spec.rpartition("?")
    if not mark or "#" in query or not is_array(Path(path)):
        return None
    values = dict(parse_qsl(query, keep_blank_values=True))
    if set(values) != {"kind"} or values["kind"] not in KIND_OVERRIDES:
        known = " or ".join(f"?kind={name}" for name in KIND_OVERRIDES)
        raise UsageError(f"{spec}: {query!r} is not known: write {known}")
    return path, values["kind"]


def arrays_of(spec: str) -> list[Array] | None:
    """The arrays that ``spec`` names, all of a file or one; None if it names something else.

    ``SourceError`` if the file holds no arrays, or if ``spec`` is ambiguous.
    """
    named = array_file(spec)
    if named is not None and Path(named[0]).is_file():
        return open_arrays(Path(named[0]), named[1])
    for path, name, kind in _inside(spec):
        if f"{name}.npy" in _members(path):
            return [open_array(path, f"{name}.npy", kind)]
    return None


def array_named(name: bytes) -> Array:
    """The array with this name in results; ``SourceError`` or ``UsageError`` if there is none."""
    spec = os.fsdecode(name)
    found = arrays_of(spec)
    if found is None:
        raise SourceError(missing_array(spec) or "no such file")
    return found[0]


def missing_array(spec: str) -> str:
    """The message for a ``spec`` that names a missing array of an ``.npz`` file; empty otherwise."""
    for path, name, _ in _inside(spec):
        return f"has no array {name[:200]!r}: it holds {npy.listed(_members(path))}"
    return ""


def _members(path: Path) -> list[str]:
    with npy.open_npz(path) as archive:
        return npy.members(archive)


def _inside(spec: str) -> list[tuple[Path, str, str | None]]:
    """Each way to read ``spec`` as ``FILE.npz#NAME``, as either part may hold a ``#`` itself."""
    found = []
    at = spec.find("#")
    while at != -1:
        named = array_file(spec[:at])
        if named is not None and named[0].lower().endswith(".npz") and Path(named[0]).is_file():
            found.append((Path(named[0]), spec[at + 1 :], named[1]))
        at = spec.find("#", at + 1)
    return found


def exists(spec: str) -> bool:
    """Whether a file or folder of this name exists, even as a dangling link."""
    try:
        return os.path.lexists(spec)
    # The name holds a null byte.
    except ValueError:
        return False
