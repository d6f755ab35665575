"""The families of extents that a manifest names, and the files in their folders."""

from __future__ import annotations

from pathlib import Path

from engine.errors import StoreDamagedError
from engine.storage import extents, file_names, manifest, nofollow
from engine.storage.extents import Family
from engine.storage.manifest import Manifest
from engine.storage.staged_space import staged_in
from engine.storage.state import State


def family(store: Path, named: Manifest, name: str) -> Family:
    """Return the family that the manifest calls ``name``; ``StoreDamagedError`` if there is none."""
    of_vectors = [one for space in named.spaces for one in space.families]
    for one in (extents.PIXELS, extents.FINGERPRINTS, *of_vectors):
        if one.name == name:
            return one
    raise StoreDamagedError(f"{store / manifest.NAME} names unknown extents {name!r}")


def families(store: Path, named: Manifest) -> list[Family]:
    """Return all families that the manifest names."""
    return [family(store, named, name) for name in named.extents]


def data_files(store: Path) -> set[str]:
    """Return the data files of a store, as paths relative to it.

    Files with other kinds of names are ignored. Raises ``ForeignError`` for a data file's name on
    something that is not a regular file.
    """
    found = set()
    for top, ours in file_names.OF_FOLDER.items():
        for folder in _folders(store, top):
            found |= {f"{folder}/{name}" for name in nofollow.files(store, folder, ours)}
    return found


def named_files(store: Path, named: Manifest) -> set[str]:
    """Return the extents and index files that the manifest names, as paths relative to the store."""
    found = {str(path) for path in named.index_files(Path())}
    for one in families(store, named):
        found |= {one.inside(number) for number in named.extents[one.name]}
    return found


def unnamed_files(store: Path, named: Manifest) -> set[str]:
    """Return the data files that belong to nothing: neither named, nor of an unfinished reembed."""
    # Listed first: a reembed that begins now writes its record before any other file.
    unnamed = data_files(store) - named_files(store, named)
    staged = staged_in(store, named)
    kept = f"{staged.space.vector_family.folder}/" if staged is not None else None
    return {name for name in unnamed if kept is None or not name.startswith(kept)}


def leftover_bytes(store: Path, named: Manifest, state: State) -> int:
    """Return the bytes that an interrupted writer left, in extents or as files of their own."""
    left = 0
    committed = {
        (name, number): size for name, pairs in state.extents.items() for number, size in pairs
    }
    for one in families(store, named):
        for number in named.extents[one.name]:
            end = extents.HEADER_BYTES + committed.get((one.name, number), 0)
            left += max((nofollow.size(store, one.inside(number)) or 0) - end, 0)
    # A writer may be deleting leftovers at the same time.
    unnamed = unnamed_files(store, named)
    return left + sum(nofollow.size(store, name) or 0 for name in unnamed)


def _folders(store: Path, top: str) -> list[str]:
    if top != file_names.VECTORS:
        return [top]
    there = nofollow.entries(store, top)
    ours = [one for one in there if file_names.GENERATION.fullmatch(one.name)]
    for one in ours:
        # Raises an error if it is not a folder.
        nofollow.is_folder(store, f"{top}/{one.name}")
    return [f"{top}/{one.name}" for one in ours]
