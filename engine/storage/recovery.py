"""Recovery: the next holder of the writer's lock cleans up after an interrupted writer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from engine.errors import StoreDamagedError
from engine.storage import extents, file_names, manifest, nofollow, staged_space
from engine.storage.durable import fsync_dir, inside
from engine.storage.families import families, family, unnamed_files
from engine.storage.lock import WriterLock
from engine.storage.manifest import Manifest
from engine.storage.state import State

_log = logging.getLogger("engine.storage")


def recover(
    store: Path, saved: Manifest, named: Manifest, state: State, *, salvage: bool
) -> Manifest:
    """Cut extents to their committed lengths and delete files that the manifest does not name.

    ``saved`` is the manifest on disk, ``named`` the same as of the committed ``state``. Returns the
    manifest afterwards. ``salvage``: see ``committed_extents``.
    """
    # This may raise, so it comes before anything is cut or deleted.
    committed, named = committed_extents(store, named, state, salvage=salvage)
    if named.encoder != saved.encoder or saved.incoming is not None:
        # The encoder was being replaced. The commit decides which of the two it is.
        named.save(store)
    indexed = tuple(state.live_segments(named))
    if indexed != named.segments:
        # These segments cover vectors that the keys have lost, or a reordering that was not committed.
        named = named.with_index(indexed)
        named.save(store)
    only = named.only(committed)
    if only != named:
        # These extents were begun and not used, or were rewritten and not dropped yet.
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
    """Return the committed data bytes of each extent, and the manifest. All are named and on disk.

    The keys decide. If the manifest or a file has less, the store was damaged, or put together from
    copies of different age; writing on would lose the rest. That raises ``StoreDamagedError``. With
    ``salvage``, those extents are named again, and get back their header and their length, in zeros.
    """
    committed = {}
    for name, pairs in state.extents.items():
        for number, size in pairs:
            if not size and number not in named.extents.get(name, []):
                # An encoder's extent whose vectors are all gone.
                continue
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
    """Cut extents to their committed lengths."""
    for one in families(store, named):
        for number in named.extents[one.name]:
            extents.cut(store, one, number, committed.get((one.name, number), 0))


def _own_last(store: Path, named: Manifest, state: State) -> None:
    """Copy each extent that is appended to and has a second name, before it is read."""
    for one in families(store, named):
        number, _ = state.last_extent(one)
        if number:
            nofollow.own(store, one.inside(number))


def _remove_leftovers(store: Path, named: Manifest) -> None:
    """Delete data files that the manifest does not name, and temporary files and folders."""
    for name in unnamed_files(store, named):
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
            # A locked folder is still being filled.
            and not WriterLock(store / entry.name).busy()
        ):
            nofollow.discard(store, entry.name, file_names.MADE)
    staged_space.remove_leftovers(store, named)
    # The folder of a repair that was killed.
    nofollow.discard(store, file_names.MENDED, file_names.ROCKSDB)


def _sync_folders(store: Path) -> None:
    """Make names durable that a killed writer had not synced, since later steps may rely on them."""
    fsync_dir(store)
    for top in (*file_names.OF_FOLDER, file_names.ENCODER):
        if nofollow.is_folder(store, top):
            fsync_dir(store / top)
            for entry in nofollow.entries(store, top):
                if entry.is_folder:
                    fsync_dir(store / top / entry.name)
    # This process may not be allowed to open the folder above; then somebody else made it.
    with contextlib.suppress(OSError):
        fsync_dir(store.resolve().parent)
