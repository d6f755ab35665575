"""Updates the index during an ingest; if that fails, the ingest goes on."""

from __future__ import annotations

import logging

from engine.errors import StoreDamagedError
from engine.index.background import BackgroundWork
from engine.index.maintain import IndexUpdater
from engine.ingest.stopping import Stopping
from engine.memory import PeakMemory
from engine.stop import StoppedError
from engine.storage.durable import UnreadableError
from engine.storage.session import Session

_log = logging.getLogger("engine.ingest")


class IndexUpdates:
    """Indexes the vectors that a run adds."""

    def __init__(self, store: Session, stopping: Stopping, peak: PeakMemory) -> None:
        self._store = store
        self._stopping = stopping
        self._peak = peak

    def update(self, least: int) -> None:
        """Index the vectors that are not in a segment, if there are at least ``least`` of them."""
        if not self._store.snapshot.vector_rows or self._stopping.asked():
            return
        work = BackgroundWork(
            self._store.memory, lambda rows: self._peak.sample(), self._stopping.asked
        )
        try:
            IndexUpdater(self._store, work).update(least)
        except StoppedError:
            _log.warning("the index was not built: the next ingest or optimize builds it")
        except (OSError, MemoryError, StoreDamagedError, UnreadableError) as error:
            # The index is derived: the vectors are committed, and are searched exactly without it.
            what = error.strerror if isinstance(error, OSError) else str(error)
            what = what or type(error).__name__
            _log.warning("the index was not built: %s; lookups go on without it", what)
