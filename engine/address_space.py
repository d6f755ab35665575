"""What a limit on address space (``ulimit -v``, RLIMIT_AS) leaves for this process.

NumPy's linear algebra, RocksDB and ONNX Runtime start threads while they are loaded and opened; where
there is no room for their stacks they end the process, from C, before any error could be caught. So
the limit is looked at before any of them is imported. Only the standard library is imported here.
"""

from __future__ import annotations

import ctypes
import os

# Measured: with two cores everything opens in 560 MiB, and not always below 700. Each further thread
# reserves a stack and a heap of its own.
_BASE_BYTES = 640 << 20
_CORE_BYTES = 64 << 20
_M_ARENA_MAX = -8  # from glibc's malloc.h


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
    """``MemoryError`` if the limit is too low."""
    left = room()
    if left is None:
        return
    if left < 0:
        raise MemoryError(
            f"the limit on address space is {(limit() or 0) >> 20} MiB, where {least() >> 20} MiB are "
            "needed: raise it with 'ulimit -v' (memory= bounds what is used)"
        )
    _share_arenas()


def _share_arenas() -> None:
    """Let all threads allocate from two arenas, where the C library is glibc.

    It reserves 64 MiB of address space for each new thread's arena, up to eight a core. A thread that
    starts later would have no room for its stack, and RocksDB ends the process over that.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    except (OSError, AttributeError, TypeError):  # another C library, or none by that name
        return
