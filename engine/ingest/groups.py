"""Groups the items of a run: files of one commit together, arrays and archives alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator

from engine.ingest.commit import Commits
from engine.ingest.counts import Tally
from engine.ingest.stopping import Stopping
from engine.sources.items import (
    ArchiveItem,
    ArrayItem,
    FileItem,
    Item,
    Member,
    Reject,
    Skipped,
    VectorItem,
)

_log = logging.getLogger("engine.ingest")

Group = list[FileItem | Member] | ArrayItem | VectorItem | ArchiveItem


class Groups:
    """Iterates over the groups of one run; commits rejects and counts skipped items itself."""

    def __init__(
        self,
        items: Iterable[Item],
        commits: Commits,
        tally: Tally,
        stopping: Stopping,
        *,
        max_files: int,
        max_bytes: int,
        max_problems: int,
    ) -> None:
        """A group of files ends with the one that reaches ``max_files`` or ``max_bytes``."""
        self.failure: Exception | None = None
        """The error of the iterator of items, to be raised once all items before it are committed."""
        self._items = items
        self._commits = commits
        self._tally = tally
        self._stopping = stopping
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._max_problems = max_problems

    def __iter__(self) -> Iterator[Group]:
        group: list[FileItem | Member] = []
        problems: list[Reject] = []
        size = 0
        for item in self._until_it_fails():
            if self._stopping.asked():
                break
            if isinstance(item, Reject):
                problems.append(item)
                if len(problems) >= self._max_problems:
                    self._commits.reject(problems)
                    problems = []
            elif isinstance(item, Skipped):
                self._tally.counts.skipped += 1
                _log.debug("skipped: %s %s", os.fsdecode(item.name), item.note)
                if item.note:
                    self._tally.note([item.note])
                self._tally.advance(1)
            elif isinstance(item, FileItem | Member):
                group.append(item)
                size += item.memory_bytes * (1 if isinstance(item, FileItem) else 2)
                if len(group) >= self._max_files or size >= self._max_bytes:
                    yield group
                    group, size = [], 0
            else:
                if group:
                    yield group
                    group, size = [], 0
                yield item
        self._commits.reject(problems)
        if group:
            yield group

    def _until_it_fails(self) -> Iterator[Item]:
        try:
            yield from self._items
        except Exception as error:
            self.failure = error
