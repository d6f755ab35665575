"""``Store``: everything the command does, as one call each."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.config import (
    DEFAULT_ENCODER,
    DEFAULT_K,
    DEFAULT_MAX_DISTANCE,
    FORMAT_VERSION,
    Limits,
    check_keep_pixels,
    parse_memory,
    whole,
)
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError, EngineError, ImageError, StoreError, UsageError
from engine.images import canonical
from engine.images.packed_bits import PackedBits
from engine.images.pil_images import from_image
from engine.index.maintain import recall_of
from engine.index.operating_point import check_recall
from engine.ingest.dry_run import Plan
from engine.ingest.given_arrays import normalized
from engine.ingest.run import Ingest
from engine.maintenance.backup import Backup
from engine.maintenance.check.run import Check
from engine.maintenance.export import Export
from engine.maintenance.optimize import Optimize
from engine.maintenance.removal_dry_run import RemovalPlan
from engine.maintenance.remove import Remove
from engine.maintenance.repair.run import Repair
from engine.maintenance.salvage import salvage
from engine.records import (
    BackupReport,
    CheckReport,
    Decoded,
    ExportReport,
    ImageRecord,
    IngestPlan,
    IngestReport,
    Kind,
    LookupResult,
    OptimizeReport,
    RemoveReport,
    StoreInfo,
)
from engine.records import Problem as CheckProblem
from engine.search.filters import Ids, Names, SearchedIn, Within
from engine.search.lookup import Lookup, check_k, identical_ids, tier_names
from engine.sources.in_memory import (
    Images,
    OneImage,
    VectorArray,
    array_of,
    is_image,
    members,
    unlike,
)
from engine.sources.items import Item, Reject
from engine.sources.metadata import checked_metadata
from engine.sources.query import Query, open_images
from engine.sources.source_stream import Sources
from engine.storage import ballast, file_names, nofollow
from engine.storage.create import create as make_store
from engine.storage.durable import fsync_dir, replace_file, tree_bytes
from engine.storage.extents import MovedError
from engine.storage.manifest import EncoderEntry
from engine.storage.scan import records_from
from engine.storage.writer import REJECTS, StoreFiles

Stream = Iterable[tuple[str, OneImage] | tuple[str, OneImage, dict[str, Any] | None]]

NO_ENCODER = "none"
_ANSWER_BYTES = 4 + 8  # a score and an id
_RECORDS = 1000  # records read at a time
_LOOKED_UP = 4096  # images in canonical form at a time
_TRIES = 10  # of a question, while another process rewrites what it is about
_PARTS = ("keys", "pixels", "fingerprints", "vectors", "index", "encoder")

T = TypeVar("T")
QueryLike = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | npt.NDArray[Any]
    | Image.Image
    | PackedBits
)
# Which of these a list of may be given by mistake; of numbers it is an array.
_QUERIES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, PackedBits)


class Store:
    """One store directory, open.

    Any number of processes may have it open; one at a time writes, and takes the writer's lock with
    its first write. Each call of a reading method sees everything that was committed before it, by
    whatever process, and whole commits only. A ``Store`` is for one thread at a time: open one for each.

    A ``Store`` belongs to the process that opened it: in a forked child its methods raise
    ``StoreError``, and the child opens one of its own. One that is pickled, for a spawned worker, is
    opened again by path with the same ``read_only`` and ``memory``. It begins as a reader, whatever
    the original writes.

        with Store.open("photos.store", create=True) as store:
            report = store.ingest("photos/")
            result = store.lookup("query.jpg", k=10)
    """

    def __init__(self, files: StoreFiles) -> None:
        """Use ``Store.open``."""
        self._files = files
        self._encoder: OnnxEncoder | None = None
        self._found: Lookup | None = None
        self._finder_of: object = None
        self._searched: SearchedIn | None = None
        self._writing = ""  # the call that is at it
        self._looking = Lock()  # for going over to a newer commit

    # --- opening and closing ----------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        encoder: str | None = None,
        memory: str | int | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Open the store at ``path``.

        ``create``: make it if it is not there, with ``encoder`` ("simclr", the path of a folder that
        ``engine train`` wrote, or "none"). ``memory``: a size such as "2G" (binary units, default 1G,
        at least 128M) that bounds the anonymous memory used. ``limits``: how much is handled at a time;
        the default suits every store.

        Raises ``StoreNotFoundError``, ``StoreFormatError``, ``StoreDamagedError`` or ``EncoderError``.
        """
        budget = parse_memory(memory)
        folder = Path(path)
        if create and not (folder / "MANIFEST.json").exists():
            if read_only:
                raise UsageError("a store cannot be both created and read-only")
            chosen = None if encoder == NO_ENCODER else registry.find(encoder or DEFAULT_ENCODER)
            make_store(folder, budget, (lambda made: _install(made, chosen)) if chosen else None)
        return cls(StoreFiles(folder, budget, read_only=read_only, limits=limits))

    def close(self) -> None:
        """Close it. What was committed is durable already."""
        self._files.close()
        self._encoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[str, bool, int]]:
        """Pickle how to open it again; ``StoreError`` if it is closed, or of another process."""
        _ = self._files.keys
        memory = self._files.memory.total
        return _reopen, (str(self.path.absolute()), self._files.read_only, memory)

    def refresh(self) -> None:
        """See what other processes have committed since; reading methods do so by themselves."""
        self._files.refresh()

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._files.path

    @property
    def has_encoder(self) -> bool:
        """Whether images that are added get vectors, unless ``encoder="none"`` is said."""
        entry = self._files.manifest.encoder
        return entry is not None and not entry.given

    @property
    def has_given_vectors(self) -> bool:
        """Whether the vectors were brought, and not made of images."""
        entry = self._files.manifest.encoder
        return entry is not None and entry.given

    def __len__(self) -> int:
        """The number of images."""
        self._files.follow()
        return self._files.state.images

    # --- writing ----------------------------------------------------------------------------------

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
        one a line, or with ``null`` a null byte behind each. ``keep_pixels``: "auto" keeps bit images of
        up to 64 KiB packed, "yes" other images too, as their files' bytes, "no" none.
        ``progress(done, total)`` is called as items are done; ``stop()`` is asked often; once
        it says so, what is finished is committed and the run ends.

        Raises ``UsageError``, ``StoreLockedError``, ``StoreError``; what was committed stays.
        """
        given: Sources | _InMemory | None = self._in_memory(sources, name, metadata)
        if given is None:
            given = Sources(_paths(sources), files_from=files_from, recursive=recursive, null=null)
        elif len(sources) > 1 or files_from is not None:
            raise UsageError("images in memory are ingested alone: call ingest once for each")
        with self._alone("ingest"):
            self._files.become_writer()  # first: another process may have given it an encoder
            used = self._encoder_for(encoder)
            tell = None
            if progress is not None:
                total, report = given.count(), progress
                report(0, total)

                def tell(done: int) -> None:
                    report(done, total)

            run = Ingest(
                self._files,
                used,
                keep_pixels=keep_pixels,
                workers=workers,
                normalize=normalize,
                progress=tell,
                stop=stop,
            )
            if isinstance(given, _InMemory):
                return run.run(given)
            self._files.add_roots(given.folders)
            found = run.run(given)
            self._files.add_roots(given.folders)  # a list may have named more of them
            return found

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
        What is named and is not in the store is told in the report. An image that comes back later
        gets a new id. The disk is given back by ``optimize``.
        ``progress(done, total)`` is called as it goes; ``stop()`` is asked after each commit.

        Raises ``UsageError``, ``MissingError``, ``StoreLockedError``, ``StoreError``; run again, it
        goes on.
        """
        try:
            wanted = [whole(id_) for id_ in ids]
        except TypeError:
            raise UsageError(f"ids are whole numbers in a list, not {ids!r}") from None
        named = [sources] if isinstance(sources, str | os.PathLike) else sources
        try:
            names = [os.fspath(name) for name in named]
        except TypeError:
            raise UsageError(f"sources are paths in a list, not {sources!r}") from None
        if not wanted and not names and not missing:
            raise UsageError("name what to remove: ids, sources, or what is missing")
        tell = None
        if progress is not None:
            total, report = (None if names or missing else len(set(wanted))), progress
            report(0, total)

            def tell(done: int) -> None:
                report(done, total)

        with self._alone("remove"):
            if dry_run:
                self._files.follow()
                return RemovalPlan(self._files, stop).run(wanted, names, missing=missing)
            run = Remove(self._files, progress=tell, stop=stop)
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
        null: bool = False,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> IngestPlan:
        """What ``ingest`` into the store at ``path`` would read, and how much disk it would take.

        Nothing is written, and no store is made where there is none. ``disk_bytes`` is an upper
        estimate: what is decoded only later may turn out to be a duplicate, or broken.
        """
        check_keep_pixels(keep_pixels)
        given = Sources(_paths(sources), files_from=files_from, recursive=recursive, null=null)
        tell = None
        if progress is not None:
            total, report = given.count(), progress

            def tell(done: int) -> None:
                report(done, total)

        folder = Path(path)
        store = cls.open(folder, read_only=True) if (folder / "MANIFEST.json").exists() else None
        try:
            files = store._files if store is not None else None
            entry = files.manifest.encoder if files is not None else None
            dim, new = entry.dim if entry is not None and not entry.given else 0, 0
            if entry is None and (encoder or files is None) and encoder != NO_ENCODER:
                found = registry.find(encoder or DEFAULT_ENCODER)
                dim, new = found.dim, _installed_bytes(found)
            dim = dim if encoder != NO_ENCODER else 0
            plan = Plan(files, dim=dim, keep_pixels=keep_pixels, disk_bytes=new)
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
        """Build the index anew, give back the disk space of what was removed, bring the keys in order.

        ``recall``: the share of the nearest vectors that searches are to find from now on, unless they
        say it themselves (0.95 at first); what that takes is measured on a sample of the store's own
        vectors. The index is trained again if the store has grown or changed, and vectors are laid out
        in its order; others may go on writing to the store meanwhile, but for the last moment.

        Kept pixels are copied together where a fifth of a file or more is of no image any more, as far
        as there is room on the disk for the copy; the report says what was not done. Readers are not
        disturbed. ``progress(done, total)`` is called as images are looked at; ``stop()`` is asked
        after each commit.

        Raises ``StoreLockedError``, ``StoreError``; run again, it goes on.
        """
        with self._alone("optimize"):
            run = Optimize(self._files, recall=recall, progress=progress, stop=stop)
            return run.run()

    # --- reading ----------------------------------------------------------------------------------

    def lookup(
        self,
        query: QueryLike,
        *,
        k: int = DEFAULT_K,
        tiers: Sequence[str] | None = None,
        min_score: float | None = None,
        max_distance: int = DEFAULT_MAX_DISTANCE,
        recall: float | None = None,
        ids: Ids | None = None,
        source: Names | None = None,
    ) -> LookupResult:
        """Look one image up: a path (or ``FILE.npy#ROW``), a file's bytes, an array, a PIL image, or
        ``PackedBits`` of one image.

        ``tiers``: of "identical", "near" and "similar", by default all the store has. ``k`` bounds
        the similar images, of which ``recall`` are to be found (see ``search_vectors``); near are all
        within ``max_distance``, of 256. A row of vectors is searched for in "similar" alone, where
        images have nothing to compare if the vectors were given.

        ``ids`` and ``source`` restrict it to these images: those with one of ``ids`` (any integers; what
        is not in the store is ignored), and those seen in ``source``, a path or several, as ``remove``
        takes them. ``k`` are still found where so many are left, and a hit names all of its sources.

        Raises ``ImageError`` if the query cannot be read as an image, and ``UsageError`` if the store
        has no image of a source.
        """
        if isinstance(query, list | tuple) and any(isinstance(one, _QUERIES) for one in query):
            raise UsageError(f"a list of {len(query)} queries: use lookup_many")
        within = self._within(ids, source)
        self._files.follow()
        finder = self._finder(k, tiers, min_score, max_distance, recall)
        if isinstance(query, str | os.PathLike):
            found = list(self._queries(finder, os.fspath(query), within))
            if len(found) != 1:
                raise UsageError(f"{query} holds {len(found)} images: use lookup_many")
            result = found[0]
        elif isinstance(query, bytes | bytearray | memoryview):
            result = self._one(finder, Query("bytes", bytes(query), None), within)
        elif isinstance(query, PackedBits):
            result = self._one(finder, Query("bits", None, Decoded(query.only(), "array")), within)
        elif isinstance(query, Image.Image):
            found_ = Decoded(from_image(query), "image")
            result = self._one(finder, Query("image", None, found_), within)
        elif np.ndim(query) == 0:  # as None is to NumPy
            raise UsageError(
                f"a query is a path, a file's bytes, an array, a PIL image or PackedBits, not "
                f"{type(query).__name__}"
            )
        else:
            found_ = Decoded(canonical.from_array(_as_array(query)), "array")
            result = self._one(finder, Query("array", None, found_), within)
        if result.error is not None:
            raise ImageError(f"{result.query}: {result.error}")
        return result

    def lookup_many(
        self,
        queries: Iterable[str | os.PathLike[str]],
        *,
        k: int = DEFAULT_K,
        tiers: Sequence[str] | None = None,
        min_score: float | None = None,
        max_distance: int = DEFAULT_MAX_DISTANCE,
        recall: float | None = None,
        ids: Ids | None = None,
        source: Names | None = None,
    ) -> Iterator[LookupResult]:
        """Look up each IMAGE that the command would take; one that cannot be read has an ``error``.

        ``ids`` and ``source`` as ``lookup`` has them.
        """
        if isinstance(queries, str | os.PathLike | bytes):
            raise UsageError("queries are paths in a list: use lookup for one")
        # A wrong argument is told before the first query.
        self._files.follow()
        self._finder(k, tiers, min_score, max_distance, recall)
        within = self._within(ids, source)
        if within is not None:
            within.ids(self._files)
        for query in queries:
            self._files.follow(within_a_call=True)
            finder = self._finder(k, tiers, min_score, max_distance, recall)
            if not isinstance(query, str | os.PathLike):
                raise UsageError(
                    f"a query of many is a path, not a {type(query).__name__}: use lookup for each"
                )
            yield from self._queries(finder, os.fsdecode(query), within)

    def find_identical(self, images: Images) -> npt.NDArray[np.int64]:
        """The image that each of n images of one size is, verified, or -1: (n,) int64.

        ``images`` is an array (n, H, W) or (n, H, W, 3) of bool or uint8, which is of bits if it holds
        nothing but 0 and 1, or ``PackedBits``, which cost least. For many images this takes a tenth of
        the time of as many calls of ``lookup``; what it does not give are sources: see ``sources``.
        """
        other = unlike(images)
        if other:
            raise UsageError(f"images are an array or PackedBits, not {other}")
        kind = None if isinstance(images, PackedBits) else canonical.array_kind(images)
        self._files.follow()
        return self._again(lambda: self._find_identical(images, kind))

    def search_vectors(
        self,
        queries: npt.ArrayLike,
        k: int = DEFAULT_K,
        *,
        recall: float | None = None,
        ids: Ids | None = None,
        source: Names | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k vectors closest to each query: scores (nq, k) float32 and image ids (nq, k) int64.

        ``queries`` is (nq, dim), finite; the score is the inner product, best first, and the cosine
        where the vectors have length 1: those of encoders, and given ones that were normalized, as
        the queries are then. Where there are fewer than k vectors, scores are -inf and ids -1.
        ``recall`` is the share of the k closest that is to be found, by default the store's own (see
        ``optimize``): how far to look was measured on the store's own vectors. With 1 all are compared.
        ``ids`` and ``source``: the closest among these images only, as ``lookup`` has it.

        Many queries at once are searched on all cores. Several threads may call this at once, and
        search at once, as long as none of them writes with this ``Store``.
        """
        k = check_k(k)
        share = check_recall(recall) if recall is not None else None
        self._files.require_own()  # before a lock that a thread of the parent may have had
        within = None
        if ids is not None or source is not None:
            with self._looking:
                within = self._within(ids, source)  # once: ids may come from what is read only once
        return self._again(lambda: self._search_vectors(queries, k, share, within))

    def _search_vectors(
        self,
        queries: npt.ArrayLike,
        k: int,
        recall: float | None,
        within: Within | None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        with ExitStack() as stack:
            with self._looking:
                self._files.follow()
                if self._files.manifest.encoder is None:
                    raise UsageError(
                        f"{self.path} has no vectors: it was filled with --encoder none"
                    )
                wanted = within.ids(self._files) if within is not None else None
                index, among = self._files.to_search(wanted)
                stack.enter_context(index)  # whatever other threads do now
            block = self._as_queries(queries, index.vectors.dim)
            answer = _ANSWER_BYTES * len(block) * k
            if answer > self._files.memory.total:
                raise UsageError(
                    f"{len(block):,} queries for {k:,} each have an answer of {answer:,} bytes, which "
                    f"is more than the memory that was given: ask for fewer"
                )
            return index.search_ids(block, k, recall=recall, wanted=among)

    def get(self, id_: int) -> ImageRecord:
        """What is known of image ``id_``; ``UsageError`` if there is none."""
        number = _whole(id_, "an id")
        self._files.follow()
        return self._files.get(number)

    def sources(self, id_: int, most: int | None = None) -> list[str]:
        """Where image ``id_`` was seen, at most ``most`` places; all but "memory:" ``lookup`` takes."""
        number = _whole(id_, "an id")
        limit = _whole(most, "most") if most is not None else 1 << 62
        if limit < 0:
            raise UsageError(f"most is 0 or more, not {limit}")
        self._files.follow()
        self._files.get(number)  # UsageError if there is none
        names, _ = self._files.sources_of(number, limit)
        return [os.fsdecode(name) for name in names]

    def records(self, start: int = 1) -> Iterator[ImageRecord]:
        """What is known of each image, in the order of ids, from id ``start`` on.

        They are read about a thousand at a time, each thousand as of the newest commit: what is
        committed while this goes on comes too, nothing comes twice, and the ``Store`` may be used for
        anything else meanwhile.
        """
        start = _whole(start, "an id")
        if start < 1:
            raise UsageError(f"ids begin at 1: start at 1 or more, not {start}")
        return self._records(start)

    def _records(self, start: int) -> Iterator[ImageRecord]:
        while True:
            self._files.follow()
            records = records_from(self._files, start, _RECORDS)
            if not records:
                return
            yield from records
            start = records[-1].id + 1

    def info(self) -> StoreInfo:
        """Counts, bytes by part, encoder and segments."""
        files = self._files
        files.follow()
        entry = files.manifest.encoder
        return StoreInfo(
            path=str(self.path),
            uuid=files.manifest.uuid,
            format=FORMAT_VERSION,
            images=files.state.images,
            vectors=files.state.live_vectors,
            sources=files.state.sources,
            removed=files.state.removed,
            rejects=sum(1 for _ in files.keys.scan("rejects")),
            bytes={part: tree_bytes(self.path / part) for part in (*_PARTS, REJECTS, ballast.NAME)},
            encoder=None
            if entry is None
            else {
                "name": entry.name,
                "dim": entry.dim,
                "generation": entry.generation,
                "fingerprint": entry.fingerprint,
                "normalized": entry.normalized or not entry.given,
            },
            segments=[
                {"rows": s.rows, "bytes": s.bytes, "ordered": s.ordered}
                for s in files.manifest.segments
            ],
            recall=recall_of(files.manifest),
        )

    def check(self, *, fix: bool = False) -> CheckReport:
        """Read everything that is committed and compare.

        ``fix`` makes anew what is derived, from kept pixels or from sources that are still there, and
        sets aside what is lost; the report names it.
        """
        if fix and self._files.read_only:
            raise UsageError(f"{self.path} was opened read-only")
        self._files.follow()
        check = Check(self._files)
        report = check.run()
        if not fix or not report.problems:
            return report
        aside: list[CheckProblem] = []
        try:
            if check.damage.tables:
                aside += self._salvage()
                check = Check(self._files)
                check.run()
            aside += Repair(self._files, self._own_encoder).run(check.damage)
        except (OSError, EngineError) as error:
            aside.append(CheckProblem("repair", f"it could not be finished: {error}"))
        try:
            left = Check(self._files).run().problems
        except StoreError:  # the repair failed and closed the store
            left = report.problems
        # The same damage may be told in other words by now: a part with any left is not mended.
        parts = {problem.part for problem in left}
        was = [replace(problem, fixed=problem.part not in parts) for problem in report.problems]
        new = [problem for problem in left if problem not in report.problems]
        return replace(report, problems=(*was, *aside, *new))

    def _salvage(self) -> list[CheckProblem]:
        """Build the keys again, for which they have to be closed."""
        path, memory, limits = self._files.path, self._files.memory, self._files.limits
        self._files.close()
        try:
            return salvage(path, memory)
        finally:
            self._files = StoreFiles(path, memory, read_only=False, limits=limits)
            self._found = self._searched = None

    # --- copying ----------------------------------------------------------------------------------

    def backup(
        self,
        dest: str | os.PathLike[str],
        *,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> BackupReport:
        """Copy the store to ``dest``, a new or empty folder, while others read it and write to it.

        The copy is a store: the same one, with the same uuid, as it was after one commit that was
        made before or during the call. It takes no lock and writes nothing to this one. Either all
        of it is at ``dest``, durable, or nothing is. ``progress(done, total)`` is told of bytes.

        Raises ``UsageError`` if something is at ``dest``, ``StoreDamagedError``, or ``StoreError``
        (a full disk).
        """
        _ = self._files.keys  # StoreError if it is closed or has failed
        return Backup(self.path, self._files.memory, Path(dest), progress).run()

    def export(
        self,
        dest: str | os.PathLike[str],
        *,
        format: str = "csv",
        vectors: bool = True,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> ExportReport:
        """Write what the store knows to ``dest``, a new or empty folder, for other tools.

        ``images.csv`` has a row for each image, ``sources.csv`` one for each place where one was
        seen; ``format`` may be "parquet". ``vectors.npy`` is (n, dim) float32 and ``vector_ids.npy``
        (n,) int64; a store without an encoder has none. All of it is as of one commit. What the
        columns are, and how names that are no text are written, is in ``engine.maintenance.export``.
        ``progress(done, total)`` is told of images.

        Raises ``UsageError`` if something is at ``dest``, ``StoreDamagedError`` or ``StoreError``;
        then nothing is at ``dest``.
        """
        self._files.follow()
        _ = self._files.keys  # StoreError if it is closed or has failed
        run = Export(self._files, Path(dest), format=format, vectors=vectors, progress=progress)
        return run.run()

    @classmethod
    def salvage(
        cls, path: str | os.PathLike[str], *, memory: str | int | None = None
    ) -> list[CheckProblem]:
        """Mend what keeps a store from being opened: a lost manifest, damaged files of RocksDB.

        Returns what it was, or nothing where the store can be opened as it is. Raises
        ``StoreDamagedError`` where only a copy helps.
        """
        return salvage(Path(path), parse_memory(memory))

    # --- inside -----------------------------------------------------------------------------------

    def _as_queries(self, queries: npt.ArrayLike, dim: int) -> npt.NDArray[np.float32]:
        """Queries as they are compared: (nq, dim) float32; ``UsageError`` if they are something else."""
        try:
            with np.errstate(over="ignore"):
                block = np.asarray(queries, np.float32, order="C")
        # RuntimeError: of a tensor that is to be trained.
        except (TypeError, ValueError, RuntimeError) as error:
            why = unlike(queries) or " ".join(str(error).split())
            raise UsageError(f"queries are no array of numbers: {why}") from None
        if block.ndim != 2 or block.shape[1] != dim:
            one = "(1, d) for one" if block.ndim == 1 else f"(n, {dim})"
            raise UsageError(f"queries of shape {block.shape}: {one} is needed")
        if not np.isfinite(block).all():
            raise UsageError("queries hold values that are NaN, infinite or too large for float32")
        entry = self._files.manifest.encoder
        if entry is not None and entry.normalized:
            block, lengths = normalized(block)
            if (lengths == 0).any():
                at = int(np.argmin(lengths))
                raise UsageError(f"query {at} has length zero, and so no direction")
        return block

    @contextmanager
    def _alone(self, call: str) -> Iterator[None]:
        """One writing call at a time: what one has looked up, another must not change under it."""
        if self._writing:
            raise UsageError(f"{call} was called during {self._writing} of the same store")
        self._writing = call
        try:
            yield
        finally:
            self._writing = ""

    def _in_memory(
        self, sources: Sequence[object], name: str | None, metadata: dict[str, Any] | None
    ) -> _InMemory | None:
        """The images of a call of ``ingest``, if they are in memory."""
        most = self._files.memory.decoding
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
                # At once: what is no image is told before anything is done.
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

    def _finder(
        self,
        k: int,
        tiers: Sequence[str] | None,
        min_score: float | None,
        max_distance: int,
        recall: float | None,
    ) -> Lookup:
        tiers = tier_names(tiers)
        asked = (k, tiers, min_score, max_distance, recall)
        # Kept for the next query, which nearly always asks the same; an encoder may have been adopted.
        if self._finder_of != (asked, self._files.manifest.encoder) or self._found is None:
            self._found = Lookup(
                self._files,
                self._own_encoder,
                k=k,
                tiers=tiers,
                min_score=min_score,
                max_distance=max_distance,
                recall=recall,
            )
            self._finder_of = (asked, self._files.manifest.encoder)
        return self._found

    def _within(self, ids: Ids | None, source: Names | None) -> Within | None:
        """What a search is restricted to; the next one is nearly always to the same sources."""
        if ids is None and source is None:
            return None
        sources = SearchedIn(source) if source is not None else None
        if sources is not None:
            if self._searched is None or self._searched.names != sources.names:
                self._searched = sources
            sources = self._searched
        return Within(ids, sources)

    def _find_identical(self, images: Images, kind: Kind | None) -> npt.NDArray[np.int64]:
        ids = np.empty(len(images), np.int64)
        for at in range(0, len(images), _LOOKED_UP):
            part = images[at : at + _LOOKED_UP]
            if isinstance(part, PackedBits):
                rows = part.canonical()
            else:
                assert kind is not None
                rows = canonical.rows_from_array(part, kind)
            ids[at : at + len(rows)] = identical_ids(self._files, rows)
        return ids

    def _queries(self, finder: Lookup, spec: str, within: Within | None) -> Iterator[LookupResult]:
        for query in open_images(spec, self._files.memory.max_file):
            if isinstance(query, Reject):
                yield LookupResult(os.fsdecode(query.name), error=query.reason)
            else:
                yield self._one(finder, query, within)

    def _one(self, finder: Lookup, query: Query, within: Within | None) -> LookupResult:
        files = self._files
        return self._again(
            lambda: finder.one(query, within.ids(files) if within is not None else None)
        )

    def _again(self, ask: Callable[[], T]) -> T:
        """An answer, asked for once more of a newer commit where that has moved what was looked for."""
        for _ in range(_TRIES):
            try:
                return ask()
            except MovedError:
                with self._looking:
                    self._files.refresh()
        return ask()

    def _own_encoder(self) -> OnnxEncoder:
        entry = self._files.manifest.encoder
        if entry is None or entry.given:
            raise UsageError(f"{self.path} has no encoder")
        if self._encoder is None:
            folder = (self.path / entry.file).parent
            found = registry.read(folder, self._files.encoder_file)
            if found.sha256 != entry.fingerprint:
                raise EncoderError(f"{self.path / entry.file} is not the encoder of this store")
            self._encoder = OnnxEncoder(found)
        return self._encoder

    def _encoder_for(self, wanted: str | None) -> OnnxEncoder | None:
        """The encoder of an ingest: the store's own, if ``wanted`` is no other one."""
        entry = self._files.manifest.encoder
        if wanted == NO_ENCODER or (wanted is None and not self.has_encoder):
            return None
        if wanted is not None:
            if entry is not None and entry.given:
                raise UsageError(
                    f"{self.path} holds vectors that were given, with which those of {wanted} cannot "
                    f"be compared: leave --encoder out, or make another store"
                )
            chosen = registry.find(wanted)
            if entry is None:
                self._files.adopt_encoder(lambda folder: _install(folder, chosen))
                entry = self._files.manifest.encoder
            if entry is None or chosen.sha256 != entry.fingerprint:
                name = entry.name if entry else NO_ENCODER
                raise UsageError(
                    f"{self.path} was made with the encoder {name}, and {wanted} is another one: "
                    f"leave --encoder out, or make another store"
                )
        return self._own_encoder()


