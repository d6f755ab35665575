"""Limits FAISS to one thread in a forked process.

OpenMP's worker threads do not survive a fork, but its count of them does, so FAISS could wait for them
forever. A child process therefore uses only the thread that forked.
"""

from __future__ import annotations

import os
import sys


def _use_one_thread() -> None:
    # Do not import FAISS if the parent has not. The setting is of this thread.
    set_threads = getattr(sys.modules.get("faiss"), "omp_set_num_threads", None)
    if set_threads is not None:
        set_threads(1)


def survive_forks() -> None:
    """Limit every process forked from this one to one FAISS thread; call it once."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_use_one_thread)
