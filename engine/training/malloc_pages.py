"""Keeps the pages that tensors gave back, where the C library is glibc.

A step on a CPU makes and drops hundreds of large tensors, and glibc would hand each one's pages
back to the kernel, which has to clear new ones for the next: a tenth to a sixth of the step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# From malloc.h. Setting any of them ends glibc's own adjusting of the two thresholds, for good: so they
# are left as high as that goes, where a process that trains has them anyway.
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 64 << 20
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD = -3, 32 << 20
_M_MMAP_MAX, _MMAP_MAX = -4, 1 << 16


@contextmanager
def kept_pages() -> Iterator[None]:
    """Nothing is handed back inside; all that is free is, at the end.

    From then on the process keeps up to 64 MiB that are free, and maps what takes over 32 MiB.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, or None where it is another one."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (an attribute that only glibc has)
    except (OSError, AttributeError, TypeError):
        return None
    return libc
