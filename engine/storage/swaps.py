"""Swaps: replaces some files of a store by others, in crash-safe steps.

Files are deleted last, once no manifest names them; a crash leaves files that the next writer deletes.
Each function documents the order of its other steps. A segment is live whenever its rows are committed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.errors import StoreError
from engine.storage import extents, file_names, manifest, nofollow
from engine.storage.durable import fsync_dir, inside
from engine.storage.extent_reader import ExtentReader
from engine.storage.extent_writer import ExtentWriter
from engine.storage.extents import Append, Family
from engine.storage.index_files import ReorderedExtent, make_index_folder
from engine.storage.manifest import Manifest, Measured, QuantizerEntry, SegmentEntry
from engine.storage.staged_space import next_generation
from engine.storage.state import State
from engine.storage.vector_space import IMPORTED_VECTORS, EncoderEntry, VectorSpace
from engine.storage.writer import Writer

_log = logging.getLogger("engine.storage")
_CARRIED = 1 << 15  # rows of vectors copied at a time


def publish_index(
    writer: Writer,
    live: Sequence[SegmentEntry],
    quantizers: Sequence[QuantizerEntry] = (),
    measured: Measured | None = None,
) -> None:
    """Make searches use these segments instead: save the manifest, then delete the files of others.

    ``quantizers``: new ones, in addition to the existing ones. ``measured``: None keeps the old values.
    """
    writer.require_open()
    before = writer.manifest
    known = {entry.number: entry for entry in (*before.quantizers, *quantizers)}
    named = replace(before, quantizers=tuple(known.values()))
    writer.save(named.with_index(live, measured or before.measured))
    # Readers that have the files mapped can use them until they close them.
    remove_files(writer, before.index_files(Path()) - writer.manifest.index_files(Path()))
    writer.announce_index()


def drop_extents(writer: Writer, numbers: Sequence[int]) -> None:
    """Delete extents of pixels that no image uses; they must be entirely dead.

    First the commit, then the manifest, then the files. A reader of an older commit thus finds a file
    gone only once it can see that there is a newer commit.
    """
    writer.require_open()
    writer.safely(lambda: _drop_extents(writer, set(numbers)))


def _drop_extents(writer: Writer, numbers: set[int]) -> None:
    family = extents.PIXELS
    with writer.begin() as transaction:
        state = transaction.state
        pairs = state.extents[family.name]
        if any(n in numbers and state.dead.get(str(n)) != size for n, size in pairs):
            raise StoreError("an extent that holds images was to be dropped; this is a bug")
        # Numbers are not used again, because readers may know the old file.
        if pairs[-1][0] in numbers:
            if writer.appender.newest(family) in numbers:
                writer.appender.begin_next(family)
            pairs.append([writer.appender.newest(family), 0])
        state.extents[family.name] = [pair for pair in pairs if pair[0] not in numbers]
        for number in numbers:
            state.dead.pop(str(number), None)
        transaction.forget_appends({family.name}, numbers)
        before = writer.manifest.extents[family.name]
        live = {(name, n) for name, named in writer.manifest.extents.items() for n in named}
        named = writer.manifest.only(live - {(family.name, number) for number in numbers})
        transaction.manifest = named
    writer.save(named)
    writer.snapshot.files.pixels.close()
    remove_files(writer, map(family.inside, numbers.intersection(before)))


def remove_files(writer: Writer, names: Iterable[str | Path]) -> None:
    """Delete files that the manifest no longer names; the next writer deletes what remains."""
    for name in names:
        try:
            nofollow.remove(writer.path, str(name))
        except OSError as error:
            _log.warning("%s: %s could not be deleted: %s", writer.path, name, error.strerror)


def adopt_encoder(writer: Writer, install: Callable[[Path, int], EncoderEntry]) -> None:
    """Give a store without an encoder its first one: first its files, then the manifest.

    ``install`` puts the files of a generation into the store, and returns their entry.
    """
    writer.require_open()
    if not writer.manifest.space.exists:
        generation = next_generation(writer.path, writer.manifest, staged=False)
        named = replace(writer.manifest, encoder=install(writer.path, generation))
        writer.safely(lambda: writer.save(named))


def adopt_vectors(writer: Writer, dim: int, *, normalized: bool, of_images: bool = False) -> None:
    """Let a store without vectors hold imported ones; an encoder that it had is dropped.

    ``of_images``: images may have some of them. First the manifest, then a commit without the old
    extents, then the encoder's files.
    """
    writer.require_open()
    assert not writer.snapshot.vector_rows
    entry = EncoderEntry(IMPORTED_VECTORS, 0, dim, "", "", normalized, of_images)
    writer.safely(lambda: _adopt_vectors(writer, entry))


def adopt_image_vectors(writer: Writer, dim: int, *, normalized: bool) -> None:
    """Let images have imported vectors of ``dim`` numbers, in a store without an encoder's vectors."""
    writer.require_open()
    if not writer.snapshot.vector_rows:
        adopt_vectors(writer, dim, normalized=normalized, of_images=True)
        return
    entry = writer.manifest.encoder
    assert entry is not None and entry.is_imported and entry.dim == dim
    if not entry.of_images:
        named = replace(writer.manifest, encoder=replace(entry, of_images=True))
        writer.safely(lambda: writer.save(named))


