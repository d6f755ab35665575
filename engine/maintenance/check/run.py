"""Runs all steps of a check, and reports what they find.

0. keys        every block of every live table of RocksDB, and what names them; the copies of the
               settings and of the manifest
1. extents     header; length at least what is committed; the xxh64 of every append, and that all
               bytes are of some append
2. images      each record has its key and each key its record: their sums are equal, else they are
               looked for one by one; kept pixels lie in committed bytes, and where an append is
               damaged, which images' are; what is kept of no image is what counts as dead; their
               number is the committed one, and with those removed that of all ids given; those
               without a record are the removed ones, and no others
3. sources     each name has an image that names it back; no run is of removed images only; their
               number is the committed one
4. vectors     as many ids as vectors, none twice, each of a known image; those of removed images are as
               many as count as such; their encoder can be loaded, or as many are imported as have a
               record
5. segments    checksum
6. leftovers   bytes that an interrupted writer left behind: no damage, and gone with the next write

What it finds it also keeps as ``Damage``, for ``engine.maintenance.repair``.
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
from engine.records import CheckReport, Problem
from engine.storage import manifest
from engine.storage.rows import RowError
from engine.storage.session import Session

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
        """What was found broken, for a repair."""
        return self._findings.damage

    def run(self) -> CheckReport:
        """Look at everything."""
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
        except StoreDamagedError:  # the manifest names what cannot be, which was said
            leftover = 0
        report = CheckReport(
            images=known.count,
            vectors=store.snapshot.vector_rows,
            bytes_read=findings.bytes_read,
            seconds=round(time.perf_counter() - started, 3),
            problems=tuple(findings.problems),
            leftover_bytes=leftover,
        )
        _log.info("checked %s: %d problems", store.path, len(report.problems))
        return report

    def _step(self, step: Callable[[], None], part: str) -> None:
        """Run one step; what it cannot read is a problem of ``part``, and the next step runs."""
        findings = self._findings
        try:
            step()
        # The row can be read, but is not valid.
        except RowError as error:
            findings.report("keys", str(error))
        except StoreDamagedError as error:  # a table or file that cannot be read at all
            findings.damage.tables |= part == "keys"
            findings.report(part, str(error))
        # What unpacking a row that is not valid may raise.
        except _BAD as error:
            findings.report(part, f"a row cannot be read ({type(error).__name__}: {error})")
            findings.damage.rows = True
