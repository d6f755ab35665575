"""Opens a store: first the manifest, then the keys; both must belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.config import Limits, MemoryBudget
from engine.errors import StoreDamagedError
from engine.storage import file_names, manifest, nofollow
from engine.storage.commit_file import Notice, commit_of
from engine.storage.manifest import Manifest
from engine.storage.meta_table import MetaTable
from engine.storage.open_files import OpenFiles
from engine.storage.rocks import open_reader as reader
from engine.storage.rocks.database import Keys
from engine.storage.rocks.open_reader import BusyError
from engine.storage.rocks.pin import TRIES
from engine.storage.snapshot import Snapshot
from engine.storage.state import State, settings_in

# Attempts to open manifest and keys that belong together.
_ROUNDS = 5


def open_reader(
    path: Path,
    memory: MemoryBudget,
    limits: Limits,
    notice: Notice,
    is_behind: Callable[[], bool],
    tries: int = TRIES,
) -> tuple[Snapshot, bytes]:
    """Open the newest commit, even while a writer runs; return it and the notice read before.

    Raises ``StoreDamagedError``, or ``BusyError`` if a writer kept changing the files.
    """
    # Read the notice before the keys, so that any later commit is noticed as new.
    seen = notice.read()
    nofollow.require_kinds(path, file_names.FILES, file_names.FOLDERS)
    for _ in range(_ROUNDS):
        found = manifest.load(path)
        opened = reader.open_reader(path, memory, tries=tries)
        snapshot = open_snapshot(path, memory, limits, found, opened, commit_of(seen), is_behind)
        # A writer may have replaced the encoder between the two.
        if not snapshot.state.is_beyond(found) or manifest.load(path) == found:
            return snapshot, seen
        snapshot.files.close(f"{path} is closed")
    raise BusyError(f"{path}: its encoder is being replaced again and again: try again")


def open_snapshot(
    path: Path,
    memory: MemoryBudget,
    limits: Limits,
    found: Manifest,
    keys: Keys,
    published: int,
    is_behind: Callable[[], bool],
) -> Snapshot:
    """Make a snapshot of opened keys; ``published`` is the commit that the notice named before.

    Closes the keys if they do not belong to the manifest.
    """
    try:
        state = _read_state(path, found, keys, published)
    except BaseException:
        keys.close()
        raise
    files = OpenFiles(path, keys, is_behind)
    return Snapshot(path, memory, limits, state.manifest_of(found), state, files)


def _read_state(path: Path, found: Manifest, keys: Keys, published: int) -> State:
    meta = MetaTable(keys)
    value, settings = meta.state(), meta.settings()
    if value is None or settings is None:
        raise StoreDamagedError(f"{path}: its keys have no state; run 'engine check'")
    if settings_in(settings) != found.settings:
        raise StoreDamagedError(f"{path}: manifest and keys belong to different stores")
    try:
        state = State.unpack(value)
    except StoreDamagedError as error:
        raise StoreDamagedError(f"{path}: {error}") from None
    if state.commit < published:
        raise StoreDamagedError(
            f"{path}: its keys end with commit {state.commit}, but commit {published} was "
            f"made: restore the store from a copy, or go on without it with 'engine check --fix'"
        )
    return state
