"""A staged space: vectors of another encoder, kept beside the live ones until a commit switches over.

    reembed/staged.json   the entry of the encoder, and the generation that it is to replace
    reembed/chunks        an entry for each chunk of vectors, written once the chunk is durable
    reembed/LOCK          the flock of the process that adds vectors; it stays, as that of a store does
    vectors/GEN/          the vectors and their ids, in extents like those of a store
    encoder/GEN/          the files of the encoder

Neither a manifest nor a commit names these files, so no reader looks at them. A recovery keeps them
while ``staged.json`` is valid and the generation that it names is still the live one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import StoreError, StoreLockedError
from engine.images import hashing
from engine.storage import file_names, nofollow
from engine.storage.durable import fsync_dir, replace_file
from engine.storage.json_values import loads, members, number, truth
from engine.storage.lock import WriterLock
from engine.storage.manifest import Manifest, parse_encoder
from engine.storage.vector_space import EncoderEntry, VectorSpace

FOLDER = file_names.REEMBED
RECORD = f"{FOLDER}/{file_names.STAGED}"
CHUNKS = f"{FOLDER}/{file_names.CHUNKS}"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StagedSpace:
    """What ``staged.json`` says. Its fields are part of the format."""

    entry: EncoderEntry
    # What the encoder is besides its model: how pictures become its input, and its text tower.
    described: dict[str, Any]
    replaces: int  # the generation that was live at the beginning, 0 for none
    installed: bool = False  # whether the files of the encoder are all there

    @property
    def space(self) -> VectorSpace:
        """Return the vector space of the staged vectors."""
        return VectorSpace.of(self.entry)

    @property
    def salt(self) -> bytes:
        """Return what tells the chunks of this encoder from those of others."""
        entry = self.entry
        named = [entry.generation, entry.dim, entry.fingerprint, self.described]
        return json.dumps(named, sort_keys=True).encode()

    def save(self, store: Path) -> None:
        """Write it durably."""
        body = asdict(self)
        body["xxh64"] = _checksum(body)
        replace_file(store / RECORD, json.dumps(body, indent=1).encode(), store)


def staged_in(store: Path, named: Manifest) -> StagedSpace | None:
    """Return the staged space of an unfinished reembed; None if there is none, or it is outdated."""
    try:
        found = _parse(members(loads(nofollow.read_file(store, RECORD, _MAX_BYTES))))
    except (OSError, StoreError, ValueError, KeyError, RecursionError):
        return None
    live = named.space.generation
    return found if found.replaces == live and found.entry.generation != live else None


def _parse(body: dict[str, Any]) -> StagedSpace:
    xxh64 = body.pop("xxh64")
    if xxh64 != _checksum(body):
        raise ValueError("its checksum is wrong")
    found = StagedSpace(
        entry=parse_encoder(members(body["entry"])),
        described=members(body["described"]),
        replaces=number(body["replaces"], 0, file_names.MAX_GENERATION),
        installed=truth(body["installed"]),
    )
    if found.entry.is_imported or found.entry.generation % 2:
        raise ValueError("it has no encoder, or the generation of a live one")
    return found


def _checksum(body: dict[str, Any]) -> int:
    return hashing.checksum(json.dumps(body, sort_keys=True).encode())


def next_generation(store: Path, named: Manifest, *, staged: bool) -> int:
    """Return a generation for new vectors, ``staged`` ones or not: neither live nor staged.

    Staged ones have even generations and others odd ones. So a reembed that begins and a writer that
    adopts an encoder at the same moment, each with a lock of its own, never choose the same one.
    """
    there = staged_in(store, named)
    used = [named.space.generation, *([there.entry.generation] if there else [])]
    found = file_names.next_number(used, file_names.MAX_GENERATION - 1)
    return found if (found % 2 == 0) == staged else found + 1


@contextlib.contextmanager
def locked(store: Path) -> Iterator[WriterLock]:
    """Hold the lock of a store's staged space; make its folder if it is missing.

    Raises ``StoreLockedError`` while another process holds it.
    """
    if nofollow.make_folder(store, FOLDER):
        fsync_dir(store)
    mine = WriterLock(store / FOLDER)
    try:
        mine.acquire()
    except StoreLockedError as error:
        raise StoreLockedError(f"another reembed is running: {error}") from None
    try:
        yield mine
    finally:
        if not mine.abandoned:
            mine.release()


def discard(store: Path, generation: int | None) -> None:
    """Delete the record of a staged space, and the files of its ``generation``.

    The lock is held. First goes the record, so that a recovery deletes what an interruption leaves.
    """
    with contextlib.suppress(OSError, StoreError):
        nofollow.remove(store, RECORD)
        fsync_dir(store / FOLDER)
    for one in nofollow.entries(store, FOLDER):
        if (
            one.is_file
            and one.name != file_names.LOCK
            and file_names.OF_REEMBED.fullmatch(one.name)
        ):
            with contextlib.suppress(OSError, StoreError):
                nofollow.remove(store, f"{FOLDER}/{one.name}")
    if generation is not None:
        for top in (file_names.VECTORS, file_names.ENCODER):
            discard_folder(store, f"{top}/{generation}")


def discard_folder(store: Path, folder: str, ours: re.Pattern[str] = file_names.MADE) -> None:
    """Delete a folder of vectors or of an encoder with the engine's files in it, those of ``ours``."""
    nofollow.discard(store, folder, ours, called=f"{folder}/")
    with contextlib.suppress(OSError, StoreError):
        nofollow.remove_folder(store, folder.partition("/")[0])


def remove_leftovers(store: Path, named: Manifest) -> None:
    """As the writer, delete the record of an outdated reembed, and folders that nothing names."""
    # Listed first: a reembed that begins now writes its record before any other file.
    folders = [
        (top, generation)
        for top in (file_names.VECTORS, file_names.ENCODER)
        for generation in file_names.encoder_generations(
            one.name for one in nofollow.entries(store, top) if one.is_folder
        )
    ]
    staged = staged_in(store, named)
    there = {one.name for one in nofollow.entries(store, FOLDER)} - {file_names.LOCK}
    if staged is None and there:
        # While another process has the lock, the record is about to be written.
        with contextlib.suppress(StoreError), locked(store):
            staged = staged_in(store, named)
            if staged is None:
                discard(store, None)
    kept = {named.space.generation, *([staged.entry.generation] if staged else [])}
    for top, generation in folders:
        if generation not in kept:
            discard_folder(store, f"{top}/{generation}", file_names.LEFT_BEHIND)
