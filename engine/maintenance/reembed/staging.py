"""Opens the staged space of a reembed: that of an earlier run with the same encoder, or a new one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.encoders import registry, text
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError, StoreError
from engine.storage import file_names, nofollow, staged_space
from engine.storage.bitmap import IdSet
from engine.storage.durable import tree_bytes
from engine.storage.session import Session
from engine.storage.staged_space import StagedSpace, staged_in
from engine.storage.staged_vectors import StagedVectors
from engine.storage.vector_space import EncoderEntry

_log = logging.getLogger("engine.maintenance")

# Copies an encoder into a store, under a generation.
Install = Callable[[Path, EncoderFiles, int], EncoderEntry]


def described(chosen: EncoderFiles) -> dict[str, Any]:
    """Return what an encoder is besides its model: how pictures become its input, and its text tower."""
    tower = chosen.text
    files = (
        [tower.model_sha256, tower.tokenizer_sha256, tower.context, tower.pad_id] if tower else None
    )
    return {**registry.described(chosen.preprocessing), "text": files}


class Staging:
    """The staged space of one encoder in one store."""

    def __init__(self, store: Session, chosen: EncoderFiles, install: Install) -> None:
        self._store = store
        self._chosen = chosen
        self._install = install

    def found(self) -> StagedSpace | None:
        """Return the staged space of an earlier run with the same encoder, if there is one."""
        chosen = self._chosen
        staged = staged_in(self._store.path, self._store.snapshot.manifest)
        if staged is None or staged.described != described(chosen):
            return None
        same = (staged.entry.fingerprint, staged.entry.dim) == (chosen.sha256, chosen.dim)
        return staged if same else None

    def ids(self) -> IdSet:
        """Return the images that an earlier run has a vector of; the vectors are not verified."""
        staged, size = self.found(), self._store.snapshot.state.next_id
        return self._vectors(staged).named_ids(size) if staged is not None else IdSet.none(size)

    def needs_encoder(self) -> bool:
        """Return whether the encoder's files are still to be copied."""
        staged = self.found()
        return staged is None or not staged.installed

    def open(self, step: Callable[[], None]) -> StagedVectors:
        """Go on with a staged space, or begin one. The lock of the staged space is held.

        Vectors of another encoder are dropped. ``step`` is called often; its exceptions pass through.
        """
        store, staged = self._store, self.found()
        if staged is None:
            named = store.snapshot.manifest
            before = staged_in(store.path, named)
            generation = staged_space.next_generation(store.path, named, staged=True)
            if before is not None:
                _log.info("dropping what was staged with the encoder %s", before.entry.name)
                staged_space.discard(store.path, before.entry.generation)
            # Files without a valid record may be of any encoder.
            staged_space.discard(store.path, generation)
            staged = self._record(generation)
            staged.save(store.path)
        if not staged.installed or not self._is_whole(staged):
            staged = self._installed(staged)
        vectors = self._vectors(staged)
        try:
            vectors.resume(step)
        except BaseException:
            vectors.close()
            raise
        return vectors

    def _vectors(self, staged: StagedSpace) -> StagedVectors:
        uuid = bytes.fromhex(self._store.snapshot.manifest.uuid)
        return StagedVectors(self._store.path, staged, uuid, self._store.limits)

    def _record(self, generation: int) -> StagedSpace:
        chosen = self._chosen
        file = f"{file_names.ENCODER}/{generation}/{chosen.model.name}"
        if not file_names.may_be_model(chosen.model.name):
            raise EncoderError(f"the model's file is called {chosen.model.name!r}: rename it")
        entry = EncoderEntry(chosen.name, generation, chosen.dim, chosen.sha256, file)
        return StagedSpace(entry, described(chosen), self._store.snapshot.space.generation)

    def _installed(self, staged: StagedSpace) -> StagedSpace:
        """Copy the encoder's files, which the record protects from a recovery, and note that."""
        generation = staged.entry.generation
        # A copy that was interrupted leaves files under temporary names.
        staged_space.discard_folder(self._store.path, f"{file_names.ENCODER}/{generation}")
        try:
            entry = self._install(self._store.path, self._chosen, generation)
        except EncoderError:
            staged_space.discard(self._store.path, generation)
            raise
        staged = replace(staged, entry=entry, installed=True)
        staged.save(self._store.path)
        return staged

    def _is_whole(self, staged: StagedSpace) -> bool:
        """Return whether the copied files are still those of the encoder."""
        path, entry = self._store.path, staged.entry
        folder = file_names.encoder_folder(entry.file, entry.generation)

        def contents(name: str, most: int) -> bytes:
            return nofollow.read_file(path, f"{folder}/{name}", most)

        with contextlib.suppress(EncoderError):
            found = registry.read(path / folder, contents)
            if found.text is not None:
                text.verify(found.text, contents)
            same = (found.sha256, found.dim) == (entry.fingerprint, entry.dim)
            return same and described(found) == staged.described
        return False


def discard_staged(store: Session) -> int:
    """Drop what an unfinished reembed has staged; return the bytes of it.

    Raises ``StoreLockedError`` while a reembed runs.
    """
    path = store.path
    if not nofollow.is_folder(path, staged_space.FOLDER):
        return 0
    with staged_space.locked(path):
        # In an older commit, what is live by now may look staged.
        store.refresh()
        staged = staged_in(path, store.snapshot.manifest)
        size = staged_bytes(path, staged) if staged is not None else 0
        try:
            staged_space.discard(path, staged.entry.generation if staged is not None else None)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from None
        return size


def staged_bytes(store: Path, staged: StagedSpace) -> int:
    """Return the bytes on disk of a staged space."""
    generation = staged.entry.generation
    tops = (file_names.VECTORS, file_names.ENCODER)
    folders = [f"{top}/{generation}" for top in tops] + [staged_space.FOLDER]
    return sum(tree_bytes(store / folder) for folder in folders)
