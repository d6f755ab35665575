"""The address space that a limit (``ulimit -v``, RLIMIT_AS) leaves for this process.

NumPy's linear algebra, RocksDB and ONNX Runtime start threads while they are loaded and opened. Without
room for the threads' stacks they end the process, from C, before any error can be caught. So the limit
is checked before any of them is imported. This module imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os

# Measured: with two cores everything opens in 560 MiB, though not always below 700. Each further thread
# reserves a stack and a heap of its own.
_BASE_BYTES = 640 << 20
_CORE_BYTES = 64 << 20
_M_ARENA_MAX = -8  # from glibc's malloc.h


def limit() -> int | None:
    """Return the limit on this process's address space in bytes, or None."""
    try:
        import resource
    # Not a POSIX system.
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def least() -> int:
    """Return the least address space in bytes in which everything can be loaded."""
    count = getattr(os, "sched_getaffinity", None)
    cores = len(count(0)) if count is not None else os.cpu_count() or 1
    return _BASE_BYTES + _CORE_BYTES * cores


def room() -> int | None:
    """Return the address space beyond ``least``, in bytes; None if it is unlimited."""
    most = limit()
    return None if most is None else most - least()


def require() -> None:
    """Raise ``MemoryError`` if the limit is too low."""
    left = room()
    if left is None:
        return
    if left < 0:
        raise MemoryError(
            f"the limit on address space is {(limit() or 0) >> 20} MiB, but {least() >> 20} MiB are "
            "needed: raise it with 'ulimit -v' (memory= bounds what is used)"
        )
    _share_arenas()


def _share_arenas() -> None:
    """Make all threads allocate from two arenas, if the C library is glibc.

    It reserves 64 MiB of address space for each new thread's arena, up to eight per core. A thread that
    starts later would have no room for its stack, and RocksDB ends the process over that.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    # Another C library, or none of that name.
    except (OSError, AttributeError, TypeError):
        return
