"""Runs a repair: each kind of damage in turn, in an order in which an interruption loses nothing.

pixels         read again from a source that still has the same image; else the image goes on without
               kept pixels, and its SHA-256 verifies it
fingerprints   computed again from the pixels, kept or in a source; else left as they are
vectors        encoded again from the same pixels; else left as they are, or zeroed if they cannot be
               right; imported ones are read again from their array, if it has not changed
vector ids     made again: the ids of a commit's images are consecutive
segments       built again from the vectors
encoder        copied again from the package, if it is the same one
dead bytes     counted again: kept bytes that belong to no image
removed ids    found again: ids without a record
dead vectors   counted again: vectors of removed images

Damaged bytes are overwritten in place, except pixels, which are appended again in a commit. After an
interruption the next run finds the remaining damage. Damage that cannot be mended does not stop the
other repairs. Nothing is given up while the disk of a source may be away: it stays damaged, and is
reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, StoreDamagedError
from engine.maintenance.check.damage import Damage, DamagedAppend
from engine.maintenance.check.run import Check
from engine.maintenance.reconcile.run import Reconcile
from engine.maintenance.repair.appends import Appends, is_vector_ids
from engine.maintenance.repair.encoder import restore_encoder
from engine.maintenance.repair.fingerprints import mend_fingerprints
from engine.maintenance.repair.index import IndexRepair
from engine.maintenance.repair.outcome import Outcome
from engine.maintenance.repair.pixels import ImagePixels, PixelsRepair
from engine.maintenance.repair.vector_ids import VectorIdsRepair
from engine.maintenance.repair.vectors import VectorMaker, VectorsRepair
from engine.records import Problem
from engine.storage import extents
from engine.storage.session import Session

_log = logging.getLogger("engine.maintenance")


class Repair:
    """One repair of one store, which becomes its writer."""

    def __init__(self, store: Session, encoder: Callable[[], OnnxEncoder]) -> None:
        """``encoder`` loads the store's encoder, or raises ``EncoderError``."""
        self._store = store
        self._outcome = Outcome()
        self._appends = Appends(store)
        self._pixels = ImagePixels(store)
        self._pixels_away: StoreDamagedError | None = None
        self._index = IndexRepair(store)
        maker = VectorMaker(store, encoder, self._pixels)
        self._vectors = VectorsRepair(store, self._appends, maker, self._index, self._outcome)
        self._vector_ids = VectorIdsRepair(store, self._appends, maker, self._index, self._outcome)

    def run(self, damage: Damage) -> list[Problem]:
        """Mend all that can be mended; returns the losses and the remaining damage as problems."""
        store = self._store
        _log.info("repairing %s as of commit %d", store.path, damage.commit)
        store.become_writer(salvage=True)
        # Another process wrote between the check and the lock.
        if store.snapshot.state.commit != damage.commit:
            damage = self._check_again()
        damage = self._reconcile(damage)
        if damage.encoder:
            restore_encoder(store)
        self._count_again(damage)
        if damage.images_known:
            self._keep_pixels(damage)
        vectors_whole = self._mend_all(damage)
        # Otherwise the index would be built from damaged vectors.
        if vectors_whole:
            self._index.drop_damaged(damage.index)
        if damage.unknown_ids:
            self._vector_ids.forget_unknown()
        if damage.unknown_ids or any(is_vector_ids(append.family) for append in damage.appends):
            # Imported vectors may have lost their records.
            self._reconcile(self._check_again())
        if vectors_whole:
            self._index.rebuild()
        for problem in self._outcome.problems:
            _log.info("%s: %s: %s", store.path, problem.part, problem.what)
        return self._outcome.problems

    def _keep_pixels(self, damage: Damage) -> None:
        try:
            PixelsRepair(self._store, self._pixels, self._outcome).run(damage.images)
        except StoreDamagedError as error:
            # Reported with the appends, whose checksums stay wrong.
            self._pixels_away = error

    def _check_again(self) -> Damage:
        again = Check(self._store)
        again.run()
        return again.damage

    def _reconcile(self, damage: Damage) -> Damage:
        """Make the keys agree, if they can be read; returns the remaining damage."""
        if not damage.rows or damage.tables:
            return damage
        whole = not any(is_vector_ids(append.family) for append in damage.appends)
        self._outcome.add(Reconcile(self._store, ids_whole=whole).run())
        return self._check_again()

    def _count_again(self, damage: Damage) -> None:
        """Store the counts that the check found to be wrong."""
        if damage.dead is not None:
            self._store.writer.set_dead(damage.dead)
        if damage.removed is not None:
            self._store.writer.set_removed(damage.removed)
        if damage.removed_vectors is not None:
            self._store.writer.set_removed_vectors(damage.removed_vectors)

    def _mend_all(self, damage: Damage) -> bool:
        """Mend the damaged appends that can be mended; returns whether all vectors are whole then."""
        vectors_whole = True
        # Ids first: they say which image each vector belongs to.
        for append in sorted(damage.appends, key=lambda append: not is_vector_ids(append.family)):
            if append.family == extents.PIXELS and not damage.images_known:
                # Accepting its checksum would hide the damage from the next check.
                continue
            try:
                self._mend(append)
            except (StoreDamagedError, EncoderError) as error:
                part = append.family.inside(append.place.extent)
                self._outcome.not_mended(part, error)
                vectors_whole &= append.family in (extents.FINGERPRINTS, extents.PIXELS)
        return vectors_whole

    def _mend(self, append: DamagedAppend) -> None:
        family = append.family
        if family == extents.FINGERPRINTS:
            mend_fingerprints(self._store, self._appends, self._pixels, self._outcome, append)
        elif is_vector_ids(family):
            self._vector_ids.mend(append)
        elif family != extents.PIXELS:
            self._vectors.mend(append)
        elif self._pixels_away is not None:
            raise self._pixels_away
        self._appends.accept(append)
