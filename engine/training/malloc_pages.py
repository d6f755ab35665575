"""Makes glibc keep the pages of freed tensors during a training.

A step on a CPU allocates and frees hundreds of large tensors. glibc would return their pages to the
kernel, which must clear new pages for the next tensors. That takes a tenth to a sixth of the step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# From malloc.h. Setting any of them stops glibc from adjusting the two thresholds, for good. So they end
# at the maximum of that adjustment, which a training process reaches anyway.
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 64 << 20
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD = -3, 32 << 20
_M_MMAP_MAX, _MMAP_MAX = -4, 1 << 16


@contextmanager
def kept_pages() -> Iterator[None]:
    """Inside the block, return no pages to the kernel; at its end, return all free pages.

    Afterwards the process keeps up to 64 MiB of free memory, and maps allocations of over 32 MiB.
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
    """The C library of this process if it is glibc; else None."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (an attribute that only glibc has)
    except (OSError, AttributeError, TypeError):
        return None
    return libc
