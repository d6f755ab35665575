"""Recovery: what the holder of the writer's lock does to what an interrupted writer left behind."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from engine.errors import StoreDamagedError
from engine.storage import extents, file_names, manifest, nofollow
from engine.storage.durable import fsync_dir, inside
from engine.storage.families import data_files, families, family, named_files
from engine.storage.lock import WriterLock
from engine.storage.manifest import Manifest
from engine.storage.state import State

_log = logging.getLogger("engine.storage")


def recover(store: Path, named: Manifest, state: State, *, salvage: bool) -> Manifest:
    """Cut rows past the committed lengths; forget files that the manifest does not name.

    Returns the manifest as it is then. ``salvage``: see ``committed_extents``.
    """
    # Before anything is cut or deleted.
    committed, named = committed_extents(store, named, state, salvage=salvage)
    indexed = tuple(state.live_segments(named))
    if indexed != named.segments:
        # Over vectors that the keys have lost, or that were laid out anew, or not in the end.
        named = named.with_index(indexed)
        named.save(store)
    only = named.only(committed)
    if only != named:
        # Extents that were begun and not used, or rewritten, and not forgotten yet.
        named = only
        named.save(store)
    cut(store, named, committed)
    _own_last(store, named, state)
    _remove_leftovers(store, named)
    _sync_folders(store)
    return named


def committed_extents(
    store: Path, named: Manifest, state: State, *, salvage: bool
) -> tuple[dict[tuple[str, int], int], Manifest]:
    """The committed data bytes of each extent, all of which are named and there; and the manifest.

    The keys are what counts. Where the manifest or a file has less, the store was damaged or put
    together from copies of different age, and writing on would lose what is left: that is a
    ``StoreDamagedError``. ``salvage``: such extents get their name, their header and their length
    back, these as zeros.
    """
    committed = {}
    for name, pairs in state.extents.items():
        for number, size in pairs:
            if not size and number not in named.extents.get(name, []):
                continue  # of an encoder whose vectors are all gone
            committed[name, number] = size
            path = family(store, named, name).path(store, number)
            there = nofollow.size(store, inside(path, store)) or 0
            if number not in named.extents.get(name, []):
                what = f"{manifest.NAME} does not name {path.name}, which holds committed data"
            elif there < extents.HEADER_BYTES + size:
                what = f"{path} is gone or cut short"
            else:
                continue
            if not salvage:
                raise StoreDamagedError(
                    f"{store} cannot be written: {what}; 'engine check' says what is lost, "
                    f"'engine check --fix' mends what can be"
                )
            if number not in named.extents.get(name, []):
                named = named.with_extent(name, number)
                named.save(store)
    if salvage:
        uuid_ = bytes.fromhex(named.uuid)
        for one in families(store, named):
            for number in named.extents[one.name]:
                size = committed.get((one.name, number), 0)
                extents.restore(store, one, number, uuid_, size)
    return committed, named


def cut(store: Path, named: Manifest, committed: Mapping[tuple[str, int], int]) -> None:
    """Cut what extents have past their committed lengths."""
    for one in families(store, named):
        for number in named.extents[one.name]:
            extents.cut(store, one, number, committed.get((one.name, number), 0))


def _own_last(store: Path, named: Manifest, state: State) -> None:
    """Copy those extents that are appended to and have a second name, before they are read."""
    for one in families(store, named):
        number, _ = state.last_extent(one)
        if number:
            nofollow.own(store, one.inside(number))


def _remove_leftovers(store: Path, named: Manifest) -> None:
    """Delete files of ours that the manifest does not name, and what was made for a while."""
    for name in data_files(store) - named_files(store, named):
        _log.info("%s: deleting %s, which an interrupted writer left", store, name)
        nofollow.remove(store, name)
    for entry in nofollow.entries(store, file_names.KEYS):
        if entry.is_file and file_names.NEW_KEYS_FILE.fullmatch(entry.name):
            nofollow.remove(store, f"{file_names.KEYS}/{entry.name}")
    for entry in nofollow.entries(store):
        if entry.is_file and file_names.NEW_FILE.fullmatch(entry.name):
            nofollow.remove(store, entry.name)
        if (
            entry.is_folder
            and file_names.MADE_FOLDER.fullmatch(entry.name)
            and not WriterLock(store / entry.name).busy()  # else it is being filled
        ):
            nofollow.discard(store, entry.name, file_names.MADE)
    # The folder of a repair that was killed.
    nofollow.discard(store, file_names.MENDED, file_names.ROCKSDB)


def _sync_folders(store: Path) -> None:
    """Make names durable that a killed writer had not synced: what comes next may rely on them."""
    fsync_dir(store)
    for top in (*file_names.OF_FOLDER, file_names.ENCODER):
        if nofollow.is_folder(store, top):
            fsync_dir(store / top)
            for entry in nofollow.entries(store, top):
                if entry.is_folder:
                    fsync_dir(store / top / entry.name)
    with contextlib.suppress(OSError):  # not ours to open, perhaps; then others made it, too
        fsync_dir(store.resolve().parent)
