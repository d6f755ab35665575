"""The child that is killed: waits for a line of sources, ingests them, and tells of each commit.

It tells of a commit before it begins and once it has returned: the parent, who keeps what it was told
outside of the store, then knows what has to be there after a kill, and what the kill hit.
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
from engine.index.maintain import Indexing
from engine.storage.changeset import Chunk
from engine.storage.writer import StoreFiles

from .process import tell

OPEN, BEGIN, DONE, INDEX, INDEXED, END = "open", "begin", "done", "index", "indexed", "end"

_WRITE_BUFFERS = 64 << 10  # bytes: RocksDB flushes every few commits, and compacts what it flushed
_BUCKET_BITS = 6
_NEVER = 1 << 40
# Only whoever is killed builds an index: whoever only looks must not mend it first.
LIMITS = Limits(
    chunk_files=2,
    chunk_rows=15,
    unindexed_rows=_NEVER,
    exact_rows=_NEVER,
    extent_rows=200,
    extent_bytes=200_000,
)
_KILLED = replace(LIMITS, unindexed_rows=150)


@contextmanager
def small_pieces() -> Iterator[None]:
    """Memtables and buckets of a few rows, as ``LIMITS`` has chunks: every kill may hit their edges.

    Whoever opens the store needs it, also for reading: how many ids a bucket has is a constant.
    """
    with ExitStack() as stack:
        for module in [
            module for name, module in sys.modules.items() if name.startswith("engine.")
        ]:
            if hasattr(module, "BUCKET_BITS"):  # of ids, among which the runs of one are searched
                stack.enter_context(mock.patch.object(module, "BUCKET_BITS", _BUCKET_BITS))
        small = property(lambda memory: _WRITE_BUFFERS)
        stack.enter_context(mock.patch.object(MemoryBudget, "write_buffers", small))
        yield


def write(store: str, memory: int) -> None:
    """Ingest what the line on standard input says, a JSON list."""
    commit, build = StoreFiles.commit, Indexing.update

    def tell_commit(files: StoreFiles, chunk: Chunk) -> None:
        names = [os.fsdecode(new.name) for new in chunk.names]
        arrays = [[os.fsdecode(name), array.rows] for name, array in chunk.arrays]
        if not names and not arrays:  # a group of files that are all unchanged
            commit(files, chunk)
            return
        tell(what=BEGIN, names=names, arrays=arrays)
        commit(files, chunk)
        tell(what=DONE)

    def tell_build(indexing: Indexing, least: int) -> None:
        tell(what=INDEX)
        build(indexing, least)
        tell(what=INDEXED)

    with (
        mock.patch.object(StoreFiles, "commit", tell_commit),
        mock.patch.object(Indexing, "update", tell_build),
    ):
        line = sys.stdin.readline()
        if line:
            tell(what=OPEN)
            with Store.open(store, memory=memory, limits=_KILLED) as opened:
                report = opened.ingest(*json.loads(line))
            tell(what=END, **asdict(report))


def main() -> None:
    """Write as the argument says, a JSON object of ``write``'s arguments."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent ends this process
    try:
        with small_pieces():
            write(**json.loads(sys.argv[1]))
    except EngineError as error:
        tell(error=str(error))


if __name__ == "__main__":
    main()
