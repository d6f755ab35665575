"""The parent's side of the process that is killed: starts it, reads its messages, kills it."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from ..harness.errors import BenchError, WrongAnswerError
from ..harness.process import PACKAGE, environment, python
from .kills_child import BEGIN, DONE, END
from .kills_ledger import Chunk, Ledger


class Writer:
    """A process that writes to a store. Its acknowledged commits go into the ledger."""

    def __init__(self, folder: Path, store: Path, memory: int, ledger: Ledger) -> None:
        self._ledger = ledger
        self._errors = folder / "errors.txt"
        self.at = ""  # the last step that it reported
        self.in_flight: Chunk | None = None  # begun and not acknowledged
        self.commits = 0  # acknowledged
        self.finished: dict[str, Any] | None = None  # its report, if it has finished
        spec = {"store": str(store), "memory": memory}
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                python(f"{PACKAGE}.questions.kills_child", json.dumps(spec)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # FAISS's threads would wait for each other. TMPDIR lies in this folder, so leftovers
                # of a kill are deleted with it.
                env=environment() | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
            )

    def begin(self, sources: list[str]) -> None:
        """Let the process ingest these sources."""
        print(json.dumps(sources), file=self._process.stdin, flush=True)

    def hear(self) -> bool:
        """Handle one message; false if there are no more, or only one truncated by a kill."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            return False
        message = json.loads(line)
        if "error" in message:
            raise WrongAnswerError(f"a child could not write: {message['error']}")
        self.at = message["what"]
        if self.at == BEGIN:
            arrays = tuple((name, rows) for name, rows in message["arrays"])
            self.in_flight = Chunk(tuple(message["names"]), arrays)
        elif self.at == DONE and self.in_flight is not None:
            self._ledger.add(self.in_flight)
            self.in_flight = None
            self.commits += 1
        elif self.at == END:
            self.finished = message
        return True

    def kill(self) -> None:
        """Kill the process; ``BenchError`` if it had already ended."""
        self._process.kill()
        if self._process.wait() != -signal.SIGKILL or self.finished is not None:
            raise BenchError(f"a child ended by itself: {self.last_words()}")
        while self.hear():  # messages from before the kill
            pass

    def last_words(self) -> str:
        """The last line on its standard error."""
        return self._errors.read_text("utf-8", "replace").strip().rpartition("\n")[2]

    def end(self) -> None:
        """Make sure that the process has ended, and close its pipes."""
        self._process.kill()
        self._process.communicate()
