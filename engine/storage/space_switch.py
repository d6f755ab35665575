"""Switches a store to the staged vectors of another encoder, in one commit.

1. manifest   names the staged extents too, and the incoming encoder
2. commit     the state has the staged extents and none of the old ones: from here on the store is new
3. manifest   names the new encoder and its extents only
4. files      of the old encoder, its vectors and their index are deleted, then the record of the staging

A crash before the commit leaves the old store and the staged vectors, and one after it the new store.
``State.manifest_of`` tells which, for readers and for the next writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.storage import extents, file_names, staged_space
from engine.storage.extents import Append
from engine.storage.manifest import Manifest
from engine.storage.staged_vectors import StagedVectors
from engine.storage.state import State
from engine.storage.swaps import remove_files
from engine.storage.vector_space import VectorSpace
from engine.storage.writer import Writer

_OTHERS = (extents.PIXELS.name, extents.FINGERPRINTS.name)


def switch_space(
    writer: Writer, staged: StagedVectors, appends: Sequence[tuple[Append, Append]]
) -> None:
    """Make staged vectors those of the store. ``appends`` are all of them, as ``prove`` returns them.

    The encoder's files are in the store already. A failure closes the store, as that of any commit.
    """
    writer.require_open()
    assert writer.manifest.space.generation == staged.staged.replaces
    writer.safely(lambda: _switch(writer, staged, appends))


def _switch(
    writer: Writer, staged: StagedVectors, appends: Sequence[tuple[Append, Append]]
) -> None:
    before, space = writer.manifest, staged.staged.space
    both = _both(before, staged)
    with writer.begin() as transaction:
        both.save(writer.path)
        writer.name(both)
        state = transaction.state
        old = {name for name in state.extents if name not in _OTHERS}
        numbers = {number for name in old for number, _ in state.extents[name]}
        _set_vectors(state, space, staged.parts)
        gone = writer.dead_vectors(space, state)
        state.removed_vectors = {space.key: gone} if gone else {}
        transaction.forget_appends(old, numbers)
        transaction.appended = [part for pair in appends for part in pair]
        writer.appender.forget(old)
        named = state.manifest_of(both)
        transaction.manifest = named
    writer.save(named)
    remove_files(writer, map(str, before.index_files(Path())))
    if before.space.exists:
        for top in (file_names.VECTORS, file_names.ENCODER):
            staged_space.discard_folder(writer.path, f"{top}/{before.space.generation}")
    staged_space.discard(writer.path, None)


def _both(before: Manifest, staged: StagedVectors) -> Manifest:
    """Return the manifest with both encoders, and with the extents of both."""
    both = replace(before, incoming=staged.staged.entry)
    for number, _ in staged.parts:
        for family in staged.staged.space.families:
            both = both.with_extent(family.name, number)
    return both


def _set_vectors(state: State, space: VectorSpace, parts: Sequence[tuple[int, int]]) -> None:
    """Let a state have the vectors of ``space`` and no others."""
    others = {name: pairs for name, pairs in state.extents.items() if name in _OTHERS}
    of_space = {
        family.name: [[number, rows * family.row_bytes] for number, rows in parts]
        for family in space.families
    }
    state.extents = others | of_space
    state.vectors = {space.key: sum(rows for _, rows in parts)}
