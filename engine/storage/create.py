"""Makes an empty store, so that a power cut leaves a whole one or none.

A new folder is made aside and renamed. An empty folder that is there is filled and not replaced, since
it may be a mount, or where somebody stands: the parts are moved in, and the manifest, with which it
is a store, is written last. What an interrupted making left in it is recognised, and removed, by the
folder ``.NAME.XXXXXXXX.new`` with a manifest in it, in a folder that has none.
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
# What is in a store that was never finished.
_MADE = re.compile(
    rf"{database.FOLDER}/[\w.-]+|encoder/\d+/[\w.-]+|\.?{re.escape(manifest.NAME)}(\.\d+\.new)?"
)


def create(
    path: Path,
    memory: MemoryBudget,
    encoder: Callable[[Path], EncoderEntry] | None,
    wait: float = 0.0,
) -> None:
    """Make an empty store at ``path``, which must not exist or be an empty folder.

    ``encoder`` puts the encoder's files into the folder it is given and says what they are.
    ``wait``: seconds to wait for another process that makes one in the same empty folder.
    """
    there = path.exists()
    if there and not (path.is_dir() and _may_be_filled(path)):
        manifest.load(path)  # says what it is instead
        return
    parent = path if there else path.resolve().parent
    made = _new_name(path, parent)
    mine = WriterLock(path)
    claim: Claimed | None = None
    try:
        if there:
            mine.acquire(wait)  # or two processes would each take the other's parts for leftovers
            if _is_made(path):
                return  # another process was faster, and made the same
            _remove_leftovers(path)
        else:
            make_folders(parent)
        if there:
            disk().mkdir(made)
        else:  # the lock in it becomes that of the store
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
            fsync_dir(path)  # the mark of an unfinished making, before there are parts to be marked
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
            return  # another process was faster, and made the same
        raise StoreError(f"{path} cannot be made: {error.strerror or error}") from None
    finally:
        nofollow.discard(parent, made.name, file_names.MADE)
        if claim is not None:
            claim.release()
        mine.release()


def _new_name(path: Path, parent: Path) -> Path:
    return parent / f".{path.resolve().name}.{uuid.uuid4().hex[:8]}.new"


def _named_as(path: Path) -> re.Pattern[str]:
    """The names of folders that a store is made in."""
    return re.compile(rf"\.{re.escape(path.resolve().name)}\.[0-9a-f]{{8}}\.new", re.DOTALL)


def _make(made: Path) -> Path:
    disk().mkdir(made)
    return made


def _may_be_filled(path: Path) -> bool:
    """Whether a folder is empty, but for what an interrupted making may have left."""
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
    for entry in sorted(there, key=lambda entry: _is_aside(path, entry)):  # the mark last
        if entry.is_folder:
            called = "" if _is_aside(path, entry) else f"{entry.name}/"
            nofollow.discard(path, entry.name, file_names.MADE, called=called)
        else:
            nofollow.remove(path, entry.name)
    fsync_dir(path)


def _is_aside(path: Path, entry: FolderEntry) -> bool:
    """The folder that a store was made in, or the manifest's new file."""
    name = path.resolve().name
    if entry.is_folder:
        made = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.new", re.DOTALL)
        return made.fullmatch(entry.name) is not None
    return entry.is_file and file_names.NEW_MANIFEST.fullmatch(entry.name) is not None
