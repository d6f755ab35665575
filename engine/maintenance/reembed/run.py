"""Gives the images of a store the vectors of another encoder, or those that they lack.

    which images, and are their pixels there? → pictures → vectors, staged → late images → one commit

All but the end runs without the writer's lock. Finished chunks are durable, so a run that was killed
goes on where it was. If the encoder is the store's own, only images without a vector are embedded, in
ordinary commits.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from engine.config import check_workers, cpu_count
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.registry import EncoderFiles
from engine.errors import MissingError, StoreError, StoreLockedError, UsageError
from engine.ingest.index_updates import IndexUpdates
from engine.ingest.stopping import Stopping
from engine.maintenance.reembed.embedding import Embedding, Numbers, Rows
from engine.maintenance.reembed.pictures import StoredPictures
from engine.maintenance.reembed.staging import Install, Staging, described
from engine.maintenance.reembed.survey import PixelSurvey, id_batches
from engine.memory import PeakMemory
from engine.records import ReembedReport
from engine.stop import StoppedError
from engine.storage import ballast, staged_space
from engine.storage.bitmap import IdSet
from engine.storage.changeset import Chunk, NewVectors
from engine.storage.disk import disk
from engine.storage.session import Session
from engine.storage.space_switch import switch_space
from engine.storage.staged_space import StagedSpace
from engine.storage.staged_vectors import StagedVectors

_EXAMPLES = 5
_SLACK = 16 << 20  # bytes: the commit, the manifest, and what the keys need for a while
_WAIT_SECONDS = 0.2
_IDS = 1 << 16  # ids of vectors read at a time
_log = logging.getLogger("engine.maintenance")


class Reembed:
    """One reembed of one store. ``plan`` or ``run`` may be called once."""

    def __init__(
        self,
        store: Session,
        chosen: EncoderFiles,
        install: Install,
        *,
        installed_bytes: int = 0,
        allow_missing: bool = False,
        workers: int | None = None,
        device: str = "cpu",
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``install`` copies the encoder, of ``installed_bytes``, into a store; it runs on ``device``.

        ``allow_missing``: switch even if images lose their vectors. ``progress(done, total)`` counts
        images. ``stop()`` is polled often; what is finished then stays for the next run.
        ``UsageError`` for a store of imported vectors.
        """
        check_workers(workers)
        if store.snapshot.space.is_imported:
            raise UsageError(
                f"{store.path} holds imported vectors, which no encoder can make from their rows: "
                f"import the vectors of the other model into another store"
            )
        self._store = store
        self._chosen = chosen
        self._staging = Staging(store, chosen, install)
        self._installed_bytes = installed_bytes
        self._allow_missing = allow_missing
        self._workers = workers or cpu_count()
        self._device = device
        self._progress = progress or (lambda done, total: None)
        self._stopping = Stopping(stop, store.limits.finishing_seconds)
        self._peak = PeakMemory()
        self._encoder: OnnxEncoder | None = None
        self._failed = IdSet.none(0)  # images that cannot be embedded
        self._done = self._total = 0
        self._started = time.perf_counter()
        self._report = ReembedReport(
            chosen.name, store.snapshot.state.images, 0, 0, 0, 0, (), False, 0.0, 0.0, 0, 0
        )

    def plan(self) -> ReembedReport:
        """Report what a run would do, and write nothing."""
        own = self._is_own()
        kept = (self._having() if own else self._staging.ids()).both(self._alive())
        todo = self._alive().without(kept)
        survey = PixelSurvey(self._store.snapshot, self._go_on)
        try:
            self._note_missing(survey.unreachable(todo))
        except StoppedError:
            self._note(interrupted=True)
        self._note(kept=len(kept), disk_bytes=self._need(len(todo), own=own), dry_run=True)
        return self._finished()

    def run(self) -> ReembedReport:
        """Embed all images and switch to their vectors; returns the report.

        Raises ``MissingError`` if images would lose their vectors, ``EncoderError``, ``UsageError``,
        ``StoreLockedError`` or ``StoreError``. Finished chunks stay for the next run.
        """
        if self._store.read_only:
            raise UsageError(f"{self._store.path} was opened read-only")
        try:
            with self._peak.sampled(), self._failing_disk():
                if self._is_own():
                    self._fill()
                else:
                    with staged_space.locked(self._store.path):
                        self._replace()
        except StoppedError:
            self._note(interrupted=True)
        return self._finished()

    # --- reporting --------------------------------------------------------------------------------

    def _note(self, **fields: object) -> None:
        self._report = replace(self._report, **fields)  # type: ignore[arg-type]

    def _finished(self) -> ReembedReport:
        seconds = time.perf_counter() - self._started
        return replace(
            self._report,
            images=self._store.snapshot.state.images,
            seconds=round(seconds, 3),
            images_per_second=round(self._report.embedded / seconds, 1) if seconds else 0.0,
            free_bytes=disk().free(self._store.path),
            peak_memory_bytes=self._peak.anonymous,
        )

    def _begin_count(self, done: int, todo: int) -> None:
        self._done, self._total = done, done + todo
        self._progress(self._done, self._total)

    def _count(self, images: int) -> None:
        self._done += images
        self._total = max(self._total, self._done)
        self._progress(self._done, self._total)
        self._go_on()

    def _go_on(self) -> None:
        if self._stopping.asked():
            raise StoppedError

    @contextlib.contextmanager
    def _failing_disk(self) -> Iterator[None]:
        """Say in one line that the disk is full, or fails. What is finished stays."""
        try:
            yield
        except OSError as error:
            if not ballast.is_full(error):
                raise StoreError(
                    f"{self._store.path} cannot be written: {error.strerror or error}: the finished "
                    f"vectors stay; mend the cause and run the command again"
                ) from None
            raise StoreError(
                f"the disk of {self._store.path} is full: the finished vectors stay; make room and run "
                f"the command again, or drop them with 'engine reembed --discard'"
            ) from None

    # --- which images -----------------------------------------------------------------------------

    def _is_own(self) -> bool:
        """Whether the chosen encoder is the store's, with the same inputs and the same text tower."""
        snapshot, chosen = self._store.snapshot, self._chosen
        entry = snapshot.space.encoder
        if entry is None or entry.fingerprint != chosen.sha256:
            return False
        folder = (self._store.path / entry.file).parent
        found = registry.read(folder, snapshot.encoder_file)
        return described(found) == described(chosen)

    def _alive(self) -> IdSet:
        """The ids of all images."""
        snapshot = self._store.snapshot
        every = IdSet.none(snapshot.state.next_id)
        every.add_span(1, snapshot.state.next_id - 1)
        return every.without(snapshot.removed_ids())

    def _having(self) -> IdSet:
        """The images that have a live vector."""
        snapshot = self._store.snapshot
        found = IdSet.none(snapshot.state.next_id)
        if snapshot.space.exists:
            vectors = snapshot.open_vectors()
            try:
                for ids in vectors.id_blocks(0, vectors.rows, _IDS):
                    found.add(ids)
            finally:
                vectors.close()
        return found.without(snapshot.dead_ids())

    def _note_missing(self, gone: IdSet) -> None:
        """Note the images that have no pixels, or for which the encoder gives no vector."""
        lost = gone.both(self._having())
        # Those that would lose a vector are named first.
        named = lost if len(lost) else gone
        some = next(id_batches(named, _EXAMPLES)).tolist() if len(named) else []
        survey = PixelSurvey(self._store.snapshot, self._go_on)
        examples = tuple(survey.example(id_) for id_ in some)
        self._note(unreachable=len(gone), lost=len(lost), examples=examples)

    def _refuse(self, gone: IdSet) -> None:
        """Note images that cannot be embedded; ``MissingError`` if some would lose their vectors."""
        self._note_missing(gone)
        lost = self._report.lost
        if lost and not self._allow_missing:
            shown = ", ".join(self._report.examples)
            more = ", …" if lost > len(self._report.examples) else ""
            raise MissingError(
                f"{lost:,} of {self._store.snapshot.state.images:,} images would lose their vectors, "
                f"because their pixels are neither kept nor in a source any more ({shown}{more}): bring "
                f"the sources back, or give these vectors up with allow_missing=True"
            )

    def _need(self, todo: int, *, own: bool) -> int:
        """Bytes of disk that are still needed, at most."""
        encoder = 0 if own or not self._staging.needs_encoder() else self._installed_bytes
        return todo * (4 * self._chosen.dim + 8) + encoder + _SLACK

    def _require_room(self, todo: int, *, own: bool) -> None:
        need, free = self._need(todo, own=own), disk().free(self._store.path)
        self._note(disk_bytes=need)
        if free < need:
            raise StoreError(
                f"the vectors of {todo:,} images need {need:,} bytes on the disk of "
                f"{self._store.path}, and {free:,} are free: make room"
            )

    # --- the store's own encoder ------------------------------------------------------------------

    def _fill(self) -> None:
        """Embed the images without a vector, in commits."""
        self._store.become_writer(stop=self._stopping.asked)
        # Another process may have replaced the encoder while this one waited.
        if not self._is_own():
            raise StoreError(f"{self._store.path} has another encoder now: run the command again")
        having = self._having()
        todo = self._alive().without(having)
        self._require_room(len(todo), own=True)
        self._note(kept=len(having), switched=True)
        self._begin_count(len(having), len(todo))
        self._refuse(self._embed(todo, self._commit))
        self._index()

    def _commit(self, ids: Numbers, vectors: Rows) -> None:
        self._store.writer.commit(Chunk(image_vectors=NewVectors(ids, vectors)))

    def _index(self) -> None:
        store = self._store
        IndexUpdates(store, self._stopping, self._peak).update(store.limits.exact_rows)

    # --- another encoder --------------------------------------------------------------------------

    def _replace(self) -> None:
        """Stage the vectors of all images, then switch to them."""
        store = self._store
        # Another reembed may have ended before the lock was ours. An older commit would not do: what it
        # calls staged may be live by now.
        store.refresh()
        todo = self._alive().without(self._staging.ids())
        self._refuse(PixelSurvey(store.snapshot, self._go_on).unreachable(todo))
        if self._report.unreachable:
            _log.warning(
                "images whose pixels are gone: %d, of which %d have a vector now",
                self._report.unreachable,
                self._report.lost,
            )
        self._require_room(len(todo), own=False)
        vectors = self._staging.open(self._go_on)
        try:
            self._note(kept=vectors.rows)
            self._begin_count(vectors.rows, len(self._left(vectors)))
            self._rounds(vectors)
            appends = vectors.prove(step=self._go_on)
            proved = vectors.chunks
            self._lock(vectors)
            # No other process writes now, so these are the last images.
            self._embed_left(vectors)
            self._refuse(self._left(vectors))
            appends += vectors.prove(proved)
            switch_space(store.writer, vectors, appends)
        finally:
            vectors.close()
        _log.info("%s: switched to the encoder %s", store.path, self._chosen.name)
        self._note(switched=True)
        self._index()

    def _left(self, vectors: StagedVectors) -> IdSet:
        """The images without a staged vector."""
        return self._alive().without(vectors.ids(self._store.snapshot.state.next_id))

    def _rounds(self, vectors: StagedVectors) -> None:
        """Embed what is there, and what comes in meanwhile, until little is left for the lock."""
        while self._embed_left(vectors):
            self._store.follow()
            self._require_same(vectors.staged)
            if self._late(vectors) <= self._store.limits.chunk_files:
                break
        self._refuse(self._failed.both(self._left(vectors)))

    def _embed_left(self, vectors: StagedVectors) -> bool:
        """Embed the images without a staged vector, each once; returns whether there were any."""
        todo = self._left(vectors).without(self._failed)
        if not len(todo):
            return False
        self._failed = self._failed.union(self._embed(todo, vectors.append))
        return True

    def _late(self, vectors: StagedVectors) -> int:
        """The number of images that came in since the last round."""
        return len(self._left(vectors).without(self._failed))

    def _lock(self, vectors: StagedVectors) -> None:
        """Become the writer; while another process is, embed the images that it adds."""
        warned = False
        while True:
            try:
                self._store.become_writer(wait=0.0)
                self._require_same(vectors.staged)
                return
            except StoreLockedError:
                if not warned:
                    _log.warning("waiting for the process that writes to %s", self._store.path)
                warned = True
            self._go_on()
            time.sleep(_WAIT_SECONDS)
            self._store.follow(within_a_call=True)
            self._require_same(vectors.staged)
            if self._late(vectors) > self._store.limits.chunk_files:
                self._rounds(vectors)

    def _require_same(self, staged: StagedSpace) -> None:
        """Raise ``StoreError`` if another process has given the store other vectors."""
        if self._store.snapshot.space.generation != staged.replaces:
            raise StoreError(
                f"another process has changed the encoder of {self._store.path}: run the command again"
            )

    # --- embedding --------------------------------------------------------------------------------

    def _embed(self, todo: IdSet, keep: Callable[[Numbers, Rows], None]) -> IdSet:
        """Embed images; returns those that cannot be embedded."""
        if not len(todo):
            return todo
        memory, limits = self._store.memory, self._store.limits
        if self._encoder is None:
            self._encoder = OnnxEncoder(self._chosen, device=self._device, memory=memory)
        needs = self._chosen.name, self._chosen.needs
        pictures = StoredPictures(
            self._store,
            self._chosen.preprocessing,
            IdSet(todo.bits.copy(), todo.size),
            max_decoding=memory.beside_encoder(*needs),
            workers=self._workers,
            go_on=self._go_on,
        )
        embedding = Embedding(
            self._encoder,
            keep,
            size=todo.size,
            batch=min(memory.encoder_batch(*needs), limits.chunk_files),
            chunk=limits.chunk_files,
            stop=self._stopping.late,
        )
        before = self._report
        try:
            embedding.take(pictures, self._count)
        finally:
            self._note(
                embedded=before.embedded + embedding.done,
                without_vector=before.without_vector + len(embedding.without),
            )
        # Pixels that a newer commit has moved are found there by the next round.
        return embedding.without if pictures.moved else pictures.left.union(embedding.without)
