"""Counts libtiff's errors, which libtiff would write to standard error, one line each.

One damaged TIFF can cause hundreds of lines. None of them names the file; the reject does. libtiff has
one error handler per process, and it belongs to the program. So the command sets it while it runs, and
the library never does. Pillow itself switches off libtiff's warnings. A pipe in place of descriptor 2
was rejected: it would catch what others write there, and lose it in a crash.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import _imaging

MAX_COUNTED = 1000
"""Counting stops here, because each call waits for the interpreter's lock."""

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class Complaints:
    """The number of libtiff's errors, at most ``MAX_COUNTED``."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def line(self) -> str:
        """The count in words; empty if it is zero."""
        if not self.count:
            return ""
        more = "more than " if self.count >= MAX_COUNTED else ""
        times = "once" if self.count == 1 else f"{more}{self.count:,} times"
        return f"libtiff complained {times} about TIFF files; those that could not be read are rejected"


@contextmanager
def complaints() -> Iterator[Complaints]:
    """Inside the block, libtiff's errors are counted instead of written."""
    found = Complaints()
    setter = _setter()
    if setter is None:
        yield found
        return

    def handle(module: bytes, text: bytes, values: int) -> None:
        found.count += 1
        if found.count >= MAX_COUNTED:
            setter(None)

    # The variable keeps it alive until the previous handler is back.
    handler = _HANDLER(handle)
    before = setter(ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield found
    finally:
        setter(before)


def _setter() -> Any:
    """libtiff's function that sets the handler and returns the previous one; None if not found."""
    try:
        # The symbol comes from what Pillow's own module is linked with, so from the libtiff it uses.
        setter = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    # Another build of Pillow, or another platform.
    except (OSError, AttributeError, TypeError):
        return None
    setter.restype = ctypes.c_void_p
    setter.argtypes = [ctypes.c_void_p]
    return setter
