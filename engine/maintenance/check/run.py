"""Runs all steps of a check, and reports what they find.

0. keys        every block of every live table of RocksDB, and the files that name the tables; the
               copies of the settings and of the manifest
1. extents     header; length at least the committed one; the xxh64 of every append; each committed
               byte belongs to an append
2. images      each record has its key and each key its record: the sums over both are equal, or else
               each is looked up; kept pixels lie in committed bytes; the images whose pixels lie in a
               damaged append; dead bytes are those of no image; the number of images is the committed
               one, and with the removed ones that of all ids given; exactly the ids without a record
               are removed
3. sources     each name has an image that names it back; no run names only removed images; the number
               of sources is the committed one
4. vectors     as many ids as vectors, none twice, each of a known image; the number of vectors of
               removed images is the committed one; the encoder can be loaded, or there are as many
               vectors without pixels as records of them
5. segments    checksum
6. leftovers   bytes that an interrupted writer left behind: not damage, and gone with the next write

The check keeps its findings as ``Damage`` too, for ``engine.maintenance.repair``.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from contextlib import closing

from engine.errors import StoreDamagedError
from engine.maintenance.check.damage import Damage
from engine.maintenance.check.extents import ExtentsCheck
from engine.maintenance.check.findings import Findings
from engine.maintenance.check.images import ImagesCheck
from engine.maintenance.check.index import check_index
from engine.maintenance.check.keys import KeysCheck
from engine.maintenance.check.known_images import KnownImages
from engine.maintenance.check.sources import SourcesCheck
from engine.maintenance.check.vectors import VectorsCheck
from engine.maintenance.reembed.staging import staged_bytes
from engine.records import CheckReport, Problem
from engine.storage import manifest
from engine.storage.rows import RowError
from engine.storage.session import Session
from engine.storage.staged_space import staged_in

_BAD = (ValueError, KeyError, TypeError, IndexError, OverflowError, AttributeError, struct.error)
_log = logging.getLogger("engine.maintenance")


def unreadable(error: StoreDamagedError) -> CheckReport:
    """The report on a store that is too damaged to be opened."""
    return CheckReport(0, 0, 0, 0.0, (Problem("keys", str(error)),))


class Check:
    """One check of one store."""

    def __init__(self, store: Session) -> None:
        self._store = store
        self._findings = Findings(store.snapshot.state.commit)

    @property
    def damage(self) -> Damage:
        """The damage found, for a repair."""
        return self._findings.damage

    def run(self) -> CheckReport:
        """Run every step; returns the report."""
        started = time.perf_counter()
        store, findings = self._store, self._findings
        known = KnownImages(store.snapshot.state.next_id)
        keys = KeysCheck(store, findings)
        sources = SourcesCheck(store, findings, known)
        vectors = VectorsCheck(store, findings, known)
        with closing(ImagesCheck(store, findings, known)) as images:
            self._step(keys.files, "keys")
            self._step(keys.copies, "keys")
            self._step(ExtentsCheck(store, findings).run, "keys")
            self._step(images.records, "keys")
            self._step(images.removed, "keys")
            self._step(sources.files, "keys")
            self._step(sources.names, "keys")
            self._step(sources.runs, "keys")
            self._step(vectors.encoder, "encoder")
            self._step(vectors.vectors, "vectors")
            self._step(lambda: check_index(store, findings), manifest.INDEX_FOLDER)
        try:
            leftover = 0 if store.being_written() else store.snapshot.leftover_bytes()
        except StoreDamagedError:  # the manifest is wrong, which a step has reported
            leftover = 0
        staged = staged_in(store.path, store.snapshot.manifest)
        report = CheckReport(
            images=known.count,
            vectors=store.snapshot.vector_rows,
            bytes_read=findings.bytes_read,
            seconds=round(time.perf_counter() - started, 3),
            problems=tuple(findings.problems),
            leftover_bytes=leftover,
            reembed_bytes=staged_bytes(store.path, staged) if staged is not None else 0,
        )
        _log.info("checked %s: %d problems", store.path, len(report.problems))
        return report

    def _step(self, step: Callable[[], None], part: str) -> None:
        """Run one step; if it cannot read something, report that as a problem of ``part``."""
        findings = self._findings
        try:
            step()
        # The row can be read, but is not valid.
        except RowError as error:
            findings.report("keys", str(error))
        # A table or file cannot be read at all.
        except StoreDamagedError as error:
            findings.damage.tables |= part == "keys"
            findings.report(part, str(error))
        # Unpacking an invalid row may raise these.
        except _BAD as error:
            findings.report(part, f"a row cannot be read ({type(error).__name__}: {error})")
            findings.damage.rows = True
