"""Records what could not be read: table rows with a commit, and lines of ``rejects.jsonl`` after it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.images import decode
from engine.ingest.counts import Tally
from engine.sources.items import Member, Reject
from engine.sources.skip_notes import WITHOUT_METADATA
from engine.storage import nofollow
from engine.storage.changeset import Chunk
from engine.storage.file_names import REJECTS
from engine.storage.safe_folders import ForeignError
from engine.storage.session import Session

_log = logging.getLogger("engine.ingest")


class Rejects:
    """The rejects of one run."""

    def __init__(self, store: Session, tally: Tally) -> None:
        self._store = store
        self._tally = tally
        self._lines: list[dict[str, Any]] = []  # of the current chunk

    def put(self, chunk: Chunk, problems: Sequence[Reject]) -> None:
        """Add rejects to a chunk, except those that the store has already."""
        self._tally.counts.rejected += sum(found.rows for found in problems)
        before = (
            self._store.snapshot.rejects([found.name for found in problems]) if problems else []
        )
        for found, known in zip(problems, before, strict=True):
            row = {
                "reason": found.reason,
                "mtime_ns": found.mtime_ns,
                "size": found.size,
                "decoder": decode.DECODER,
            }
            if known != row:
                chunk.rejects.append((found.name, row))
                self._lines.append(_line(found.name, found.reason))

    def put_without_metadata(self, members: Sequence[Member]) -> None:
        """List images that are ingested without their metadata, with the reason."""
        if members:
            self._tally.note([WITHOUT_METADATA] * len(members))
        self._lines += [
            _line(found.name, f"taken without its metadata: {found.note}") for found in members
        ]

    def log(self) -> None:
        """Append the rejects of a committed chunk to ``rejects.jsonl``, which is for people.

        The table ``rejects`` is what the engine reads, so a failure is only a warning.
        """
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            _append(self._store.path, lines)
        except (OSError, ForeignError) as error:
            _log.warning(
                "%s could not be written: %s; %d rejects are committed but not listed there, "
                "the first of them %s: %s",
                self._store.path / REJECTS,
                error.strerror if isinstance(error, OSError) else error,
                len(lines),
                lines[0]["source"],
                lines[0]["reason"],
            )

    def go_back(self) -> None:
        """Drop the lines of a chunk that did not fit the disk."""
        self._lines = []


def _append(store: Path, lines: Sequence[dict[str, Any]]) -> None:
    fd = nofollow.open_file(store, REJECTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.writelines(_as_json(line) + "\n" for line in lines)


def _as_json(line: dict[str, Any]) -> str:
    """A line for people: letters are not escaped, but whatever could act on a terminal is."""
    text = json.dumps(line, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(line)


def _line(name: bytes, reason: str) -> dict[str, Any]:
    return {"source": os.fsdecode(name), "reason": reason, "time": time.time()}
