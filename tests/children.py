"""What tests share whose children write to a store: small tables, reports of commits, their lines."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

import pytest
from rocksdict import DBCompactionStyle

from engine.config import MemoryBudget
from engine.storage.changeset import Chunk
from engine.storage.rocks import options
from engine.storage.writer import Writer

SILENCE = 120  # seconds after which a child that says nothing is taken to be stuck
LOG_BYTES = 128 << 10


def small_tables(patch: pytest.MonkeyPatch, write_buffers: int = 16 << 20) -> None:
    """Memtables and a log of a few chunks. ``write_buffers``: bytes, of all tables together."""
    patch.setattr(MemoryBudget, "write_buffers", property(lambda memory: write_buffers))
    database, tables = options.database_options, options.table_options

    def small_log(*arguments: Any) -> Any:
        made = database(*arguments)
        made.set_max_total_wal_size(LOG_BYTES)
        return made

    def merged(*arguments: Any) -> Any:
        made = tables(*arguments)
        # Thousands of flushes otherwise leave thousands of files, and opening them is all that a
        # reader does. So there are more compactions, too.
        made.set_compaction_style(DBCompactionStyle.universal())
        made.set_level_zero_file_num_compaction_trigger(2)
        return made

    patch.setattr(options, "database_options", small_log)
    patch.setattr(options, "table_options", merged)


def report_commits(report: Callable[[Writer, Chunk], None]) -> None:
    """Call ``report`` after each commit of this process, for as long as it lives."""
    commit = Writer.commit

    def reported(writer: Writer, chunk: Chunk) -> None:
        commit(writer, chunk)
        report(writer, chunk)

    Writer.commit = reported  # type: ignore[method-assign]


def until_input_ends() -> threading.Event:
    """Set once standard input ends, which is how a parent asks its child to stop."""
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    return stop


class Lines:
    """The lines of a child, as they come."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.lines: list[bytes] = []
        self._stream = stream
        self._rest = b""

    def hear(self, lines: int = 0) -> bool:
        """Take what has been said by now; wait for so many lines. Whether the child goes on."""
        while True:
            wait = SILENCE if len(self.lines) < lines else 0
            if not select.select([self._stream], [], [], wait)[0]:
                assert len(self.lines) >= lines, "the child is stuck"
                return True
            part = os.read(self._stream.fileno(), 1 << 16)
            if not part:
                assert len(self.lines) >= lines, "the child ended"
                return False
            *more, self._rest = (self._rest + part).split(b"\n")
            self.lines += more

    def hear_all(self) -> None:
        """Take what is said until the child ends."""
        *more, self._rest = (self._rest + self._stream.read()).split(b"\n")
        self.lines += more
