"""Protects a forked process from open objects that its parent made before the fork.

A fork copies open databases, sessions and locks, but not the threads that serve them. If the child
used or destroyed such a copy, it could wait for ever, or write to files that the parent still uses.
So each object of that kind is registered here, and is abandoned in the child before any other code runs.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Abandoned(Protocol):
    """An open object that a forked child has to abandon."""

    def abandon(self) -> None:
        """Let go of it in a forked child, without a write, a wait or a destructor."""


_open: weakref.WeakSet[Abandoned] = weakref.WeakSet()
# Whether there ever was such an object, here or in a parent.
_used = False


def abandon_in_child(thing: Abandoned) -> None:
    """Register ``thing.abandon()`` to run in every process forked from this one."""
    global _used
    _used = True
    _open.add(thing)


def keep_for_ever(*objects: object) -> None:
    """Never destroy these, not even at exit: their destructors would wait or write."""
    import ctypes

    for thing in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _abandon_all() -> None:
    for thing in list(_open):
        thing.abandon()
    if _used:
        with contextlib.suppress(Exception):
            _leave_without_destructors()


def _leave_without_destructors() -> None:
    """Make this process end before the destructors of C++ libraries run.

    The destructors of RocksDB and ONNX Runtime wait for threads that only the parent has. Python's own
    exit, with its handlers and buffers, comes before; C's buffers are written here.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    end, flush = (ctypes.cast(call, ctypes.c_void_p) for call in (libc._exit, libc.fflush))
    # Handlers run in reverse order of registration. glibc passes the exit status to ``end``.
    libc.on_exit(end, None)
    getattr(libc, "__cxa_atexit")(flush, None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
