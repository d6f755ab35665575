"""Creates an empty store; a power cut leaves either a whole store or none.

A new folder is built under a temporary name and renamed. An existing empty folder is filled rather than
replaced, since it may be a mount point or a process's working directory. Its parts are moved in, and
the manifest, which makes it a store, is written last. An interrupted creation is recognised by a folder
``.NAME.XXXXXXXX.new`` that has a manifest, inside a folder that has none; its leftovers are removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from engine.config import MemoryBudget, StructuralSettings
from engine.errors import StoreError
from engine.storage import file_names, lock, manifest, nofollow
from engine.storage.disk import disk
from engine.storage.durable import fsync_dir, make_folders
from engine.storage.lock import WriterLock
from engine.storage.manifest import Manifest
from engine.storage.nofollow import FolderEntry
from engine.storage.rocks import database, opening
from engine.storage.state import State
from engine.storage.temp_folders import Claimed, claimed, sweep
from engine.storage.vector_space import EncoderEntry

_log = logging.getLogger(__name__)
_PARTS = frozenset({database.FOLDER, "encoder", lock.NAME})
# The files of an unfinished store.
_MADE = re.compile(
    rf"{database.FOLDER}/[\w.-]+|encoder/\d+/[\w.-]+|\.?{re.escape(manifest.NAME)}(\.\d+\.new)?"
)


def create(
    path: Path,
    memory: MemoryBudget,
    encoder: Callable[[Path], EncoderEntry] | None,
    wait: float = 0.0,
) -> None:
    """Create an empty store at ``path``, which must not exist or be an empty folder.

    ``encoder`` puts the encoder's files into the folder that it is passed, and returns their entry.
    ``wait``: seconds to wait for another process that creates a store in the same empty folder.
    """
    there = path.exists()
    if there and not (path.is_dir() and _may_be_filled(path)):
        # Unless it is a store already, this raises an error that says what it is.
        manifest.load(path)
        return
    parent = path if there else path.resolve().parent
    made = _new_name(path, parent)
    mine = WriterLock(path)
    claim: Claimed | None = None
    try:
        if there:
            # Without the lock, two processes would take each other's parts for leftovers.
            mine.acquire(wait)
            if _is_made(path):
                # Another process was faster and made the same store.
                return
            _remove_leftovers(path)
        else:
            make_folders(parent)
        if there:
            disk().mkdir(made)
        else:
            # The lock in the temporary folder becomes that of the store.
            sweep(parent, _named_as(path), _MADE)
            claim = claimed(lambda: _make(_new_name(path, parent)))
            made = claim.path
        entry = encoder(made) if encoder else None
        first = Manifest(uuid.uuid4().hex, StructuralSettings.new(), entry)
        with contextlib.closing(opening.create(made, memory)) as table:
            batch = table.batch()
            batch.put("meta", b"settings", json.dumps(first.settings.to_dict()).encode())
            batch.put("meta", b"state", State().pack())
            table.commit(batch)
        first.save(made)
        if there:
            # Make the mark of an unfinished creation durable before any part is moved in.
            fsync_dir(path)
            for part in made.iterdir():
                if part.name != manifest.NAME:
                    disk().rename(part, path / part.name)
            fsync_dir(path)
            first.save(path)
        else:
            disk().rename(made, path.resolve())
            fsync_dir(parent)
        _log.info("made a store at %s", path)
    except OSError as error:
        if _is_made(path):
            # Another process was faster and made the same store.
            return
        raise StoreError(f"{path} cannot be made: {error.strerror or error}") from None
    finally:
        nofollow.discard(parent, made.name, file_names.MADE)
        if claim is not None:
            claim.release()
        mine.release()


def _new_name(path: Path, parent: Path) -> Path:
    return parent / f".{path.resolve().name}.{uuid.uuid4().hex[:8]}.new"


def _named_as(path: Path) -> re.Pattern[str]:
    """Return a pattern of the temporary names of a store's folder."""
    return re.compile(rf"\.{re.escape(path.resolve().name)}\.[0-9a-f]{{8}}\.new", re.DOTALL)


def _make(made: Path) -> Path:
    disk().mkdir(made)
    return made


def _may_be_filled(path: Path) -> bool:
    """Return whether a folder is empty, except for leftovers of an interrupted creation."""
    there = {entry.name: entry for entry in nofollow.entries(path)}
    rest = {name for name, entry in there.items() if not _is_aside(path, entry)}
    if rest <= {lock.NAME}:
        return True
    marked = any(
        nofollow.status(path, f"{name}/{manifest.NAME}") is not None
        for name in there.keys() - rest
        if there[name].is_folder
    )
    return marked and rest <= _PARTS


def _is_made(path: Path) -> bool:
    try:
        return nofollow.status(path, manifest.NAME) is not None
    except OSError:
        return False


def _remove_leftovers(path: Path) -> None:
    there = [entry for entry in nofollow.entries(path) if entry.name != lock.NAME]
    # Remove the mark of an unfinished creation last.
    for entry in sorted(there, key=lambda entry: _is_aside(path, entry)):
        if entry.is_folder:
            called = "" if _is_aside(path, entry) else f"{entry.name}/"
            nofollow.discard(path, entry.name, file_names.MADE, called=called)
        else:
            nofollow.remove(path, entry.name)
    fsync_dir(path)


def _is_aside(path: Path, entry: FolderEntry) -> bool:
    """Return whether an entry is a store's temporary folder, or a manifest's temporary file."""
    name = path.resolve().name
    if entry.is_folder:
        made = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.new", re.DOTALL)
        return made.fullmatch(entry.name) is not None
    return entry.is_file and file_names.NEW_MANIFEST.fullmatch(entry.name) is not None
