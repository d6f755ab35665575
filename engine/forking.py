"""What a forked process must not touch: everything open that its parent made before the fork.

A fork copies open databases, sessions and locks, and not the threads that serve them. If the child
used or destroyed such a copy, it could wait for ever, or write to files that the parent goes on with.
So each object of that kind is noted here, and is abandoned in the child before any other code runs.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Abandoned(Protocol):
    """Something that knows how to be inherited."""

    def abandon(self) -> None:
        """In a forked child: let go of it without a write, a wait or a destructor."""


_open: weakref.WeakSet[Abandoned] = weakref.WeakSet()
_used = False  # whether there ever was one, here or in a parent


def abandon_in_child(thing: Abandoned) -> None:
    """Have ``thing.abandon()`` called in every process that is forked from this one."""
    global _used
    _used = True
    _open.add(thing)


def keep_for_ever(*objects: object) -> None:
    """Never destroy these, not even when the interpreter ends: their destructors would wait or write."""
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
    """Have this process end before the destructors of C++ libraries run.

    Those of RocksDB and ONNX Runtime wait for threads that only the parent has. Python's own end, with
    its handlers and buffers, comes before; C's buffers are written here.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    end, flush = (ctypes.cast(call, ctypes.c_void_p) for call in (libc._exit, libc.fflush))
    # The last one registered is the first one called. glibc passes the status to the first one.
    libc.on_exit(end, None)
    getattr(libc, "__cxa_atexit")(flush, None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
