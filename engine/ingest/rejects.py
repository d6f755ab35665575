"""What could not be read: rows of the rejects that go with a commit, and lines for people after it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from engine.images import canonical
from engine.ingest.counts import Tally
from engine.sources.items import WITHOUT_METADATA, Member, Problem
from engine.storage.changeset import Chunk
from engine.storage.writer import StoreFiles


class Rejects:
    """The rejects of one run."""

    def __init__(self, store: StoreFiles, tally: Tally) -> None:
        self._store = store
        self._tally = tally
        self._lines: list[dict[str, Any]] = []  # of the chunk that is being made

    def put(self, chunk: Chunk, problems: Sequence[Problem]) -> None:
        """Record what could not be read; a row that says the same as before is not repeated."""
        self._tally.counts.rejected += sum(found.rows for found in problems)
        before = self._store.rejects([found.name for found in problems]) if problems else []
        for found, known in zip(problems, before, strict=True):
            row = {
                "reason": found.reason,
                "mtime_ns": found.mtime_ns,
                "size": found.size,
                "decoder": canonical.DECODER,
            }
            if known != row:
                chunk.rejects.append((found.name, row))
                self._lines.append(_line(found.name, found.reason))

    def put_without_metadata(self, members: Sequence[Member]) -> None:
        """List images that are taken in without their metadata, and why."""
        if members:
            self._tally.note([WITHOUT_METADATA] * len(members))
        self._lines += [
            _line(found.name, f"taken without its metadata: {found.note}") for found in members
        ]

    def log(self) -> None:
        """Tell people of the rejects of a chunk that is committed."""
        lines, self._lines = self._lines, []
        if lines:
            self._store.log_rejects(lines)

    def go_back(self) -> None:
        """Forget those of a chunk that did not fit the disk."""
        self._lines = []


def _line(name: bytes, reason: str) -> dict[str, Any]:
    return {"source": os.fsdecode(name), "reason": reason, "time": time.time()}
