"""Child processes that measure: started fresh, watched from outside, ended with their parent.

A child is a module of this package (``suite.store_child``), run with one JSON argument. It writes
JSON objects to standard output, one a line: ``{"start": true}`` when its measurement begins,
``{"done": n}`` as progress, and last ``{"result": {...}}`` or ``{"error": "...", "wrong": bool}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.errors import EngineError

from . import memory
from .errors import BenchError, WrongAnswerError

# ``bench``, or ``engine._bench`` in an installed package.
PACKAGE = __name__.removesuffix(".harness.process")
# The folder that has the package, or the checkout.
ROOT = Path(__file__).resolve().parents[PACKAGE.count(".") + 2]
_SAMPLE_SECONDS = 0.01
_PARENT = "ENGINE_BENCH_PARENT"  # the number of a pipe's descriptor; its end means the parent ended


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a child, and the peaks of its memory in bytes.

    Anonymous memory counts from its ``start`` message on, resident memory from its birth.
    """

    result: dict[str, Any]
    anonymous_peak: int
    resident_peak: int = 0


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` in a fresh interpreter of the same environment."""
    # -P: do not import a folder called engine or bench in the user's current folder.
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, changed so that children import the same packages."""
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), path] if path else [str(ROOT)])}


def run_child(
    module: str,
    spec: Mapping[str, object],
    done: Callable[[int], None] | None = None,
    *,
    within: Sequence[str] = (),
) -> Finished:
    """Run a module of this package to its end; ``done`` gets its progress.

    ``within`` is a command that becomes the command behind it (``memory_limit.Limit.within``).

    This process reads the child's memory every 10 ms. The child does not sample itself, so neither the
    GIL nor the measuring hides a peak. Raises ``BenchError`` if it fails.
    """
    with tempfile.TemporaryFile() as errors, _held_by_parent() as parent:
        child = subprocess.Popen(
            [*within, *python(f"{PACKAGE}.{module}", json.dumps(spec))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment() | {_PARENT: str(parent)},
            pass_fds=[parent],
        )
        assert child.stdout is not None
        with child.stdout as output:
            try:
                result, peak, resident = _watch(child.pid, output, done or (lambda count: None))
                status = child.wait()
            finally:  # Ctrl-C here ends the child too
                child.kill()
                child.wait()
        if result is None or status:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise BenchError(f"a measurement ended with {how}: {last or 'out of memory?'}")
    return Finished(result, peak, resident)


def answer(work: Callable[..., object] | Mapping[str, Callable[..., object]]) -> None:
    """Call ``work`` with this process's argument, a JSON object of its arguments; for children.

    If there are several jobs, the argument names one: ``{"job": "ask", ...}``.
    """
    # The parent ends this process; a Ctrl-C that reaches both must not print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = os.environ.pop(_PARENT, "")  # not for this process's own children
    if parent:
        threading.Thread(target=_end_with_parent, args=(int(parent),), daemon=True).start()
    try:
        given = json.loads(sys.argv[1])
        job = work if callable(work) else work[given.pop("job")]
        send(result=job(**given))
    except EngineError as error:
        send(error=str(error), wrong=isinstance(error, WrongAnswerError))


@contextlib.contextmanager
def _held_by_parent() -> Iterator[int]:
    """A descriptor for a child to read; it ends when this process ends, however that happens."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _end_with_parent(parent: int) -> None:
    os.read(parent, 1)  # nothing is ever written
    os._exit(1)


def send(**message: object) -> None:
    """Send a message to the parent; for children."""
    print(json.dumps(message), flush=True)


def _watch(
    pid: int, output: IO[bytes], done: Callable[[int], None]
) -> tuple[dict[str, Any] | None, int, int]:
    result: dict[str, Any] | None = None
    peak = resident = 0
    for message in _messages(output):
        peak = max(peak, memory.anonymous(pid))
        resident = max(resident, memory.peak_resident(pid))
        if message is None:
            continue
        if "start" in message:
            peak = 0
        elif "done" in message:
            done(message["done"])
        elif "error" in message:
            raise (WrongAnswerError if message["wrong"] else BenchError)(message["error"])
        elif "result" in message:
            result = message["result"]
    return result, peak, resident


def _messages(output: IO[bytes]) -> Iterator[dict[str, Any] | None]:
    """The child's messages as they come; None each time the child has been silent for a while."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            if not selector.select(_SAMPLE_SECONDS):
                yield None
                continue
            part = os.read(output.fileno(), 1 << 16)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield json.loads(line)
