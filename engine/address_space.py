"""What a limit on address space (``ulimit -v``, RLIMIT_AS) leaves for this process.

NumPy's linear algebra, RocksDB and ONNX Runtime start threads while they are loaded and opened; where
there is no room for their stacks they end the process, from C, before any error could be caught. So
the limit is looked at before any of them is imported. Only the standard library is imported here.
"""

from __future__ import annotations

import itertools
import os
import sys

# Measured: with two cores everything opens in 560 MiB, and not always below 700. Each further thread
# reserves a stack and a heap of its own.
_BASE_BYTES = 640 << 20
_CORE_BYTES = 64 << 20
_COMMAND = "engine"


def limit() -> int | None:
    """The limit on this process's address space in bytes, or None."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def least() -> int:
    """The least address space in bytes in which everything can be loaded."""
    count = getattr(os, "sched_getaffinity", None)
    cores = len(count(0)) if count is not None else os.cpu_count() or 1
    return _BASE_BYTES + _CORE_BYTES * cores


def room() -> int | None:
    """Address space that is left beyond what loading everything takes, in bytes; None if unlimited."""
    most = limit()
    return None if most is None else most - least()


def require() -> None:
    """``MemoryError`` if the limit is too low; of the command, one line and status 2."""
    left = room()
    if left is None or left >= 0:
        return
    most = limit() or 0
    reason = (
        f"the limit on address space is {most >> 20} MiB, where {least() >> 20} MiB are needed: raise "
        "it with 'ulimit -v' (--memory bounds what is used)"
    )
    if is_command():
        print(f"{_COMMAND}: {reason}", file=sys.stderr)
        raise SystemExit(2)
    raise MemoryError(reason)


def is_command() -> bool:
    """Whether this process is the command, and not a program that imports the package."""
    if sys.argv[:1] == ["-m"]:  # while the package itself is imported for "python -m engine"
        orig = getattr(sys, "orig_argv", [])
        return any(pair == ("-m", _COMMAND) for pair in itertools.pairwise(orig))
    return bool(sys.argv) and sys.argv[0].rpartition(os.sep)[2] == _COMMAND