def _reopen(path: str, read_only: bool, memory: int) -> Store:
    return Store.open(path, read_only=read_only, memory=memory)


class _InMemory:
    """Images in memory, as ``Sources`` gives what is in files."""

    def __init__(self, items: Iterable[Item], count: int | None) -> None:
        self._items = items
        self._count = count

    def count(self) -> int | None:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)


def _is_stream(source: object) -> TypeGuard[Iterable[object]]:
    """Whether it may be pairs of names and images; a list of paths is not."""
    if isinstance(source, str | os.PathLike | Mapping | io.IOBase):
        return False
    if not isinstance(source, Iterable):
        return False
    listed = isinstance(source, list | tuple | set | frozenset)
    return not (listed and any(isinstance(part, str | os.PathLike) for part in source))


def _whole(value: object, name: str) -> int:
    """A number as somebody gives it; ``UsageError`` for anything else."""
    try:
        return whole(value)
    except TypeError:
        raise UsageError(f"{name} is a whole number, not {value!r:.60}") from None


def _as_array(query: object) -> npt.NDArray[Any]:
    """An image as an array; ``UsageError`` for what is none."""
    try:
        return np.asarray(query)
    except (TypeError, ValueError, RuntimeError) as error:
        why = unlike(query) or " ".join(str(error).split())
        raise UsageError(f"a query is no array of numbers: {why}") from None


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


