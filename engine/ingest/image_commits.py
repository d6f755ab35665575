"""Commits prepared images: known? → encode → chunk → commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine.ingest.chunk_builder import ChunkBuilder
from engine.ingest.commit import Commits
from engine.ingest.counts import Tally
from engine.ingest.encode import Encoding, Vector
from engine.ingest.image_vectors import ImageVectors
from engine.ingest.member_groups import MemberGroup
from engine.ingest.resume import stamp_of
from engine.ingest.stopping import Stopping
from engine.ingest.workers import ReadItem, Waiting
from engine.sources.items import FileItem, Member, Reject
from engine.storage.changeset import NewName
from engine.storage.session import Session
from engine.storage.source_rows import NameRow

_log = logging.getLogger("engine.ingest")
_Encoded = tuple[ReadItem, Vector | None]  # an item, and its vector if it is new


class ImageCommits:
    """Commits groups of files and groups of members of archives."""

    def __init__(
        self,
        store: Session,
        encoding: Encoding,
        commits: Commits,
        tally: Tally,
        stopping: Stopping,
        vectors: ImageVectors,
    ) -> None:
        self._store = store
        self._encoding = encoding
        self._vectors = vectors
        self._commits = commits
        self._tally = tally
        self._stopping = stopping

    def commit(self, waiting: Sequence[Waiting], group: MemberGroup | None = None) -> bool:
        """Commit prepared images and, for a group of an archive, how far the archive is read.

        Once the run is to stop, only images that are ready are committed. In an archive these are the
        ones before the first that is not, because the next run goes on from there. Returns False if
        some are left.
        """
        results, left = self._collect(waiting, in_order=group is not None)
        done = [result for result in results if isinstance(result, ReadItem)]
        vectors = self._encoding.encode_new([one.prepared for one in done])
        if len(vectors) < len(done):
            first = done[len(vectors)]
            left = first.item
            if group is not None:
                results = results[: next(i for i, one in enumerate(results) if one is first)]
        rejects = [result for result in results if isinstance(result, Reject)]
        if rejects:
            self._tally.advance(len(rejects))
        if group is not None:
            group = group if left is None else group.until(left)
            rejects += group.problems
            group.rejected = len(rejects)
        if waiting:
            _log.debug("a group: %d images prepared, %d rejected", len(done), len(rejects))
        self._commit(list(zip(done, vectors, strict=False)), rejects, group, last=True)
        return left is None

    def _collect(
        self, waiting: Sequence[Waiting], *, in_order: bool
    ) -> tuple[list[ReadItem | Reject], FileItem | Member | None]:
        """The results that are ready, and the first item that is not.

        With ``in_order``, results behind that item are left out.
        """
        results: list[ReadItem | Reject] = []
        left: FileItem | Member | None = None
        for item, future in waiting:
            if self._stopping.ready(future):
                results.append(future.result())
            else:
                left = left or item
                if in_order:
                    break
        return results, left

    def _commit(
        self,
        done: Sequence[_Encoded],
        rejects: Sequence[Reject],
        group: MemberGroup | None,
        *,
        last: bool,
    ) -> None:
        """Commit images; if they do not fit the disk, commit one half and then the other.

        Only the ``last`` commit says how far the archive is read; without it, a run reads them again.
        """
        marks = group.marks() if group is not None else None

        def halves() -> None:
            if group is not None and marks is not None:
                group.go_back(marks)
            half = len(done) // 2
            self._commit(done[:half], [], group, last=False)
            self._commit(done[half:], rejects, group, last=last)

        self._commits.or_halves(
            lambda: self._try(done, list(rejects), group, last=last),
            halves if len(done) > 1 else None,
        )

    def _try(
        self,
        done: Sequence[_Encoded],
        rejects: list[Reject],
        group: MemberGroup | None,
        *,
        last: bool,
    ) -> None:
        known_rejects = len(rejects)
        brought = next((v for one, _ in done if (v := one.item.vector) is not None), None)
        if brought is not None:
            self._vectors.adopt(len(brought))
        builder = ChunkBuilder(self._store.snapshot)
        before = self._store.snapshot.names([one.item.name for one, _ in done])
        images = [one.prepared.image for one, _ in done if one.prepared is not None]
        known = iter(builder.find(images))
        named: dict[bytes, NewName] = {}
        for (one, vector), name_row in zip(done, before, strict=True):
            item, id_ = one.item, one.known
            if one.prepared is not None:
                id_ = next(known) or builder.added(one.prepared.image.proof)
            self._tally.advance(1)
            if group is not None:
                # The name occurs twice in this archive, for the same image or for another one.
                same = _stands_for(item, name_row, named.get(item.name))
                if same is not None and same == id_:
                    self._bring(builder, item, id_)
                    self._tally.counts.unchanged += 1
                    continue
                if same is not None:
                    reason = "another member of the archive has this name: rename one of them"
                    rejects.append(Reject(item.name, reason, item.mtime_ns, item.size))
                    continue
            id_ = self._take(builder, one, vector, id_)
            named[item.name] = NewName(
                item.name, id_, item.mtime_ns, item.size, one.file_hash, name_row
            )
        builder.chunk.names = list(named.values())
        if group is not None:
            group.reject(rejects, met_now=len(rejects) - known_rejects)
            if last:
                self._pass_by(builder, group)
        self._commits.rejects.put(builder.chunk, rejects)
        self._commits.commit(builder)
        self._vectors.committed(builder.chunk)

    def bring(self, known: Sequence[tuple[FileItem | Member, int]]) -> None:
        """Commit the vectors of unchanged items whose images, by their ids, have none yet."""
        lacking = [(item, id_) for item, id_ in known if self._vectors.lacks(id_)]
        if not lacking:
            return

        def attempt() -> None:
            dim = next(len(item.vector) for item, _ in lacking if item.vector is not None)
            self._vectors.adopt(dim)
            builder = ChunkBuilder(self._store.snapshot)
            for item, id_ in lacking:
                self._bring(builder, item, id_)
            self._commits.commit(builder)
            self._vectors.committed(builder.chunk)

        def halves() -> None:
            self.bring(lacking[: len(lacking) // 2])
            self.bring(lacking[len(lacking) // 2 :])

        self._commits.or_halves(attempt, halves if len(lacking) > 1 else None)

    def _bring(self, builder: ChunkBuilder, item: FileItem | Member, id_: int) -> None:
        """Give an image the vector that it comes with, unless it has one."""
        if item.vector is not None and (builder.is_new(id_) or self._vectors.lacks(id_)):
            builder.bring(id_, item.vector)

    def _take(
        self, builder: ChunkBuilder, one: ReadItem, vector: Vector | None, id_: int | None
    ) -> int:
        """Add an image, or only its metadata if it is there as ``id_``; returns its id."""
        item = one.item
        if isinstance(item, Member) and item.note:
            self._commits.rejects.put_without_metadata([item])
        if id_ is None:
            assert one.prepared is not None
            self._tally.counts.added += 1
            id_ = builder.add(one.prepared.image, vector)
            self._bring(builder, item, id_)
            return id_
        self._bring(builder, item, id_)
        self._tally.counts.duplicates += 1
        if isinstance(item, Member) and item.metadata:
            builder.describe(id_, item.metadata)
        return id_

    def _pass_by(self, builder: ChunkBuilder, group: MemberGroup) -> None:
        """Add to the chunk how far the archive is read, and count skipped members."""
        builder.chunk.archives = [(group.archive.name, group.pass_by())]
        self._tally.note(group.notes)
        self._tally.counts.skipped += group.skipped
        self._tally.advance(len(group.problems) + group.skipped)


def _stands_for(
    item: FileItem | Member, before: NameRow | None, chunk: NewName | None
) -> int | None:
    """The id of the image that a member's name stands for already in the unchanged archive, or None."""
    if chunk is not None:
        return chunk.id
    if before is not None and stamp_of(before) == stamp_of(item):
        return before.id
    return None
