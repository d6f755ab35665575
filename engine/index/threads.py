"""Leaves a forked process with one thread for FAISS.

The threads of OpenMP are bound to the thread that asked for them, and none survives a fork, while what
counts them does. A child goes on with the thread that forked alone.
"""

from __future__ import annotations

import os
import sys


def _use_one_thread() -> None:
    # It is imported only where it is used. Its setting is one of this thread's.
    set_threads = getattr(sys.modules.get("faiss"), "omp_set_num_threads", None)
    if set_threads is not None:
        set_threads(1)


def survive_forks() -> None:
    """Have every process that is forked from this one use one thread; call it once."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_use_one_thread)
