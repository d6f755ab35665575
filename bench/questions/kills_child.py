"""The child that is killed: waits for a line of sources, ingests them, and acknowledges each commit.

It announces a commit before it begins and acknowledges it once it has returned. The parent keeps a
ledger outside the store. So it knows what the store must hold after a kill, and what the kill
interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from unittest import mock

from engine import Store
from engine.config import Limits, MemoryBudget
from engine.errors import EngineError
from engine.index.maintain import IndexUpdater
from engine.storage.changeset import Chunk
from engine.storage.writer import Writer

from ..harness.process import send

OPEN, BEGIN, DONE, INDEX, INDEXED, END = "open", "begin", "done", "index", "indexed", "end"

_WRITE_BUFFERS = 64 << 10  # bytes: RocksDB flushes and compacts every few commits
_BUCKET_BITS = 6
_NEVER = 1 << 40

# Chunks and extents of a few rows, so that kills hit their edges. Readers of the store need these
# limits too, because the store does not record how many rows an extent has.
LOOKING = Limits(
    chunk_files=2,
    chunk_rows=15,
    exact_rows=_NEVER,
    unindexed_rows=_NEVER,
    extent_rows=200,
    extent_bytes=200_000,
)
# Only the child indexes: the parent, which checks the store, must not repair the index first.
WRITING = replace(LOOKING, unindexed_rows=150)


@contextmanager
def small_buffers() -> Iterator[None]:
    """Shrink two constants of the engine: memtables, and buckets of ids, to a few rows."""
    with ExitStack() as stack:
        for module in [
            module for name, module in sys.modules.items() if name.startswith("engine.")
        ]:
            if hasattr(
                module, "BUCKET_BITS"
            ):  # size of the buckets of ids in which runs are searched
                stack.enter_context(mock.patch.object(module, "BUCKET_BITS", _BUCKET_BITS))
        small = property(lambda memory: _WRITE_BUFFERS)
        stack.enter_context(mock.patch.object(MemoryBudget, "write_buffers", small))
        yield


def write(store: str, memory: int) -> None:
    """Ingest the sources in the line on standard input, a JSON list."""
    commit, build = Writer.commit, IndexUpdater.update

    def tell_commit(files: Writer, chunk: Chunk) -> None:
        names = [os.fsdecode(new.name) for new in chunk.names]
        arrays = [[os.fsdecode(name), array.rows] for name, array in chunk.arrays]
        if not names and not arrays:  # a group of unchanged files only
            commit(files, chunk)
            return
        send(what=BEGIN, names=names, arrays=arrays)
        commit(files, chunk)
        send(what=DONE)

    def tell_build(indexing: IndexUpdater, least: int) -> None:
        send(what=INDEX)
        build(indexing, least)
        send(what=INDEXED)

    with (
        mock.patch.object(Writer, "commit", tell_commit),
        mock.patch.object(IndexUpdater, "update", tell_build),
    ):
        line = sys.stdin.readline()
        if line:
            send(what=OPEN)
            with ExitStack() as stack:
                opened = stack.enter_context(Store.open(store, memory=memory, limits=WRITING))
                report = opened.ingest(*json.loads(line))
            send(what=END, **asdict(report))


def main() -> None:
    """Call ``write`` with the process's argument, a JSON object of its arguments."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent ends this process
    try:
        with small_buffers():
            write(**json.loads(sys.argv[1]))
    except EngineError as error:
        send(error=str(error))


if __name__ == "__main__":
    main()
