"""The writing methods of ``Store``."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np

from engine.api.encoder_files import installed_bytes
from engine.api.open_store import NO_ENCODER, OpenStore, encoder_named
from engine.api.paths import folder_named, source_names
from engine.config import (
    DEFAULT_ENCODER,
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
from engine.images.packed_bits import PackedBits
from engine.index.open import OpenIndex
from engine.ingest.dry_run import DryRun
from engine.ingest.run import Ingest, nothing_done
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
    array_of,
    is_image,
    members,
    unlike,
)
from engine.sources.items import Item
from engine.sources.metadata import checked_metadata
from engine.sources.source_stream import Sources
from engine.stop import StoppedError
from engine.storage.session import Session
from engine.storage.vector_space import NO_VECTORS

Stream = Iterable[tuple[str, OneImage] | tuple[str, OneImage, dict[str, Any] | None]]


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
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> IngestReport:
        """Add the images of folders, files, arrays and synthetic sets; what is there stays as it is.

        An array of float32 (n, d), in a file or in memory as "memory:NAME#17", is of vectors: rows
        without pixels, each with an id of its own, for ``search_vectors``. A store holds vectors of
        one d, its encoder's or given ones; images that are added to given ones get none.
        ``normalize`` divides the vectors by their length, and queries too from then on, which makes
        scores cosines; it is fixed with the first ones.

        A source may also be in memory, alone: one image, with a ``name`` that results call it by as
        "memory:NAME" (a file's bytes or a PIL image; ``metadata``, a JSON object of at most 16 KiB,
        is kept with it); or many of one size, as "memory:NAME#17": ``PackedBits``, or an array
        (n, H, W), (n, H, W, 1) or (n, H, W, 3) of bool or uint8. Such an array is of bits if it holds
        nothing but 0 and 1. One that may be a single image as well, (n, H, 3) say, is refused. Or a
        stream of them, which is read as it is needed: any iterable of (name, image) or (name, image,
        metadata), where an image is bytes, a PIL image, ``PackedBits`` of one, or an array (H, W),
        (H, W, 3) or (H, W, 4) of bool, uint8 or uint16. An unreadable image of a stream is reported
        like an unreadable file, and the others go on.

        ``encoder``: the store's own (default), or "none" to add images without vectors; a store
        made without one takes the first that is named. ``files_from``: a file with more sources,
        one a line, or with ``null`` a null byte behind each. ``exclude``: patterns, such as "*.tmp",
        of names in folders, and of paths below them, that are left out. ``keep_pixels``: "auto" keeps
        bit images of up to 64 KiB packed, "yes" all as their files' bytes, "no" none.
        ``progress(done, total)`` is called as items are done. Once ``stop()``, asked often, says so,
        what is finished is committed and the run ends.

        Raises ``UsageError``, ``StoreLockedError``, ``StoreError``; what was committed stays.
        """
        given: Sources | _InMemory | None = self._in_memory(sources, name, metadata)
        if given is None:
            paths = _paths(sources)
            given = Sources(
                paths, files_from=files_from, recursive=recursive, null=null, exclude=exclude
            )
        elif len(sources) > 1 or files_from is not None:
            raise UsageError("images in memory are ingested alone: call ingest once for each")
        # A wrong argument is an error before the store is open for writing.
        check_keep_pixels(keep_pixels)
        check_workers(workers)
        with self._alone("ingest"):
            self._session.follow()
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
            if isinstance(given, _InMemory):
                return run.run(given)
            self._session.writer.add_roots(given.folders)
            found = run.run(given)
            self._session.writer.add_roots(given.folders)  # a list may have named more of them
            return found

    def update(self, id_: int, *, metadata: dict[str, Any] | None) -> ImageRecord:
        """Replace what is said of image ``id_`` by ``metadata``; None takes it away. One commit.

        ``metadata`` is a JSON object of at most 16 KiB, as ``ingest`` takes it. It goes by itself: to
        change one field, take ``{**store[id].metadata, "label": "cat"}``. Only images that came one by
        one have any: rows of arrays share their records. An ingest that meets the image again changes
        nothing of it, and fills it in where there is none. Returns the new record.

        Raises ``UnknownImageError``, ``UsageError``, ``StoreLockedError``, ``StoreError``.
        """
        try:
            number = whole(id_)
        except TypeError:
            raise UsageError(f"an id is a whole number, not {id_!r:.60}") from None
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
        """Remove images by id, and sources by name; an image goes with the last of its sources.

        A source is a path as results show it, or a relative one. It stands for itself, for the rows of
        an array, for the members of an archive and for everything below a folder, whether these are on
        disk or not; "b.npy#17" is one row. ``missing``: also what is not there any more on disk.
        Where more than half of what an ingest's folder held is missing, its disk may be away: then
        ``MissingError`` is raised and nothing is removed, unless ``yes``. ``dry_run`` only counts what
        would go, and where; it takes no lock and needs no room on the disk.
        The report lists what is named and not in the store. An image that comes back later
        gets a new id. The disk is given back by ``optimize``.
        ``progress(done, total)`` is called as it goes; ``stop()`` is asked after each commit.

        Raises ``UsageError``, ``MissingError``, ``StoreLockedError``, ``StoreError``; run again, it
        goes on.
        """
        try:
            wanted = [whole(id_) for id_ in ids]
        except TypeError:
            raise UsageError(f"ids are whole numbers in a list, not {shortened(ids)}") from None
        names = source_names(sources)
        if not wanted and not names and not missing:
            raise UsageError("name what to remove: ids, sources, or what is missing")
        total = None if names or missing else len(set(wanted))
        tell = _counting(progress, lambda: total)
        with self._alone("remove"):
            if dry_run:
                self._session.follow()
                return RemovalPlan(self._session, stop).run(wanted, names, missing=missing)
            run = Remove(self._session, progress=tell, stop=stop)
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
        memory: str | int | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> IngestPlan:
        """What ``ingest`` into the store at ``path`` would read, and how much disk it would take.

        Nothing is written, and no store is made where there is none. ``disk_bytes`` is an upper
        estimate: what is decoded only later may turn out to be a duplicate, or broken. Arguments that
        ``open`` and ``ingest`` refuse are refused here too.
        """
        check_keep_pixels(keep_pixels)
        budget = parse_memory(memory).total
        given = Sources(
            _paths(sources),
            files_from=files_from,
            recursive=recursive,
            null=null,
            exclude=exclude,
        )
        tell = None
        if progress is not None:
            total, report = given.count(), progress

            def tell(done: int) -> None:
                report(done, total)

        folder = folder_named(path)
        there = (folder / "MANIFEST.json").exists()
        store = cls.open(folder, read_only=True, memory=budget) if there else None
        try:
            files = store._session if store is not None else None
            space = files.snapshot.space if files is not None else NO_VECTORS
            dim, new = space.dim if space.has_encoder else 0, 0
            if not space.exists and (encoder or files is None) and encoder != NO_ENCODER:
                found = encoder_named(encoder or DEFAULT_ENCODER)
                dim, new = found.dim, installed_bytes(found)
            dim = dim if encoder != NO_ENCODER else 0
            plan = DryRun(
                files.snapshot if files else None,
                dim=dim,
                keep_pixels=keep_pixels,
                normalize=normalize,
                disk_bytes=new,
            )
            return plan.run(given, folder, tell)
        finally:
            if store is not None:
                store.close()

    def optimize(
        self,
        *,
        recall: float | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> OptimizeReport:
        """Build the index again, give back the disk space of what was removed, compact the keys.

        ``recall``: the share of the nearest vectors that searches are to find from now on, unless they
        say it themselves (0.95 at first); what that takes is measured on a sample of the store's own
        vectors. The index is trained again if the store has grown or changed, and vectors are laid out
        in its order; others may go on writing to the store, except for the last moment.

        Kept pixels are copied together where a fifth of a file or more is of no image any more, as far
        as there is room on the disk for the copy; the report says what was not done. Readers are not
        disturbed. ``progress(done, total)`` is called as images are looked at; ``stop()`` is asked
        after each commit.

        Raises ``StoreLockedError``, ``StoreError``; run again, it goes on.
        """
        with self._alone("optimize"):
            run = Optimize(self._session, recall=recall, progress=progress, stop=stop)
            return run.run()

    def check(self, *, fix: bool = False) -> CheckReport:
        """Read everything that is committed and compare.

        ``fix`` makes what is derived again, from kept pixels or from sources that are still there, and
        sets aside what is lost; the report names it.
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
        except StoreError:  # the repair failed and closed the store
            left = report.problems
        # The same damage may be described in other words by now: a part with any left is not mended.
        parts = {problem.part for problem in left}
        was = [replace(problem, fixed=problem.part not in parts) for problem in report.problems]
        new = [problem for problem in left if problem not in report.problems]
        return replace(report, problems=(*was, *aside, *new))

    def _salvage(self) -> list[CheckProblem]:
        """Build the keys again, for which they have to be closed."""
        self._index.close()
        self._session.close()
        try:
            found = salvage(self._session.path, self._session.memory, self._session.wait)
        except BaseException:
            with suppress(EngineError):  # what went wrong first is what is said
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
        """Mend what keeps a store from being opened: a lost manifest, damaged files of RocksDB.

        Returns what it was, or nothing where the store can be opened as it is. Raises
        ``StoreDamagedError`` where only a copy helps. ``wait``: as of ``open``.
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
        """``check`` a store that may be too damaged to be opened: the report then says so.

        ``fix``: it is salvaged first, and what that mended is part of the report. ``wait``: as of
        ``open``, each time that the repair has to write.
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

    def _in_memory(
        self, sources: Sequence[object], name: str | None, metadata: dict[str, Any] | None
    ) -> _InMemory | None:
        """The images of a call of ``ingest``, if they are in memory."""
        most = self._session.memory.decoding
        for source in sources:
            other = unlike(source)
            if other:
                raise UsageError(f"a source is a path, or images in memory, not {other}")
            one = is_image(source)
            if metadata is not None and not one:
                break
            if one:
                try:
                    checked_metadata(metadata)
                except ImageError as error:
                    raise UsageError(str(error)) from None
                # At once: what is not an image is an error before anything is done.
                found = list(members([(name or "", source, metadata)], most, strict=True))
                return _InMemory(found, 1)
            if isinstance(source, PackedBits | np.ndarray):
                array = array_of(source, name or "")
                return _InMemory([array], array.count)
            if name is None and _is_stream(source):
                return _InMemory(members(source, most), None)
        if metadata is not None:
            raise UsageError(
                "metadata is for one image in memory; those of a stream have their own"
            )
        if name is not None:
            raise UsageError("a name is for images in memory; those of a stream have their own")
        return None


class _InMemory:
    """Images in memory, as ``Sources`` gives what is in files."""

    def __init__(self, items: Iterable[Item], count: int | None) -> None:
        self._items = items
        self._count = count

    def count(self) -> int | None:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)


def _counting(
    progress: Callable[[int, int | None], None] | None, count: Callable[[], int | None]
) -> Callable[[int], None] | None:
    """``progress`` for whoever knows what is done and not the total, which is counted if it is shown."""
    if progress is None:
        return None
    total, report = count(), progress
    report(0, total)
    return lambda done: report(done, total)


def _is_stream(source: object) -> TypeGuard[Iterable[object]]:
    """Whether it may be pairs of names and images; a list of paths is not."""
    if isinstance(source, str | os.PathLike | Mapping | io.IOBase):
        return False
    if not isinstance(source, Iterable):
        return False
    listed = isinstance(source, list | tuple | set | frozenset)
    return not (listed and any(isinstance(part, str | os.PathLike) for part in source))


def _paths(sources: Sequence[object]) -> list[str]:
    found = []
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            raise UsageError(
                f"a source is a path, each an argument of its own, or images in memory, "
                f"not a {type(source).__name__}"
            )
        found.append(os.fspath(source))
    return found