def _installed_bytes(chosen: EncoderFiles) -> int:
    """What an encoder takes of a store's disk."""
    files = (chosen.model, chosen.model.parent / registry.DESCRIPTION)
    return sum(file.stat().st_size for file in files)


def _install(store: Path, chosen: EncoderFiles) -> EncoderEntry:
    """Copy an encoder into a store, which then outlives upgrades of it and can be moved alone."""
    generation = 1
    folder = store / file_names.ENCODER / str(generation)
    if not file_names.may_be_model(chosen.model.name):
        raise EncoderError(f"the model's file is called {chosen.model.name!r}: rename it")
    try:
        nofollow.make_folder(store, file_names.ENCODER)
        nofollow.make_folder(store, f"{file_names.ENCODER}/{generation}")
        replace_file(folder / chosen.model.name, chosen.model.read_bytes(), store)
        replace_file(
            folder / registry.DESCRIPTION,
            (chosen.model.parent / registry.DESCRIPTION).read_bytes(),
            store,
        )
        for parent in (folder.parent, store):
            fsync_dir(parent)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        # From where it is from now on: files that it needs beside its own are not there.
        if not registry.comes_along(chosen):
            OnnxEncoder(registry.read(folder)).try_out()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    file = (folder / chosen.model.name).relative_to(store)
    return EncoderEntry(chosen.name, generation, chosen.dim, chosen.sha256, str(file))