def _adopt_vectors(writer: Writer, entry: EncoderEntry) -> None:
    before = writer.manifest.space
    # It gets a generation of its own, because extents of the old one may have been begun.
    generation = next_generation(writer.path, writer.manifest, staged=False)
    entry = replace(entry, generation=generation)
    if before == replace(VectorSpace.of(entry), generation=before.generation):
        return
    families = (extents.PIXELS.name, extents.FINGERPRINTS.name)
    gone = writer.manifest.extents.keys() - {*families}
    kept = {name: n for name, n in writer.manifest.extents.items() if name in families}
    writer.save(replace(writer.manifest, encoder=entry, extents=kept).with_index(()))
    # Extents of vectors that are all gone.
    if writer.state.extents.keys() - {*families}:
        with writer.begin() as transaction:
            state = transaction.state
            state.extents = {name: n for name, n in state.extents.items() if name in families}
    writer.appender.forget(gone)
    if encoder := before.encoder:
        folder = file_names.encoder_folder(encoder.file, encoder.generation)
        nofollow.discard(writer.path, folder, file_names.MADE, called=f"{folder}/")
        with contextlib.suppress(OSError):
            nofollow.remove_folder(writer.path, file_names.ENCODER)


def replace_vectors(
    writer: Writer,
    made: Path,
    old: Sequence[tuple[int, int]],
    new: ReorderedExtent,
    quantizer: QuantizerEntry | None,
) -> None:
    """Replace extents of vectors by a reordered copy in the folder ``made``.

    ``old``: each extent's number and the rows that were reordered; rows appended since are copied over.
    The new files are moved into the store, the manifest names both, one commit switches to the new ones,
    and then the old ones are deleted.
    """
    writer.require_open()
    writer.safely(lambda: _VectorSwap(writer, made, old, new, quantizer).run())


