"""The writing methods of ``Store``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from engine.api.ingest_plan import planned
from engine.api.ingest_sources import (
    Given,
    InMemory,
    Stream,
    given_sources,
    paths_of,
    sources_with_vectors,
)
from engine.api.open_store import NO_ENCODER, OpenStore
from engine.api.paths import folder_named, source_names
from engine.config import (
    check_keep_pixels,
    check_wait,
    check_workers,
    parse_memory,
    whole,
)
from engine.errors import (
    EngineError,
    ImageError,
    StoreDamagedError,
    StoreError,
    UsageError,
    shortened,
)
from engine.index.open import OpenIndex
from engine.ingest.run import Ingest, nothing_done
from engine.ingest.vector_arrays import check_admission
from engine.maintenance.check.run import Check, unreadable
from engine.maintenance.optimize import Optimize
from engine.maintenance.redescribe import redescribe
from engine.maintenance.removal_dry_run import RemovalPlan
from engine.maintenance.remove import Remove
from engine.maintenance.repair.run import Repair
from engine.maintenance.salvage import salvage
from engine.records import (
    CheckReport,
    ImageRecord,
    IngestPlan,
    IngestReport,
    OptimizeReport,
    RemoveReport,
)
from engine.records import Problem as CheckProblem
from engine.sources.exclusions import Patterns
from engine.sources.in_memory import (
    Images,
    OneImage,
    VectorArray,
)
from engine.sources.metadata import checked_metadata
from engine.sources.skip_notes import WITHOUT_VECTOR
from engine.sources.source_stream import Sources
from engine.sources.sources_with_vectors import SourcesWithVectors
from engine.stop import StoppedError
from engine.storage.session import Session


class Writing(OpenStore):
    """The methods of ``Store`` that write."""

    def ingest(
        self,
        *sources: str | os.PathLike[str] | Images | VectorArray | OneImage | Stream,
        name: str | None = None,
        metadata: dict[str, Any] | None = None,
        files_from: str | os.PathLike[str] | None = None,
        encoder: str | None = None,
        recursive: bool = True,
        keep_pixels: str = "auto",
        workers: int | None = None,
        normalize: bool = False,
        null: bool = False,
        exclude: Patterns = (),
        vectors: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> IngestReport:
        """Add images or vectors. Images that the store already has stay unchanged.

        ``sources`` are paths of folders, files, archives, tables or arrays, and synthetic sets. A
        source in memory must be the only one. It is one of:

        - One image: a file's bytes or a PIL image. Results call it "memory:NAME", by ``name``.
          ``metadata``, a JSON object of at most 16 KiB, is kept with it.
        - Images of one size, called "memory:NAME#17": ``PackedBits``, or an array (n, H, W),
          (n, H, W, 1) or (n, H, W, 3) of bool or uint8. An array that holds only 0 and 1 is of bits. A
          shape that could also be one image, such as (n, H, 3), is refused.
        - A stream, read on demand: an iterable of (name, image[, metadata[, vector]]). An image is
          bytes, a PIL image, ``PackedBits`` of one image, or an array (H, W), (H, W, 3) or (H, W, 4) of
          bool, uint8 or uint16. A vector is (d,) of float32, or None. An unreadable image is reported
          like an unreadable file.
        - Vectors: an array (n, d) of float32, as in files: rows without pixels, each with its own id.

        ``vectors``: a file of the images' own vectors. Row i of a ``.npy`` (n, d) belongs to the i-th
        image; an ``.npz`` has ``names`` (n,), text, and ``vectors`` (n, d). A column of a table is
        ``FILE.parquet?vector=COLUMN``. An image keeps its first vector. It is rejected if the vector has
        another d than the store's, is not finite, or is zero and to be normalized. A store holds either
        an encoder's vectors or imported ones, of one d. ``normalize`` divides imported vectors and later
        queries by their length, so that scores are cosines. The first vectors fix it.

        ``encoder``: the store's own by default, or "none" to add images without vectors. A store
        without an encoder adopts the first one named. ``files_from``: a file of more sources, one per
        line, or ended by null bytes with ``null``. ``exclude``: patterns of names and paths inside
        folders to skip, such as "*.tmp". ``keep_pixels``: "auto" keeps bit images of up to 64 KiB
        packed, "yes" keeps the bytes of all files, "no" keeps none. ``progress(done, total)`` is called
        as items are done. ``stop()`` is polled often; once it is true, finished images are committed and
        the run ends.

        Raises ``UsageError``, ``StoreLockedError``, ``StoreError``; earlier commits stay.
        """
        named = given_sources(
            sources,
            name=name,
            metadata=metadata,
            files_from=files_from,
            recursive=recursive,
            null=null,
            exclude=exclude,
            memory=self._session.memory,
        )
        # Refuse wrong arguments before the store is opened for writing.
        check_keep_pixels(keep_pixels)
        check_workers(workers)
        return self._ingest(
            named,
            vectors,
            encoder,
            keep_pixels=keep_pixels,
            workers=workers,
            normalize=normalize,
            progress=progress,
            stop=stop,
        )

    def _ingest(
        self,
        named: Sources | InMemory,
        vectors: str | os.PathLike[str] | None,
        encoder: str | None,
        *,
        keep_pixels: str,
        workers: int | None,
        normalize: bool,
        progress: Callable[[int, int | None], None] | None,
        stop: Callable[[], bool] | None,
    ) -> IngestReport:
        with self._alone("ingest"), ExitStack() as stack:
            self._session.follow()
            given: Given = named
            if vectors is not None:
                given = sources_with_vectors(named, vectors, encoder, self._session.memory, stack)
                check_admission(self._session.snapshot, given.dim, normalize=normalize)
                encoder = NO_ENCODER
            chosen = self._chosen_encoder(encoder)
            try:
                self._session.become_writer(stop=stop)
            except StoppedError:
                return nothing_done()
            used = self._encoder_for(encoder, chosen)
            run = Ingest(
                self._session,
                used,
                keep_pixels=keep_pixels,
                workers=workers,
                normalize=normalize,
                progress=_counting(progress, given.count),
                stop=stop,
            )
            if isinstance(given, InMemory):
                return run.run(given)
            self._session.writer.add_roots(given.folders)
            found = run.run(given)
            self._session.writer.add_roots(given.folders)  # a list may have named more of them
            if isinstance(given, SourcesWithVectors) and given.unnamed:
                found = replace(found, notes={**found.notes, WITHOUT_VECTOR: given.unnamed})
            return found

    def update(self, id_: int, *, metadata: dict[str, Any] | None) -> ImageRecord:
        """Replace the metadata of image ``id_`` in one commit; None removes it. Returns the new record.

        ``metadata`` is a JSON object of at most 16 KiB, as in ``ingest``. It replaces the old object. To
        change one field, pass ``{**store[id].metadata, "label": "cat"}``. Rows of arrays have no
        metadata, because they share their records. A later ingest of the image sets its metadata only
        if it has none.

        Raises ``UnknownImageError``, ``UsageError``, ``StoreLockedError``, ``StoreError``.
        """
        try:
            number = whole(id_)
        except TypeError:
            raise UsageError(f"an id must be a whole number, not {id_!r:.60}") from None
        try:
            said = checked_metadata(metadata)
        except ImageError as error:
            raise UsageError(f"image {number}: {error}") from None
        with self._alone("update"):
            self._session.follow()
            redescribe(self._session, number, said)
            return self._session.snapshot.get(number)

    def remove(
        self,
        *,
        ids: Iterable[int] = (),
        sources: Iterable[str | os.PathLike[str]] = (),
        missing: bool = False,
        yes: bool = False,
        dry_run: bool = False,
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> RemoveReport:
        """Remove images by id, and sources by name. An image is removed with the last of its sources.

        A source is an absolute path, as results show it, or a relative one. It stands for itself, the
        rows of an array, the members of an archive, or everything below a folder, whether on disk or
        not; "b.npy#17" is one row. ``missing``: also remove sources that are gone from the disk. If more
        than half of an ingested folder is missing, its disk may not be mounted: ``MissingError`` is
        raised and nothing is removed, unless ``yes``. ``dry_run`` only counts what would be removed,
        and where; it takes no lock and needs no free disk.

        The report lists names that are not in the store. An image that is ingested again gets a new
        id. ``optimize`` gives the disk space back. ``progress(done, total)`` is called during the run;
        ``stop()`` is polled after each commit.

        Raises ``UsageError``, ``MissingError``, ``StoreLockedError``, ``StoreError``; call it again to
        go on.
        """
        try:
            wanted = [whole(id_) for id_ in ids]
        except TypeError:
            raise UsageError(f"ids must be a list of whole numbers, not {shortened(ids)}") from None
        names = source_names(sources)
        if not wanted and not names and not missing:
            raise UsageError("name what to remove: ids=, sources=, or missing=True")
        total = None if names or missing else len(set(wanted))
        counting = _counting(progress, lambda: total)
        with self._alone("remove"):
            if dry_run:
                self._session.follow()
                return RemovalPlan(self._session, stop).run(wanted, names, missing=missing)
            run = Remove(self._session, progress=counting, stop=stop)
            return run.run(wanted, names, missing=missing, yes=yes)

    @classmethod
    def plan(
        cls,
        path: str | os.PathLike[str],
        *sources: str | os.PathLike[str],
        files_from: str | os.PathLike[str] | None = None,
        encoder: str | None = None,
        recursive: bool = True,
        keep_pixels: str = "auto",
        normalize: bool = False,
        null: bool = False,
        exclude: Patterns = (),
        vectors: str | os.PathLike[str] | None = None,
        memory: str | int | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> IngestPlan:
        """Report what ``ingest`` into the store at ``path`` would read and how much disk it would take.

        It writes nothing, and does not create a missing store. ``disk_bytes`` is an upper estimate,
        because an image that is not decoded yet may be a duplicate or broken. Arguments that ``open``
        and ``ingest`` refuse are refused here too.
        """
        check_keep_pixels(keep_pixels)
        budget = parse_memory(memory)
        named = Sources(
            paths_of(sources),
            files_from=files_from,
            recursive=recursive,
            null=null,
            exclude=exclude,
        )
        folder = folder_named(path)
        given: Sources | SourcesWithVectors = named
        with ExitStack() as stack:
            if vectors is not None:
                given = sources_with_vectors(named, vectors, encoder, budget, stack)
                encoder = NO_ENCODER
            store = None
            if (folder / "MANIFEST.json").exists():
                store = stack.enter_context(cls.open(folder, read_only=True, memory=budget.total))
            counting = _counting(progress, given.count)
            return planned(
                store.session.snapshot if store is not None else None,
                folder,
                given,
                encoder,
                keep_pixels=keep_pixels,
                normalize=normalize,
                progress=counting,
            )

    def optimize(
        self,
        *,
        recall: float | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> OptimizeReport:
        """Rebuild the index, give back the disk space of removed images, and compact the keys.

        ``recall``: the share of the nearest vectors that searches find from now on, unless a search
        passes its own (0.95 at first). How far to look for it is measured on a sample of the store's
        vectors. The index is trained again if the store has grown or changed, and vectors are laid out
        in its order. Other processes may write to the store until shortly before the end.

        A file of kept pixels is compacted if a fifth of it or more belongs to removed images and the
        disk has room for the copy. The report lists what was not done. Readers are not disturbed.
        ``progress(done, total)`` counts images; ``stop()`` is polled after each commit.

        Raises ``StoreLockedError``, ``StoreError``; call it again to go on.
        """
        with self._alone("optimize"):
            run = Optimize(self._session, recall=recall, progress=progress, stop=stop)
            return run.run()

    def check(self, *, fix: bool = False) -> CheckReport:
        """Read everything that is committed and verify it.

        ``fix`` rebuilds derived data from kept pixels or from sources that still exist, and sets aside
        what is lost; the report names it.
        """
        if not fix:
            self._session.follow()
            return Check(self._session).run()
        if self._session.read_only:
            raise UsageError(f"{self.path} was opened read-only")
        with self._alone("check"):
            return self._repair()

    def _repair(self) -> CheckReport:
        self._session.follow()
        check = Check(self._session)
        report = check.run()
        if not report.problems:
            return report
        aside: list[CheckProblem] = []
        try:
            if check.damage.tables:
                aside += self._salvage()
                check = Check(self._session)
                check.run()
            aside += Repair(self._session, self._own_encoder).run(check.damage)
        except (OSError, EngineError) as error:
            aside.append(CheckProblem("repair", f"it could not be finished: {error}"))
        try:
            left = Check(self._session).run().problems
        # The repair failed and closed the store.
        except StoreError:
            left = report.problems
        # The second check may describe the same damage in other words. So a part with any problem left
        # counts as not fixed.
        parts = {problem.part for problem in left}
        was = [replace(problem, fixed=problem.part not in parts) for problem in report.problems]
        new = [problem for problem in left if problem not in report.problems]
        return replace(report, problems=(*was, *aside, *new))

    def _salvage(self) -> list[CheckProblem]:
        """Rebuild the keys, with the store closed."""
        self._index.close()
        self._session.close()
        try:
            found = salvage(self._session.path, self._session.memory, self._session.wait)
        except BaseException:
            # Raise the first error, not one from opening again.
            with suppress(EngineError):
                self._open_again()
            raise
        self._open_again()
        return found

    def _open_again(self) -> None:
        was = self._session
        self._session = Session(
            was.path, was.memory, read_only=False, limits=was.limits, wait=was.wait
        )
        self._index = OpenIndex(self._session)
        self._last_lookup = self._last_sources = self._last_where = None

    @classmethod
    def salvage(
        cls,
        path: str | os.PathLike[str],
        *,
        memory: str | int | None = None,
        wait: float = 0.0,
    ) -> list[CheckProblem]:
        """Repair what keeps a store from being opened: a lost manifest, or damaged RocksDB files.

        Returns the problems it found; none if the store can be opened. Raises ``StoreDamagedError`` if
        only a copy of the store helps. ``wait``: as in ``open``.
        """
        return salvage(folder_named(path), parse_memory(memory), check_wait(wait))

    @classmethod
    def check_at(
        cls,
        path: str | os.PathLike[str],
        *,
        fix: bool = False,
        memory: str | int | None = None,
        wait: float = 0.0,
    ) -> CheckReport:
        """Check a store that may be too damaged to open; the report then says so.

        ``fix``: call ``salvage`` first, and include what it repaired in the report. ``wait``: as in
        ``open``, for each write of the repair.
        """
        mended: list[CheckProblem] = []
        try:
            if fix:
                mended = cls.salvage(path, memory=memory, wait=wait)
            with cls.open(path, read_only=not fix, memory=memory, wait=wait) as opened:
                report = opened.check(fix=fix)
        except StoreDamagedError as error:
            report = unreadable(error)
        return replace(report, problems=(*mended, *report.problems))


def _counting(
    progress: Callable[[int, int | None], None] | None, count: Callable[[], int | None]
) -> Callable[[int], None] | None:
    """``progress`` as a function of the items done; the total is counted only if there is progress."""
    if progress is None:
        return None
    total, report = count(), progress
    report(0, total)
    return lambda done: report(done, total)