class _VectorSwap:
    """One run of ``replace_vectors``."""

    def __init__(
        self,
        writer: Writer,
        made: Path,
        old: Sequence[tuple[int, int]],
        new: ReorderedExtent,
        quantizer: QuantizerEntry | None,
    ) -> None:
        space = writer.manifest.space
        self._writer = writer
        self._space = space
        self._made = made
        self._new = new
        self._quantizer = quantizer
        self._families = space.vector_family, space.id_family
        self._gone = {number for number, _ in old}
        there = dict(writer.state.vector_parts(space))
        self._late = [(n, rows, there[n]) for n, rows in old if there[n] > rows]
        # Rows that were appended in the meantime may need one more extent.
        used = writer.manifest.extents.get(self._families[0].name, ())
        self._number = file_names.next_number(used, file_names.MAX_EXTENT - 1)
        self._appends: list[Append] = []

    def run(self) -> None:
        writer, before = self._writer, self._writer.manifest
        names = {family.name for family in self._families}
        with writer.begin() as transaction:
            both = self._with_extents(before, transaction.state)
            both, live = self._with_segments(both)
            self._move_index(both, before)
            both.save(writer.path)
            named = both.only(
                (name, n)
                for name, numbers in both.extents.items()
                for n in numbers
                if n not in self._gone or name not in names
            ).with_index(live)
            transaction.forget_appends(names, self._gone)
            transaction.appended = self._appends
            self._count(transaction.state)
            writer.name(both)
            transaction.manifest = named
        writer.save(named)
        remove_files(writer, both.index_files(Path()) - named.index_files(Path()))
        for family in self._families:
            remove_files(writer, map(family.inside, self._gone))

    def _with_extents(self, both: Manifest, state: State) -> Manifest:
        """Move the new extents into the store; return the manifest with them, and set their lengths."""
        store, number, uuid = self._writer.path, self._number, bytes.fromhex(both.uuid)
        for family in self._families:
            self._writer.appender.forget([family.name])
            pairs = [pair for pair in state.extents[family.name] if pair[0] not in self._gone]
            if self._new.rows:
                extents.adopt(self._made, store, family, number, uuid)
                both = both.with_extent(family.name, number)
                pairs.insert(0, [number, self._new.rows * family.row_bytes])
            if self._late:
                both = both.with_extent(family.name, number + 1)
                pairs.append([number + 1, self._carry_over(family, number + 1, uuid)])
            # Numbers are not used again, because readers may know the old file.
            if not pairs:
                extents.create(store, family, number, uuid)
                both = both.with_extent(family.name, number)
                pairs.append([number, 0])
            state.extents[family.name] = pairs
        self._appends += [
            replace(part, extent=number) for pair in self._new.appends for part in pair
        ]
        return both

    def _with_segments(self, both: Manifest) -> tuple[Manifest, list[SegmentEntry]]:
        """Return the manifest with the new segment and quantizer, and the segments that stay live."""
        before, quantizer = both, self._quantizer
        ours = [e for e in before.segments if quantizer and e.quantizer == quantizer.number]
        live = [e for e in ours if not self._gone & {extent for extent, _, _ in e.ranges}]
        if quantizer is not None and quantizer not in before.quantizers:
            both = replace(both, quantizers=(*before.quantizers, quantizer))
        if self._new.segment is not None:
            laid_out = replace(self._new.segment, ranges=((self._number, 0, self._new.rows),))
            live.insert(0, laid_out)
            both = replace(both, segments=(*before.segments, laid_out))
        return both, live

    def _move_index(self, both: Manifest, before: Manifest) -> None:
        """Durably move the new index files into the store."""
        store, made = self._writer.path, self._made
        make_index_folder(store)
        for path in both.index_files(made) - before.index_files(made):
            name = inside(path, made)
            nofollow.rename(made, name, store, name)
        fsync_dir(store / manifest.INDEX_FOLDER)

    def _count(self, state: State) -> None:
        """Set a state's counts of vectors, and of vectors without an image."""
        key = self._space.key
        state.vectors[key] = sum(rows for _, rows in state.vector_parts(self._space))
        state.removed_vectors.pop(key, None)
        some = self._writer.state.dead_vectors
        dead = self._writer.dead_vectors(self._space, state) if some else 0
        if dead:
            state.removed_vectors[key] = dead

    def _carry_over(self, family: Family, number: int, uuid: bytes) -> int:
        """Copy rows that were appended late to a new extent; return its data bytes."""
        store = self._writer.path
        extents.create(store, family, number, uuid)
        writer = ExtentWriter(store, family, number, 0, self._writer.limits)
        reader = ExtentReader(store, family)
        try:
            for extent, first, end in self._late:
                rows = reader.rows(extent, end, np.uint8)
                for at in range(first, end, _CARRIED):
                    writer.put(rows[at : min(at + _CARRIED, end)].reshape(-1).data)
                    done = writer.flush()
                    if done is not None:
                        self._appends.append(done)
            return writer.end
        finally:
            writer.close()
            reader.close()
